"""A live contest judged: time per token over LRU's in the same rounds, paired over texts, beside what the simulator says."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from rgpu.experiments.study.live_arms import AGAIN
from rgpu.experiments.study.live_contest import Standing, Table, baseline_of, named
from rgpu.experiments.study.prefetch_time import BASELINE, NONE, ORACLE
from rgpu.experiments.study.time_saved import MARGIN, worded
from rgpu.results.rows import Context
from rgpu.results.statistics import PAIR_SAMPLES, holm, interval_of, paired_difference, ratio

COUNTED = ("useful", "late", "wasted", "cancelled", "pending", "harmful")  # loads ahead, a pass
MOVED = ("bytes_loaded", "bytes_wasted")
HEAD = (
    "predictor, planner", "ms a token, median", "mean", "of LRU", "95 % interval", "verdict", "of LRU, simulated", "stall, ms",
    "MB loaded", "MB wasted", "useful", "late", "wasted", "cancelled", "harmful", "predicting, us an event", "planning, us",
)  # fmt: skip


def judge(table: Table) -> dict[str, Any]:
    """Every arm of a table against LRU without prefetch: ratios of summed seconds with 95 % cluster bootstraps over texts,
    p-values of "within half a percent of LRU's time", Holm-corrected over the table's arms."""
    base = baseline_of(table)
    margin = MARGIN * _tpot(base)
    gains = [
        paired_difference(base.seconds_S, base.steps_S, own.seconds_S, own.steps_S, margin=margin, samples=PAIR_SAMPLES)
        for own in table.standings
        if own is not base
    ]
    adjusted = iter(zip(gains, holm([p for _, p in gains]), strict=True))
    arms = []
    for own in table.standings:
        found = interval_of(ratio, np.stack([own.seconds_S, base.seconds_S]), samples=PAIR_SAMPLES)[0]
        said = _numbers(own, base) | {"ratio": found.estimate, "lo": found.lo, "hi": found.hi}
        if own is not base:
            (gain, _), p = next(adjusted)
            said |= {"p": float(p), "verdict": worded(gain, float(p), margin, len(own.seconds_S))}
        arms.append(said)
    return {
        "link": table.link.label, "emulated": table.link.gb_per_s is not None, "share": table.share, "slots": table.slots,
        "texts": len(base.seconds_S), "passes": int(base.steps_S.sum()), "arms": arms,
        "bound_of_lru_simulated": table.bound_s / float(base.simulated_S.sum()),
        "resident_of_lru": table.resident_s / float(base.seconds_S.sum()), "beats_lru": beating(arms),
    }  # fmt: skip


def _tpot(own: Standing) -> float:
    return float(own.seconds_S.sum() / own.steps_S.sum())


def _numbers(own: Standing, base: Standing) -> dict[str, Any]:
    return {
        "name": named(own.arm), "predictor": own.arm.predictor, "planner": own.arm.planner, "policy": own.arm.policy,
        "tpot_s": _tpot(own), "tpot_median_s": own.median_s, "spread": own.spread,
        "wall_ratio": float(own.wall_S.sum() / base.wall_S.sum()),
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
    return (
        f"{table['link']}, {table['slots']} slots a layer: of {len(real)} live arms {words['better']} are faster than LRU "
        f"without prefetch, {words['worse']} slower, {words['cannot tell']} cannot be told from it; least: "
        f"{fastest['name']} with {fastest['ratio']:.3f} of LRU's time [{fastest['lo']:.3f}, {fastest['hi']:.3f}]."
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
            at.rows("wall_ratio", "share", arm["wall_ratio"], baseline=BASELINE.policy),
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
                f"{arm['lo']:.3f} to {arm['hi']:.3f}", arm.get("verdict", ""), f"{arm['simulated_ratio']:.3f}",
                f"{1e3 * arm['stall_s']:.2f}", f"{arm['bytes_loaded'] / 1e6:.2f}", f"{arm['bytes_wasted'] / 1e6:.2f}",
                *(ahead if arm["planner"] != NONE else ["–"] * len(ahead)), f"{arm['predict_us']:.0f}", f"{arm['plan_us']:.0f}",
            ]
        )  # fmt: skip
    return made
