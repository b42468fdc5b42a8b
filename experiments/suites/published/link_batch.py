"""Sensitivity to the link and to the batch: time per token over bandwidth, union of experts over requests a pass.

Sources: the rooflines of MoE-Lightning (arXiv 2411.11217), unions of Zhang 2026 (table 9).
"""

from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa

from rgpu.experiments.suites.published.bench import Bench
from rgpu.experiments.suites.published.clock import cost_for, machine, speed_rows, timed
from rgpu.experiments.suites.published.counting import POLICIES, slots_at, stream
from rgpu.experiments.suites.published.record import About, Criterion, NotTestableError, near, note, shape
from rgpu.experiments.suites.published.subjects import Subject
from rgpu.experiments.suites.published.values import published
from rgpu.replay.events import build_events
from rgpu.replay.pool import PoolConfig
from rgpu.replay.warm import sequence_orders
from rgpu.traces.trace import DECODE

ABOUT = About(
    "link_batch",
    "field_link_batch",
    "Time per token over link bandwidth, and the union of experts over the batch",
    "MoE-Lightning, arXiv 2411.11217 (hierarchical roofline); Zhang 2026, arXiv 2608.07911, table 9 (unions)",
    "requests a pass from 1 to 16 under continuous batching; the union of their experts against what independent uniform "
    "routing would give; time per token over bandwidth, everything else fixed",
    "batches are made by running recorded batch-1 sequences side by side in common passes, one random order; times are "
    "simulated for a pool of a quarter of the experts under LRU; no value of MoE-Lightning's figure was at hand",
)
BATCHES = (1, 2, 4, 8, 16)
GB_PER_S = (0.125, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
QUICK_GB_PER_S = (0.125, 0.25, 2, 16, 256, 512)
SHARE = 0.25
BASE = "rtx4090"


def rows(bench: Bench, subject: Subject) -> list[pa.Table]:
    tables: list[pa.Table] = []
    order_S = sequence_orders(subject.scored.sequences, 1, bench.seed)[0]
    experts, top_k = subject.scored.header.num_experts, subject.scored.header.top_k
    slots = slots_at(subject.scored, SHARE)
    base = machine(BASE)

    def one(batch: int) -> list[pa.Table]:
        trace = stream(subject.scored, batch, order_S)
        events = build_events(trace)
        full = full_passes(trace.passes, trace.phase, batch)
        sizes = np.diff(events.offs)[np.isin(events.pass_id, full)]
        if not len(sizes):  # fewer sequences than that
            return []
        at = bench.context(subject, ABOUT.figure, batch=batch, policy="lru", scope="layer", slots=slots,
                           capacity_share=slots / experts, reset="none")  # fmt: skip
        union = float(sizes.mean())
        uniform = experts * (1 - (1 - top_k / experts) ** batch)
        own = [at.rows("union", "experts", union), at.rows("union_over_uniform", "ratio", union / uniform)]
        try:
            cost_for(trace)
        except NotTestableError:
            return own
        found = timed(trace, POLICIES["lru"], PoolConfig(slots=slots), reset="none")
        for rate in QUICK_GB_PER_S if bench.quick else GB_PER_S:
            link = replace(base, link_bytes_per_s=1e9 * rate, host_bytes_per_s=max(base.host_bytes_per_s, 1e9 * rate))
            own += speed_rows(at.at(x=rate), found.on(link), trace.sequences)
        moved = found.result.loads / trace.tokens
        return [*own, at.rows("loads_per_token", "loads/token", moved)]

    for own in bench.map(one, BATCHES):
        tables += own
    return tables


def full_passes(passes_N: np.ndarray, phase_N: np.ndarray | None, batch: int) -> np.ndarray:
    """Passes in which exactly `batch` tokens are decoded and no prompt is evaluated."""
    numbers, inverse, tokens = np.unique(passes_N, return_inverse=True, return_counts=True)
    decoded = np.ones(len(passes_N)) if phase_N is None else (phase_N == DECODE)
    return numbers[(tokens == batch) & (np.bincount(inverse, decoded) == batch)]


def judge(found: pd.DataFrame) -> list[Criterion]:
    unions = found[found["metric"] == "union_over_uniform"].set_index("batch")["value"].astype(float).sort_index()
    said = {batch: published(ABOUT.id, "union_over_uniform", batch=batch) for batch in unions.index}
    largest = max(unions.index)
    criteria = [
        shape(
            "requests overlap more than independent ones, and more so with more of them",
            len(unions) > 1 and (unions.diff().dropna() < 0).all(),
            dict(unions),
            said,
        )
    ]
    for batch in (2, largest):
        text = f"union over that of independent uniform routing, {batch} requests:"
        criteria.append(near(text, float(unions[batch]), said[batch], 0.05))
    tpot = found[found["metric"] == "tpot"]
    if len(tpot):
        alone = tpot[tpot["batch"] == 1].set_index("x")["value"].astype(float).sort_index()
        slope = np.diff(np.log(alone)) / np.diff(np.log(alone.index.to_numpy(float)))
        loads = found[found["metric"] == "loads_per_token"].set_index("batch")["value"].astype(float).sort_index()
        criteria += [
            shape("a slow link rules: time per token falls in proportion to bandwidth", slope[0] < -0.8, slope[0], -1),
            shape("a fast link no longer matters", slope[-1] > -0.2, slope[-1], 0),
            note("loads per token with more requests a pass", loads.iloc[-1] < loads.iloc[0], dict(loads)),
        ]
    return criteria
