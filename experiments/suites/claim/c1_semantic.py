"""C1: rotary residency follows semantic flow better than LRU. At equal capacity, and at equal moved bytes."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rgpu.experiments.suites.claim.arms import baselines, described, paper
from rgpu.experiments.suites.claim.c1_time import seconds_per_token
from rgpu.experiments.suites.claim.context import Setting
from rgpu.experiments.suites.claim.inputs import Material
from rgpu.experiments.suites.claim.scoring import Arm
from rgpu.experiments.suites.claim.verdicts import (
    BETTER,
    CANNOT_TELL,
    NOT_SUPPORTED,
    SUPPORTED,
    Claim,
    Versus,
    agreed,
    rate,
    versus,
)
from rgpu.policies.admission import Capped, admitted
from rgpu.policies.belady import Belady
from rgpu.policies.lfu import Lfu
from rgpu.policies.linear_residency import LinearResidency
from rgpu.policies.lru import Lru
from rgpu.policies.rotary_paper import RotaryPaper
from rgpu.policies.router_lag import RouterLag

RIVALS = ("lru", "lfu", "static_hot")  # at equal capacity
MOVING = ("lru", "lfu")  # at equal moved bytes: a static set moves nothing after its fill
STEPS = (0.25, 0.5, 1, 2, 4, None)
RULE = (
    "Supported: more hits than LRU, LFU and static-hot at more than half of the capacities, and for LRU and LFU each some step "
    "limit with more hits and no more loads (or fewer loads and no fewer hits). Not supported: no more hits than one of the "
    "three at more than half of the capacities, or, for LRU or LFU, every step limit moves more or hits no more"
)


def test(setting: Setting) -> Claim:
    claim = Claim(
        "C1",
        "Rotary residency follows semantic flow better than LRU",
        "KR 10-2026-0070380 [0043]",
        "hit rate and loads per token at every capacity, cold per sequence, the configuration chosen on the calibration "
        "half; and hit rate against loads per token over the step limit at one capacity",
        "no more hits than LRU, LFU or static-hot at equal capacity, or than LRU or LFU at equal moved bytes",
        CANNOT_TELL,
        "",
        figures=["claim_c1"],
    )
    words = {}
    for material in setting.materials:
        words[material.name], claim.numbers[material.name] = _on(setting, material, claim)
    claim.verdict = agreed(words)
    claim.why = "; ".join(f"{name}: {word}" for name, word in words.items()) + f". {RULE}"
    return claim


def _on(setting: Setting, material: Material, claim: Claim) -> tuple[str, dict[str, Any]]:
    chosen = setting.chosen[material.name]
    arms = [*baselines(), paper("rotary", step=2), chosen]
    if chosen.policy == RotaryPaper():
        arms.remove(next(a for a in arms if a.label == "rotary"))
    shown = [*arms, Arm("belady", Belady())]
    setting.bench.prepare(material, [(arm, slots) for slots in setting.slots for arm in shown])
    capacity, by_slots = {}, {}
    for slots in setting.slots:
        for arm in shown:
            claim.rows += setting.rows(material, "C1", arm, slots, case="capacity")
        found = {a.label: setting.bench.counts(material, a, slots) for a in arms}
        own = found["rotary_paper"]
        capacity[slots] = versus(own, {r: found[r] for r in RIVALS}, tests=len(RIVALS) * len(setting.slots))
        by_slots[slots] = {
            "hit_rate": {n: rate(c.hits, c.accesses) for n, c in found.items()},
            "loads_per_token": {n: rate(c.loads, c.tokens) for n, c in found.items()},
            "rotary_paper_minus": {r: v.told() for r, v in capacity[slots].items()},
            "floor": setting.floor(material, slots),
        }
    dials = _dials(setting, material, claim, chosen)
    verdict = decide(capacity, dials)
    return verdict, {
        "configuration": described(chosen),
        "capacities": by_slots,
        "simulated_tpot_s": seconds_per_token(setting, material, claim, shown),
        "step_limits_at_slots": setting.quarter,
        "step_limits": {step: {r: v.told() for r, v in each.items()} for step, each in dials.items()},
        "verdict": verdict,
    }


def decide(capacity: Mapping[int, Mapping[str, Versus]], dials: Mapping[str, Mapping[str, Versus]]) -> str:
    """Verdict from rotary minus its rivals at each capacity, and at each step limit at one capacity; the rule is `RULE`."""
    half = len(capacity) / 2
    more = sum(all(v.more_hits for v in each.values()) for each in capacity.values())
    no_more = sum(any(v.no_more_hits for v in each.values()) for each in capacity.values())
    if no_more > half:
        return NOT_SUPPORTED
    for rival in MOVING:
        if all(each[rival].more_loads or each[rival].no_more_hits for each in dials.values()):
            return NOT_SUPPORTED
    dialled = all(any(each[rival].word == BETTER for each in dials.values()) for rival in MOVING)
    return SUPPORTED if more > half and dialled else CANNOT_TELL


def _dials(setting: Setting, material: Material, claim: Claim, chosen: Arm) -> dict[str, dict[str, Versus]]:
    """Rotary with a growing step limit against LRU and LFU at one capacity; rows also of LRU's and the controls' dials."""
    slots, steps = setting.quarter, STEPS[1:5] if setting.quick else STEPS
    own = {f"step {n}": Arm("rotary_paper", replace(chosen.policy, step=n)) for n in steps}  # type: ignore[type-var]
    arms = [("rotary_paper", case, arm) for case, arm in own.items()]
    arms.append(("lru", "all inserts", Arm("lru", Lru())))
    arms += [("lru", f"{n} inserts", Arm("lru", admitted(Lru(), Capped(n)))) for n in (1, 2)]
    for limit in steps:
        arms.append(("linear_residency", f"step {limit}", Arm("linear_residency", LinearResidency(step=limit))))
        if limit is None or limit >= 1:
            lag = RouterLag(step=None if limit is None else int(limit))
            arms.append(("router_lag", f"step {limit}", Arm("router_lag", lag)))
    setting.bench.prepare(material, [(arm, slots) for _, _, arm in arms])
    for name, case, arm in arms:
        claim.rows += setting.rows(material, "C1", arm, slots, case=f"dial:{case}", name=name)
    rivals = {"lru": Arm("lru", Lru()), "lfu": Arm("lfu", Lfu())}
    found = {r: setting.bench.counts(material, arm, slots) for r, arm in rivals.items()}
    return {
        case: versus(setting.bench.counts(material, arm, slots), found, tests=len(MOVING) * len(steps))
        for case, arm in own.items()
    }
