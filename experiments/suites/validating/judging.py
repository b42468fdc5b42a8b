"""Simulation against a run: decisions that must agree, the error of the time per output token, and the verdict.

Legend: P decode passes, R repeats.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rgpu.errors import InputError
from rgpu.experiments.benching.live_events import Bench, LiveRun
from rgpu.policies.loop import HIT
from rgpu.replay.engine import ReplayResult, replay
from rgpu.replay.log import DecisionLog
from rgpu.replay.timing.engine_profile import EngineProfile
from rgpu.replay.timing.facts import PassFacts, pass_facts
from rgpu.replay.timing.simulate import simulate

# the target: at most the larger of 10 % and twice the spread, over 12 configurations
ERROR, SPREADS, FEWEST = 0.10, 2.0, 12
MET, MISSED, TOO_FEW = "met", "missed", "too few configurations"
MET_IN_NOISE = "met only within the spread between repeats"  # more than 10 %, at most twice the spread


@dataclass(frozen=True, slots=True)
class Replayed:
    """A run's own trace decided again: whether every hit, load and victim is the run's; `log` for the clock."""

    same: bool
    hits: int
    accesses: int
    log: DecisionLog


def replayed(bench: Bench, run: LiveRun) -> Replayed:
    """Replay the trace of a run as its configuration decides."""
    policy = bench.policies[run.config.policy]
    calibration = bench.calibration if policy.traits.calibration else None
    again: ReplayResult = replay(
        run.trace, policy, bench.pool(run.config), calibration=calibration, seed=bench.seed, log=True, decisions=True
    )
    assert again.decisions is not None
    same = again.log == run.log and again.hits == run.hits
    return Replayed(same, again.hits, again.accesses, again.decisions)


@dataclass(frozen=True, slots=True)
class Predicted:
    """Seconds a decode pass: simulated, and simulated as if nothing had missed (what the misses cost is the difference)."""

    tpot_s: float
    without_misses_s: float


def predict(profile: EngineProfile, bench: Bench, run: LiveRun, log: DecisionLog) -> Predicted:
    """The time of a replayed run on the machine of the profile; nothing of the run's own times goes in."""
    config, policy = run.config, bench.policies[run.config.policy]
    facts: PassFacts = pass_facts(run.trace)
    machine = profile.machine(config.batch, config.policy, policy.traits.feature == "hidden")
    cost = profile.cost(config.batch, run.shape.layers)
    top_k = run.shape.top_k
    timed = simulate(log, facts, machine, cost, top_k, miss=config.handler)
    none = np.zeros((0, 5), np.int64)
    hit = replace_log(log, np.full_like(log.codes, HIT), none)
    return Predicted(timed.tpot_s, simulate(hit, facts, machine, cost, top_k, miss=config.handler).tpot_s)


def replace_log(log: DecisionLog, codes: np.ndarray, proactive: np.ndarray) -> DecisionLog:
    """The same events with other codes and loads."""
    return replace(log, codes=codes, victims=np.full_like(log.victims, -1), proactive=proactive, fills=proactive)


@dataclass(frozen=True, slots=True)
class Measured:
    """`tpot_s`: mean over passes of the median repeat; `repeats_s` each repeat's own mean, `spread` their standard deviation
    over it (0 for one repeat)."""

    tpot_s: float
    repeats_s: tuple[float, ...]
    spread: float


def measured(repeats: Sequence[np.ndarray]) -> Measured:
    """From the seconds of the same passes [P], repeat by repeat."""
    if not repeats or any(len(r) != len(repeats[0]) or not len(r) for r in repeats):
        raise InputError(
            f"validation: got {len(repeats)} repeats of different passes; expected some of the same passes"
        )
    seconds_RP = np.stack(repeats)
    tpot = float(np.median(seconds_RP, 0).mean())
    own = seconds_RP.mean(1)
    spread = float(own.std(ddof=1) / tpot) if len(own) > 1 else 0.0
    return Measured(tpot, tuple(float(v) for v in own), spread)


def error_of(predicted_s: float, measured_s: float) -> float:
    """Signed share: above 0 where the simulation is too slow."""
    return predicted_s / measured_s - 1.0


def verdict(errors: Sequence[float], spreads: Sequence[float]) -> dict[str, Any]:
    """The median of the absolute errors against the larger of 10 % and twice the median spread between repeats."""
    if len(errors) != len(spreads) or not len(errors):
        raise InputError(
            f"validation: got {len(errors)} errors and {len(spreads)} spreads; expected one of each a configuration"
        )
    absolute = np.abs(np.asarray(errors, float))
    median, spread = float(np.median(absolute)), float(np.median(spreads))
    target = max(ERROR, SPREADS * spread)
    reached = MET if median <= ERROR else MET_IN_NOISE if median <= target else MISSED
    return {
        "verdict": reached if len(errors) >= FEWEST else TOO_FEW, "configurations": len(errors), "median_error": median,
        "p90_error": float(np.percentile(absolute, 90)), "largest_error": float(absolute.max()),
        "median_signed_error": float(np.median(errors)), "median_spread": spread, "target": target,
        "target_rests_on": "10 %" if target == ERROR else "twice the spread between repeats",
        "within_10_percent": float((absolute <= ERROR).mean()),
    }  # fmt: skip


def median_size(errors: Sequence[float]) -> float:
    """Median of the absolute errors."""
    return float(np.median(np.abs(np.asarray(errors, float))))
