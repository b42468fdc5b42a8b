"""Simulated seconds per token of C1's arms: where hits and moved bytes disagree, time says what they are worth."""

from rgpu.experiments.suites.claim.context import Setting, at_arm
from rgpu.experiments.suites.claim.inputs import Material
from rgpu.experiments.suites.claim.scoring import Arm
from rgpu.experiments.suites.claim.verdicts import Claim
from rgpu.experiments.suites.published.clock import cost_for, machine, speed_rows
from rgpu.experiments.suites.published.record import NotTestableError
from rgpu.replay.timing.facts import pass_facts
from rgpu.replay.timing.simulate import simulate

MACHINES, MISSES = ("rtx4060_laptop", "rtx4090"), ("fetch", "cpu")


def seconds_per_token(
    setting: Setting, material: Material, claim: Claim, arms: list[Arm]
) -> dict[str, dict[str, list[float]]]:
    """At one capacity, by machine and miss handler: [estimate, lo, hi] of every arm; rows go into the claim's."""
    trace = material.scored
    found: dict[str, dict[str, list[float]]] = {}
    try:
        cost = cost_for(trace)
    except NotTestableError:  # no cost is known of this model: hits and loads remain
        return found
    facts = pass_facts(trace, cost.window)
    for arm in arms:
        log = setting.bench.replay(material, arm, setting.quarter, decisions=True).decisions
        assert log is not None
        at = at_arm(setting.context(material, "C1"), material, arm, setting.quarter)
        for name in MACHINES:
            for miss in MISSES:
                timing = simulate(log, facts, machine(name), cost, trace.header.top_k, miss=miss)
                tables = speed_rows(at.at(case=f"{name}, {miss}"), timing, trace.sequences)
                claim.rows += tables
                row = tables[0].to_pylist()[0]
                found.setdefault(f"{name}, {miss}", {})[arm.label] = [row[c] for c in ("value", "lo", "hi")]
    return found
