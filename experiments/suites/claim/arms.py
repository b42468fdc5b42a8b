"""The policies that the claims set beside each other, and how a rotary configuration is chosen without looking ahead."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rgpu.experiments.suites.claim.inputs import Material
from rgpu.experiments.suites.claim.scoring import Arm, Bench
from rgpu.policies.lfu import Lfu
from rgpu.policies.linear_residency import LinearResidency
from rgpu.policies.lru import Lru
from rgpu.policies.ring import Ring
from rgpu.policies.rotary_hybrid import RotaryHybrid
from rgpu.policies.rotary_paper import RotaryPaper
from rgpu.policies.router_lag import RouterLag
from rgpu.policies.static_hot import StaticHot
from rgpu.traces.split import split

STEP = 2  # slots of a layer that may change an event, wherever arms must move equally


def controls() -> list[Arm]:
    """What rotation must beat to be credited, and the floor: no skill at all, the router's last word, a linear map."""
    return [
        Arm("ring", Ring(step=STEP)),
        Arm("router_lag", RouterLag(step=STEP)),
        Arm("linear_residency", LinearResidency(step=STEP)),
    ]


def baselines() -> list[Arm]:
    """What anyone would try first, the controls, and our own variant that may count uses."""
    return [
        Arm("lru", Lru()),
        Arm("lfu", Lfu()),
        Arm("static_hot", StaticHot()),
        *controls(),
        Arm("rotary_hybrid", RotaryHybrid()),
    ]


def paper(label: str, scope: str = "layer", **choices: Any) -> Arm:
    """An arm of the published method."""
    return Arm(label, RotaryPaper(**choices), scope)


def candidates(quick: bool) -> list[Arm]:
    """Configurations of the published method among which the calibration half chooses."""
    transforms = ("projection", "trajectory") if quick else ("projection", "phase", "cyclic", "trajectory",
                                                             "projection+trajectory")  # fmt: skip
    turns = ("identity",) if quick else ("identity", "calibrated")
    return [
        paper(f"{t}, {w}, step {s}", transforms=t, rotation=w, step=s)
        for t in transforms
        for w in turns
        for s in (1, STEP, 4)
    ]


def choose(bench: Bench, material: Material, slots: int, quick: bool) -> Arm:
    """The configuration with the best hit rate among those that move no more than LRU (if any), judged inside the
    calibration half: half of its documents calibrate, the others are scored. Labelled "rotary_paper"."""
    trace = material.calibration
    parts = split(trace)
    inner = Material(f"{material.name}/choose", material.source, trace, trace.select(parts.calibration),
                     trace.select(parts.scored))  # fmt: skip
    lru, arms = Arm("lru", Lru()), candidates(quick)
    bench.prepare(inner, [(arm, slots) for arm in (lru, *arms)])
    limit = bench.counts(inner, lru, slots).loads_per_token
    scored = [(arm, bench.counts(inner, arm, slots)) for arm in arms]
    thrifty = [pair for pair in scored if pair[1].loads_per_token <= limit]
    best = max(thrifty or scored, key=lambda pair: pair[1].hit_rate)[0]
    return replace(best, label="rotary_paper")


def described(arm: Arm) -> str:
    """The choices of a rotary arm that differ from the defaults, as text."""
    own, default = arm.policy, RotaryPaper()
    fields: Sequence[str] = type(default).__dataclass_fields__  # type: ignore[assignment]
    changed = {n: getattr(own, n) for n in fields if hasattr(own, n) and getattr(own, n) != getattr(default, n)}
    return ", ".join(f"{n}={'+'.join(v) if isinstance(v, tuple) else v}" for n, v in changed.items()) or "the defaults"
