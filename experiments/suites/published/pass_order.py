"""Passes in another order: the same events, the same unions, another gap to Belady (Zhang 2026, section 6.5)."""

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from rgpu.experiments.suites.published.bench import Bench
from rgpu.experiments.suites.published.counting import (
    CAUSAL,
    POLICIES,
    QUICK_ORDERS,
    at_pool,
    counts,
    matched_batch,
    sizes_of,
    slots_at,
    streams,
)
from rgpu.experiments.suites.published.record import About, Criterion, near, shape
from rgpu.experiments.suites.published.subjects import Subject
from rgpu.experiments.suites.published.values import published
from rgpu.replay.engine import SharedEvents
from rgpu.replay.pool import PoolConfig
from rgpu.replay.warm import ORDERS
from rgpu.traces.trace import Trace

ABOUT = About(
    "pass_order",
    "field_pass_order",
    "The gap to Belady with the same passes in another order",
    "Zhang 2026, arXiv 2608.07911, section 6.5, figure 3 and regime-ablation.csv",
    "per-layer pools at 40 %, requests under continuous batching at a mean union over slots of about 0.82, passes permuted and "
    "nothing else",
    "other model and text; random orders of requests that all wait at the start",
)
SHARE = 0.4
RECORDED, PERMUTED = "as recorded", "passes permuted"
SHOWN = (*CAUSAL, "belady_bypass")


def permuted(trace: Trace, seed: int) -> Trace:
    """The same passes in another order."""
    numbers, inverse = np.unique(trace.passes, return_inverse=True)
    place = np.random.default_rng(seed).permutation(len(numbers))
    parts = {name: array for name, array in trace.arrays().items() if name != "passes"}
    return Trace(header=trace.header, passes=numbers[place[inverse]].astype(np.int32), **parts)


def rows(bench: Bench, subject: Subject) -> list[pa.Table]:
    pool = PoolConfig(slots=slots_at(subject.scored, SHARE))
    batch, filled = matched_batch(subject.scored, slots_at(subject.scored, SHARE), bench.seed)
    cells = [(name, case) for case in (RECORDED, PERMUTED) for name in SHOWN]
    missed: dict[tuple[str, str], list[np.ndarray]] = {cell: [] for cell in cells}
    asked = []
    for number, trace in enumerate(streams(subject.scored, batch, QUICK_ORDERS if bench.quick else ORDERS, bench.seed)):
        played = {RECORDED: trace, PERMUTED: permuted(trace, number)}
        shared = {case: SharedEvents(own) for case, own in played.items()}

        def one(
            cell: tuple[str, str], played: dict[str, Trace] = played, shared: dict[str, SharedEvents] = shared
        ) -> np.ndarray:
            return counts(played[cell[1]], POLICIES[cell[0]], pool, reset="none", shared=shared[cell[1]]).loads

        for cell, result in zip(cells, bench.map(one, cells), strict=True):
            missed[cell].append(result)
        asked.append(sizes_of(trace, "none")[1])
    context = bench.context(subject, ABOUT.figure, batch=batch)
    tables = [context.rows("union_over_slots", "ratio", filled)]
    for case in (RECORDED, PERMUTED):
        own = {name: np.stack(missed[name, case]) for name in SHOWN}
        for name in SHOWN:
            at = at_pool(context, name, pool, subject.scored, "none", case=case)
            tables.append(at.ratio("effective_miss", own[name], np.stack(asked), keep=False))
        best = min(CAUSAL, key=lambda name: int(own[name].sum()))  # noqa: B023
        at = at_pool(context, best, pool, subject.scored, "none", case=case)
        tables.append(at.ratio("gap", own[best] - own["belady_bypass"], own[best], keep=False))
    return tables


def judge(found: pd.DataFrame) -> list[Criterion]:
    gaps: Any = found[found["metric"] == "gap"].set_index("case")
    gap = {case: float(gaps.loc[case, "value"]) for case in (RECORDED, PERMUTED)}
    best = [str(gaps.loc[case, "policy"]) for case in (RECORDED, PERMUTED)]
    said = {case: published("pass_order", "gap", case=case) for case in (RECORDED, PERMUTED)}
    return [
        shape("permuting passes lowers the gap", gaps.loc[PERMUTED, "hi"] < gaps.loc[RECORDED, "lo"], gap, said),
        near("gap, as recorded:", gap[RECORDED], said[RECORDED], 0.05),
        near("gap, passes permuted:", gap[PERMUTED], said[PERMUTED], 0.05),
        Criterion("the best causal policy changes", best[0] != best[1], best, ["lfru", "lfu"], "value"),
    ]
