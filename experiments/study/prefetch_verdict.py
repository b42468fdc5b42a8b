"""The verdict on prefetching: does the chosen predictor, planner and policy beat plain LRU and free gate look-ahead in time?

Chosen on `assets/traces/reference_hidden`: of its documents there is no verdict. All times simulated but for predicting, which
is measured and added to every pass, as if the device waited for it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rgpu.experiments.study.prefetch_time import BASELINE, FREE, NONE, ORACLE, Arm, Court, slots_of
from rgpu.experiments.study.time_saved import MARGIN, worded
from rgpu.results.statistics import CANNOT_TELL, MIN_CLUSTERS, Interval, holm

DEFAULT = Arm("linear", "expected_value", "joint_forecast")
OTHERS: dict[str, Arm] = {  # what the default has to beat, then what says where its gain comes from
    "lru": BASELINE,
    "gate_lookahead": FREE,
    "gate_lookahead_same": Arm("gate_lookahead", DEFAULT.planner, DEFAULT.policy),
    "eviction_only": Arm(DEFAULT.predictor, NONE, DEFAULT.policy),
}
NEEDED = ("lru", "gate_lookahead", "gate_lookahead_same")
ENOUGH = 3  # machines


def judge(court: Court, share: float, machines: Sequence[str], cost: str, seen: bool = False) -> dict[str, Any]:
    """Paired differences of TPOT on every machine, predicting included, Holm-corrected over all of them, and whether the
    default wins: by `statistics.verdict` with a margin of half a percent of LRU's TPOT.

    `seen`: the scored documents are among those the default was chosen on, so that nothing can be told."""
    slots = slots_of(court.trace, share)
    found: list[dict[str, Any]] = []
    gains: list[tuple[dict[str, Any], Interval, float]] = []
    for where in machines:
        own: dict[str, Any] = {"machine": where}
        base = court.timed(BASELINE, slots, where, cost)
        perfect = Arm(ORACLE, DEFAULT.planner, DEFAULT.policy)
        arms = OTHERS | {"default": DEFAULT, "perfect": perfect}
        own["tpot_s"] = {name: court.tpot(arm, slots, where, cost, predicting=True) for name, arm in arms.items()}
        own["predicting_us"] = {
            name: 1e6 * court.predict_s(arm, where, cost) / court.trace.layers for name, arm in arms.items()
        }
        own["bound_share_lru"] = court.bound_s(slots, where, cost) / base.seconds
        own["bound_share_default"] = (
            court.bound_s(slots, where, cost) / court.timed(DEFAULT, slots, where, cost).seconds
        )
        # what predicting may take of each layer's time before nothing is left of the gain
        free_s = court.tpot(BASELINE, slots, where, cost) - court.tpot(DEFAULT, slots, where, cost)
        own["affordable_us"] = 1e6 * free_s / court.trace.layers
        own["saved_if_free"] = free_s / own["tpot_s"]["lru"]
        own["against"] = {}
        for name, arm in OTHERS.items():
            margin = MARGIN * own["tpot_s"]["lru"]
            gain, p = court.saved(DEFAULT, arm, slots, where, cost, margin=margin, predicting=True)
            tpot = own["tpot_s"][name]
            interval = {"saved": gain.estimate / tpot, "lo": gain.lo / tpot, "hi": gain.hi / tpot}
            own["against"][name] = {"saved_s": gain.estimate, **interval, "p": p}
            gains.append((own["against"][name], gain, margin))
        found.append(own)
    for (cell, gain, margin), p in zip(gains, holm([cell["p"] for cell, _, _ in gains]), strict=True):
        cell["p"] = float(p)
        cell["verdict"] = CANNOT_TELL if seen else worded(gain, float(p), margin, court.trace.sequences)
    said = {own["machine"]: outcome([own["against"][n]["verdict"] for n in NEEDED]) for own in found}
    won = [where for where, word in said.items() if word == "won"]
    return {
        "simulated": True, "default": {"predictor": DEFAULT.predictor, "planner": DEFAULT.planner, "policy": DEFAULT.policy},
        "timed_as": cost, "slots": slots, "sequences": court.trace.sequences, "seen": seen, "machines": found, "outcome": said,
        "won": won, "pays": len(won) >= ENOUGH, "says": sentence(said, court.trace.sequences, seen),
    }  # fmt: skip


def outcome(verdicts: Sequence[str]) -> str:
    """Of one machine: "won" where all are better, "lost" where one is worse, else "cannot tell"."""
    if all(v == "better" for v in verdicts):
        return "won"
    return "lost" if "worse" in verdicts else CANNOT_TELL


def sentence(outcomes: Mapping[str, str], sequences: int, seen: bool = False) -> str:
    """The verdict in words, from what came out on each machine."""
    what = f"{DEFAULT.predictor} with {DEFAULT.planner} and {DEFAULT.policy}"
    beats = "plain LRU and gate look-ahead, shipped or with the same planner and policy,"
    if seen:
        return f"{what} was chosen on these documents: no verdict on it."
    if sequences < MIN_CLUSTERS:
        return f"Too few sequences ({sequences}) for a verdict on {what}."
    by = {word: [where for where, said in outcomes.items() if said == word] for word in ("won", "lost", CANNOT_TELL)}
    counts = (
        f"wins on {len(by['won'])} of {len(outcomes)}, loses to one of them on {len(by['lost'])}, cannot be told on "
    )
    counts += f"{len(by[CANNOT_TELL])}"
    if len(by["won"]) >= ENOUGH:
        return f"{what} beats {beats} in simulated time: {counts} machines (wins: {', '.join(by['won'])})."
    return f"{what} is not shown to beat {beats} on {ENOUGH} machines: {counts} in simulated time."
