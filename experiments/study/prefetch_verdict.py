"""The verdict on prefetching: does the chosen predictor, planner and policy beat plain LRU and free gate look-ahead in time?

Chosen on `assets/traces/reference_hidden`; a verdict worth quoting is of other text. All times simulated.
"""

from collections.abc import Sequence
from typing import Any

from rgpu.experiments.study.prefetch_time import BASELINE, FREE, NONE, ORACLE, Arm, Court, slots_of
from rgpu.results.statistics import MIN_CLUSTERS, holm

DEFAULT = Arm("linear", "expected_value", "joint_forecast")
OTHERS: dict[str, Arm] = {  # what the default has to beat, then what says where its gain comes from
    "lru": BASELINE,
    "gate_lookahead": FREE,
    "gate_lookahead_same": Arm("gate_lookahead", DEFAULT.planner, DEFAULT.policy),
    "eviction_only": Arm(DEFAULT.predictor, NONE, DEFAULT.policy),
}
NEEDED = ("lru", "gate_lookahead", "gate_lookahead_same")
ENOUGH = 3  # machines


def judge(court: Court, share: float, machines: Sequence[str], cost: str) -> dict[str, Any]:
    """Paired differences of TPOT on every machine, Holm-corrected over all of them, and whether the default wins.

    `better` where the 95 % interval of the saving lies above 0 and the corrected p-value is below 0.05; "cannot tell" below
    `MIN_CLUSTERS` sequences."""
    slots = slots_of(court.trace, share)
    found: list[dict[str, Any]] = []
    for where in machines:
        own: dict[str, Any] = {"machine": where}
        base = court.timed(BASELINE, slots, where, cost)
        own["tpot_s"] = {name: court.timed(arm, slots, where, cost).tpot_s for name, arm in OTHERS.items()}
        own["tpot_s"]["default"] = court.timed(DEFAULT, slots, where, cost).tpot_s
        perfect = Arm(ORACLE, DEFAULT.planner, DEFAULT.policy)
        own["tpot_s"]["perfect"] = court.timed(perfect, slots, where, cost).tpot_s
        own["bound_share_lru"] = court.bound_s(slots, where, cost) / base.seconds
        own["bound_share_default"] = (
            court.bound_s(slots, where, cost) / court.timed(DEFAULT, slots, where, cost).seconds
        )
        # what predicting may take of each layer's time before nothing is left of the gain: the clock does not count it
        own["affordable_us"] = 1e6 * (own["tpot_s"]["lru"] - own["tpot_s"]["default"]) / court.trace.layers
        own["against"] = {}
        for name, arm in OTHERS.items():
            gain, p = court.saved(DEFAULT, arm, slots, where, cost)
            tpot = own["tpot_s"][name]
            interval = {"saved": gain.estimate / tpot, "lo": gain.lo / tpot, "hi": gain.hi / tpot}
            own["against"][name] = {"saved_s": gain.estimate, **interval, "p": p}
        found.append(own)
    cells = [cell for own in found for cell in own["against"].values()]
    for cell, p in zip(cells, holm([cell["p"] for cell in cells]), strict=True):
        cell["p"] = float(p)
        enough = court.trace.sequences >= MIN_CLUSTERS
        clear = "better" if cell["lo"] > 0 else "worse" if cell["hi"] < 0 else "cannot tell"
        cell["verdict"] = clear if enough and p < 0.05 else "cannot tell"
    won = [own["machine"] for own in found if all(own["against"][n]["verdict"] == "better" for n in NEEDED)]
    return {
        "simulated": True, "default": {"predictor": DEFAULT.predictor, "planner": DEFAULT.planner, "policy": DEFAULT.policy},
        "timed_as": cost, "slots": slots, "sequences": court.trace.sequences, "machines": found, "won": won,
        "pays": len(won) >= ENOUGH, "says": sentence(won, [own["machine"] for own in found], court.trace.sequences),
    }  # fmt: skip


def sentence(won: Sequence[str], tried: Sequence[str], sequences: int) -> str:
    """The verdict in words."""
    what = f"{DEFAULT.predictor} with {DEFAULT.planner} and {DEFAULT.policy}"
    beats = "plain LRU and gate look-ahead, shipped or with the same planner and policy,"
    if sequences < MIN_CLUSTERS:
        return f"Too few sequences ({sequences}) for a verdict on {what}."
    if len(won) >= ENOUGH:
        return f"{what} beats {beats} in simulated time on {len(won)} of {len(tried)} machines: {', '.join(won)}."
    return (
        f"{what} does not beat {beats} on {ENOUGH} machines; it does on {len(won)} of {len(tried)} in simulated time."
    )
