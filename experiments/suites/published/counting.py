"""Replays of the figures: sums of every independent stretch, the clusters of an interval. Legend: P stretches, N tokens."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from rgpu.policies.belady import Belady
from rgpu.policies.belady_bypass import BeladyBypass
from rgpu.policies.fifo import Fifo
from rgpu.policies.least_stale import LeastStale
from rgpu.policies.lfru import Lfru
from rgpu.policies.lfu_perfect import LfuPerfect
from rgpu.policies.loop import COLD, DEMAND_LOADS
from rgpu.policies.lru import Lru
from rgpu.policies.policy import Policy
from rgpu.policies.static_hot import StaticHot
from rgpu.replay.engine import SharedEvents, replay, segments
from rgpu.replay.events import build_events, pass_groups
from rgpu.replay.pool import PoolConfig
from rgpu.replay.warm import sequence_orders
from rgpu.results.derive import kind_of
from rgpu.results.rows import Context
from rgpu.traces.trace import Trace, TraceHeader, batched

# As Zhang 2026 runs them: counts are kept over evictions, and stale experts go by last use.
POLICIES: dict[str, Policy] = {
    "lru": Lru(),
    "fifo": Fifo(),
    "lfu_perfect": LfuPerfect(),
    "lfru": Lfru(forget=False),
    "least_stale": LeastStale(order="used"),
    "static_hot": StaticHot(),
    "belady": Belady(),
    "belady_bypass": BeladyBypass(),
}
QUICK_ORDERS = 3  # too few for an interval: the quick form says so
STREAM_TOKENS = 12_000  # of one warm stream: a run takes twenty of them for every policy and capacity
FILLED = 0.8237  # Zhang 2026, regime-ablation.csv: mean union over slots at 40 % and batch 8
CAUSAL = ("lru", "lfu_perfect", "lfru", "least_stale")


@dataclass(frozen=True, slots=True)
class Counts:
    """int64 [P] each. `loads` are demand loads: what a static policy is filled with at the start stays out."""

    hits: np.ndarray
    accesses: np.ndarray
    loads: np.ndarray
    cold: np.ndarray
    tokens: np.ndarray
    assignments: np.ndarray


def reset_of(trace: Trace) -> str:
    """Cold at every sequence, or at every batch where passes mix sequences."""
    return "batch" if batched(trace) else "sequence"


def sizes_of(trace: Trace, reset: str) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, assignments) of each stretch."""
    order, starts, _ = pass_groups(trace)
    rows = starts[segments(trace, reset)[:-1]]
    known_N = (trace.expert_ids != trace.missing).sum((1, 2))[order]
    return np.diff(np.append(rows, len(order))), np.add.reduceat(known_N, rows)


def counts(
    trace: Trace,
    policy: Policy,
    pool: PoolConfig,
    *,
    reset: str | None = None,
    calibration: Trace | None = None,
    shared: SharedEvents | None = None,
) -> Counts:
    """One replay, summed by stretch; `reset` defaults to cold at every sequence or batch."""
    reset = reset or reset_of(trace)
    result = replay(
        trace, policy, pool, reset=reset, calibration=calibration, shared=shared, by_sequence=reset == "sequence"
    )
    return Counts(
        result.hits_piece,
        result.accesses_piece,
        result.pieces[:, DEMAND_LOADS],
        result.pieces[:, COLD],
        *sizes_of(trace, reset),
    )


def over_orders(found: list[Counts]) -> Counts:
    """Warm runs over several orders as one: arrays [O, P]."""
    names = ("hits", "accesses", "loads", "cold", "tokens", "assignments")
    return Counts(*(np.stack([getattr(c, name) for c in found]) for name in names))


def at_pool(
    context: Context, policy: str, pool: PoolConfig, trace: Trace, reset: str | None = None, **columns: Any
) -> Context:
    """The columns that place a replay."""
    traits = POLICIES[policy].traits
    layers, experts = trace.layers, trace.header.num_experts
    total = experts if pool.scope == "layer" else layers * experts
    slots = pool.slots if isinstance(pool.slots, int) else sum(pool.slots or ()) // layers
    return context.at(
        policy=policy,
        kind=kind_of(traits),
        scope=pool.scope,
        slots=slots,
        capacity_share=slots / total,
        reset=reset or reset_of(trace),
        staging=pool.staging if traits.staging and not traits.bound else 0,
        **columns,
    )


def side_by_side(trace: Trace, batch: int) -> Trace:
    """A batch trace made of a batch-1 one: `batch` sequences at a time share passes, their n-th passes evaluated together.

    The recorded continuations are kept, so this is the routing of requests that happened to run side by side. Sequences are
    grouped by length, so that few passes hold fewer than `batch`. A batch shrinks as its sequences end.
    """
    if batch == 1:
        return trace
    lengths = np.diff(trace.seq_offsets)
    made = trace.select(np.argsort(-lengths, kind="stable"))
    passes = np.empty(made.tokens, np.int32)
    first = 0
    for start in range(0, made.sequences, batch):
        deepest = 0
        for s in range(start, min(start + batch, made.sequences)):
            span = slice(int(made.seq_offsets[s]), int(made.seq_offsets[s + 1]))
            own = made.passes[span] - made.passes[span.start]
            passes[span] = first + own
            deepest = max(deepest, int(own.max(initial=0)) + 1)
        first += deepest
    made.passes = passes
    made.header = TraceHeader(**{**made.header.to_json(), "checksum": ""})
    return made


def stream(trace: Trace, batch: int, order_S: np.ndarray) -> Trace:
    """One stream of requests under continuous batching: `batch` lanes, each taking the next sequence of the order when its
    last one ends, first come first served; what the lanes evaluate at the same time shares a pass."""
    made = trace.select(order_S)
    passes = np.empty(made.tokens, np.int32)
    free = np.zeros(batch, np.int64)  # the pass at which each lane is free
    for s in range(made.sequences):
        span = slice(int(made.seq_offsets[s]), int(made.seq_offsets[s + 1]))
        own = made.passes[span] - made.passes[span.start]
        lane = int(free.argmin())
        passes[span] = free[lane] + own
        free[lane] += int(own.max()) + 1
    made.passes = passes
    return made


def streams(trace: Trace, batch: int, orders: int, seed: int) -> list[Trace]:
    """Streams of about `STREAM_TOKENS` tokens: each takes the first sequences of a random order that reach them, so that an
    interval over streams is one over sequences and their order. Equal arguments give equal streams."""
    lengths = np.diff(trace.seq_offsets)
    found = []
    for order_S in sequence_orders(trace.sequences, orders, seed):
        enough = int(np.searchsorted(np.cumsum(lengths[order_S]), STREAM_TOKENS)) + 1
        found.append(stream(trace, batch, order_S[:enough]))
    return found


def matched_batch(trace: Trace, slots: int, seed: int) -> tuple[int, float]:
    """(requests a pass, mean union over slots): the batch whose passes fill a layer's pool as far as Zhang's do.

    Miss fractions and gaps are comparable between models at equal unions over slots, not at equal batches (section 6.4)."""
    found = {}
    for batch in (2, 3, 4, 6, 8, 12, 16):
        events = build_events(streams(trace, batch, 1, seed)[0])
        found[batch] = len(events.keys) / (len(events.offs) - 1) / slots
    best = min(found, key=lambda batch: abs(found[batch] - FILLED))
    return best, found[best]


def slots_at(trace: Trace, share: float) -> int:
    """Slots of a layer's pool that hold about this share of its experts, at least two."""
    return max(2, round(share * trace.header.num_experts))
