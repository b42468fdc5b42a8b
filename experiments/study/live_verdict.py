"""A live contest judged: time per token over LRU's in the same rounds, paired over texts, beside what the simulator says."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from rgpu.experiments.study.live_arms import AGAIN
from rgpu.experiments.study.live_contest import Standing, Table, named, pooled, standing_of
from rgpu.experiments.study.prefetch_time import BASELINE, NONE, ORACLE
from rgpu.experiments.study.time_saved import MARGIN, worded
from rgpu.results.rows import Context
from rgpu.results.statistics import CANNOT_TELL, PAIR_SAMPLES, Interval, holm, interval_of, paired_difference, ratio

COUNTED = ("useful", "late", "wasted", "cancelled", "pending", "harmful")  # loads ahead, a pass
MOVED = ("bytes_loaded", "bytes_wasted")
HEAD = (
    "predictor, planner", "ms a token, median", "mean", "of LRU", "95 % interval", "of LRU, with waits", "95 % interval",
    "verdict", "of LRU, simulated", "stall, ms", "MB loaded", "MB wasted", "useful", "late", "wasted", "cancelled", "harmful",
    "predicting, us an event", "planning, us",
)  # fmt: skip
Times = Callable[[Standing], np.ndarray]


def without_waits(own: Standing) -> np.ndarray:
    """Seconds of each text [S] less what the computing thread waited for other processes."""
    return own.seconds_S


def with_waits(own: Standing) -> np.ndarray:
    """Seconds of each text [S] on the wall's clock."""
    return own.wall_S


def judge(table: Table, seen: bool = False) -> dict[str, Any]:
    """Every arm of a table against LRU without prefetch, the mean of its two runs a round. Ratios of summed seconds with 95 %
    cluster bootstraps over texts, without waits for other processes and with them; an arm is told apart where both tell it,
    each by p-values of "within half a percent of LRU's time", Holm-corrected over the table's arms (`p`: the larger).

    The second run of LRU is held against the first. Where these two are told apart, or the texts are ones that the default was
    chosen on (`seen`), nothing else is."""
    first, again = standing_of(table, BASELINE), standing_of(table, AGAIN)
    assert first is not None, "LRU is among the arms"
    base = pooled(first, again)
    others = [own for own in table.standings if own.arm not in (BASELINE, AGAIN)]
    control = CANNOT_TELL
    if again is not None:  # one measure that tells the same apart is enough to believe neither
        words = [verdicts(first, [again], times)[0][0] for times in (without_waits, with_waits)]
        control = next((word for word in words if word != CANNOT_TELL), CANNOT_TELL)
    told = [verdicts(base, others, times) for times in (without_waits, with_waits)]
    arms = [_numbers(base, base) | _ratios(base, base)]
    if again is not None:
        arms.append(_numbers(again, base) | _ratios(again, first) | {"verdict": control})
    for own, (word, p), (walled, wall_p) in zip(others, *told, strict=True):
        sure = word == walled and control == CANNOT_TELL and not seen
        verdict = {"p": max(p, wall_p), "verdict": word if sure else CANNOT_TELL}
        arms.append(_numbers(own, base) | _ratios(own, base) | verdict)
    return {
        "link": table.link.label, "emulated": table.link.gb_per_s is not None, "share": table.share, "slots": table.slots,
        "texts": len(base.seconds_S), "passes": int(base.steps_S.sum()), "arms": arms, "control": control, "seen": seen,
        "bound_of_lru_simulated": table.bound_s / float(base.simulated_S.sum()),
        "resident_of_lru": table.resident_s / float(base.seconds_S.sum()),
        "resident_of_lru_wall": table.resident_wall_s / float(base.wall_S.sum()), "beats_lru": beating(arms),
    }  # fmt: skip


def verdicts(base: Standing, others: Sequence[Standing], times: Times) -> list[tuple[str, float]]:
    """("better", "worse" or "cannot tell", Holm-adjusted p) of each of `others` by one measure of time."""
    margin = MARGIN * float(times(base).sum() / base.steps_S.sum())
    gains = [
        paired_difference(times(base), base.steps_S, times(own), own.steps_S, margin=margin, samples=PAIR_SAMPLES)
        for own in others
    ]
    adjusted = [float(p) for p in holm([p for _, p in gains])]
    return [(worded(gain, p, margin, len(base.steps_S)), p) for (gain, _), p in zip(gains, adjusted, strict=True)]


def _ratios(own: Standing, base: Standing) -> dict[str, float]:
    found: list[Interval] = [
        interval_of(ratio, np.stack([times(own), times(base)]), samples=PAIR_SAMPLES)[0]
        for times in (without_waits, with_waits)
    ]
    return {
        f"{prefix}{name}": value
        for prefix, each in zip(("", "wall_"), found, strict=True)
        for name, value in (("ratio", each.estimate), ("lo", each.lo), ("hi", each.hi))
    }


def _numbers(own: Standing, base: Standing) -> dict[str, Any]:
    return {
        "name": named(own.arm), "predictor": own.arm.predictor, "planner": own.arm.planner, "policy": own.arm.policy,
        "tpot_s": float(own.seconds_S.sum() / own.steps_S.sum()), "tpot_median_s": own.median_s, "spread": own.spread,
        "seconds_S": own.seconds_S.tolist(), "wall_S": own.wall_S.tolist(),
        "simulated_ratio": float(own.simulated_S.sum() / base.simulated_S.sum()),
        "simulated_s": float(own.simulated_S.sum() / own.steps_S.sum()),
        "predict_us": own.predict_us, "plan_us": own.plan_us, "decide_us": own.decide_us, **own.per_pass,
    }  # fmt: skip


def beating(arms: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the arms that were told to be faster than LRU, but for perfect forecasts, which nobody has."""
    real = [a for a in arms if a["predictor"] != ORACLE and a["policy"] != AGAIN.policy]
    return [str(a["name"]) for a in real if a.get("verdict") == "better"]


def sentence(table: Mapping[str, Any]) -> str:
    """What came out of one table, in words."""
    real = [a for a in table["arms"] if a["predictor"] not in (NONE, ORACLE)]
    fastest = min(real, key=lambda a: a["ratio"])
    words = {word: sum(a["verdict"] == word for a in real) for word in ("better", "worse", "cannot tell")}
    again = next((a for a in table["arms"] if a["policy"] == AGAIN.policy), None)
    said = (
        f"{table['link']}, {table['slots']} slots a layer: of {len(real)} live arms {words['better']} are faster than LRU "
        f"without prefetch, {words['worse']} slower, {words['cannot tell']} cannot be told from it; least: "
        f"{fastest['name']} with {_shares(fastest)}."
    )
    if again is not None:
        said += f" LRU against itself: {_shares(again)}"
        said += "." if table["control"] == CANNOT_TELL else ", told apart, so nothing else is."
    if table["seen"]:
        said += " The default was chosen on these documents, so nothing is told."
    return said


def _shares(arm: Mapping[str, Any]) -> str:
    return (
        f"{arm['ratio']:.3f} of LRU's time [{arm['lo']:.3f}, {arm['hi']:.3f}], {arm['wall_ratio']:.3f} with waits "
        f"[{arm['wall_lo']:.3f}, {arm['wall_hi']:.3f}]"
    )


def rows(table: Mapping[str, Any], context: Context, experts: int) -> list[pa.Table]:
    """Rows of experiment `prefetch_live`."""
    made: list[pa.Table] = []
    place = {"machine": table["link"], "slots": table["slots"], "capacity_share": table["slots"] / experts}
    whole = context.at(experiment="prefetch_live", scope="layer", reset="sequence", miss="fetch", **place)
    for arm in table["arms"]:
        at = whole.at(
            method="live", simulated=False, policy=arm["policy"], predictor=arm["predictor"], case=arm["planner"],
            kind="demand" if arm["planner"] == NONE else "proactive",
        )  # fmt: skip
        clock = at.at(method="replay", simulated=True)
        made += [
            at.rows("tpot_ratio", "share", arm["ratio"], lo=arm["lo"], hi=arm["hi"], p_value=arm.get("p"),
                    verdict=arm.get("verdict"), baseline=BASELINE.policy, count=table["passes"]),
            clock.rows("tpot_ratio", "share", arm["simulated_ratio"], baseline=BASELINE.policy),
            at.rows("tpot", "s/token", arm["tpot_s"], count=table["passes"]),
            at.rows("tpot_median", "s/token", arm["tpot_median_s"], count=table["passes"]),
            clock.rows("tpot", "s/token", arm["simulated_s"]),
            at.rows("wall_ratio", "share", arm["wall_ratio"], lo=arm["wall_lo"], hi=arm["wall_hi"], baseline=BASELINE.policy,
                    count=table["passes"]),
            at.rows("stall", "s/token", arm["stall_s"]),
            at.rows("predicting", "us/event", arm["predict_us"]),
            at.rows("planning", "us/event", arm["plan_us"]),
            *(at.rows(name, "bytes/pass", arm[name]) for name in MOVED),
        ]  # fmt: skip
        if arm["planner"] != NONE:
            made += [at.rows(f"loads_{name}", "loads/pass", arm[name]) for name in COUNTED]
    at = whole.at(baseline=BASELINE.policy)
    made += [
        at.at(method="replay", simulated=True).rows(
            "tpot_ratio", "share", table["bound_of_lru_simulated"], case="bound"
        ),
        at.at(method="live").rows("tpot_ratio", "share", table["resident_of_lru"], case="resident"),
        at.at(method="live").rows("wall_ratio", "share", table["resident_of_lru_wall"], case="resident"),
    ]
    return made


def lines(table: Mapping[str, Any]) -> list[list[str]]:
    """Rows of the report's table, under `HEAD`."""
    made = []
    for arm in table["arms"]:
        ahead = [f"{arm[name]:.2f}" for name in ("useful", "late", "wasted", "cancelled", "harmful")]
        made.append(
            [
                arm["name"], f"{1e3 * arm['tpot_median_s']:.2f}", f"{1e3 * arm['tpot_s']:.2f}", f"{arm['ratio']:.3f}",
                f"{arm['lo']:.3f} to {arm['hi']:.3f}", f"{arm['wall_ratio']:.3f}",
                f"{arm['wall_lo']:.3f} to {arm['wall_hi']:.3f}", arm.get("verdict", ""), f"{arm['simulated_ratio']:.3f}",
                f"{1e3 * arm['stall_s']:.2f}", f"{arm['bytes_loaded'] / 1e6:.2f}", f"{arm['bytes_wasted'] / 1e6:.2f}",
                *(ahead if arm["planner"] != NONE else ["–"] * len(ahead)), f"{arm['predict_us']:.0f}", f"{arm['plan_us']:.0f}",
            ]
        )  # fmt: skip
    return made
