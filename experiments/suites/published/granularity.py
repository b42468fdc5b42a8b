"""Replay one access at a time against event-atomic replay, by policy (Zhang 2026, table 2).

Legend: V events, A accesses, P stretches.
"""

import numpy as np
import pandas as pd
import pyarrow as pa

from rgpu.experiments.suites.published.bench import Bench
from rgpu.experiments.suites.published.counting import (
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
from rgpu.policies.loop import COUNTS, DEMAND, HITS
from rgpu.policies.policy import Policy, runner
from rgpu.replay.engine import SharedEvents, fill_pools, segments
from rgpu.replay.events import build_events, next_uses
from rgpu.replay.pool import PoolConfig, initial_state, lay_out
from rgpu.replay.warm import ORDERS
from rgpu.traces.trace import Trace

ABOUT = About(
    "granularity",
    "field_granularity",
    "Bias of replaying one access at a time against event-atomic replay",
    "Zhang 2026, arXiv 2608.07911, table 2",
    "per-layer pools at 40 % of the experts, requests under continuous batching, as many a pass as fill the pool as far as "
    "theirs (mean union over slots 0.82); the union of a pass flattened by expert number; a static profile beside",
    "other model and text; random orders of requests that all wait at the start; the static profile comes from other text "
    "(theirs from the scored text) and its first fill is left out; our event-atomic replay admits an oversized event in waves",
)
ORDERINGS = ("ascending", "rank", "reverse", "random")
RECENCY, STEADY = ("lru", "lfru", "least_stale"), ("lfu_perfect", "belady_bypass", "static_hot")
SHOWN = (*RECENCY, *STEADY)
SHARE = 0.4
ATOMIC = "event-atomic"


def one_at_a_time(
    trace: Trace,
    policy: Policy,
    pool: PoolConfig,
    order: str,
    *,
    reset: str = "none",
    calibration: Trace | None = None,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """(misses int64 [P], accesses [P]): every member of an event is an event of its own, in one of `ORDERINGS`.

    "ascending": by expert number; "rank": as the router ranks them, token by token; "reverse" of that; "random".
    """
    layout = lay_out(pool, policy, trace.shape)
    m, f, fill = initial_state(layout, policy, trace.shape, "", 0, calibration, seed)
    m0, f0 = m.copy(), f.copy()
    events = build_events(trace, scope=pool.scope)
    sizes = np.diff(events.offs)
    at_A = in_order(events.keys, sizes, order, seed)
    keys_A, weights_A, pool_A = events.keys[at_A], events.weights[at_A], np.repeat(events.pool, sizes)
    bounds = events.offs[segments(trace, reset) * trace.layers]
    counted = np.zeros((len(bounds) - 1, COUNTS), np.int64)
    run, none = runner(policy), np.zeros(0, np.int32)
    features, no_log = np.zeros((1, 0), np.float32), np.zeros((0, 4), np.int64)
    for p, (a, b) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
        m[:], f[:] = m0, f0
        fill_pools(run, m, f, fill, counted[p])
        filled = counted[p].copy()
        n, part = int(b - a), slice(int(a), int(b))
        offs = np.arange(n + 1, dtype=np.int64)
        future = np.zeros(0, np.int64)
        if policy.traits.needs_future:
            future = next_uses(pool_A[part], offs, keys_A[part], layout.pools, layout.keys)
        run(m, f, pool_A[part], np.full(n, DEMAND, np.int8), offs, keys_A[part], weights_A[part], future, none, features,
            *np.empty((2, n), np.int32), counted[p], no_log)  # fmt: skip
        counted[p] -= filled
    accesses = np.diff(bounds)
    return accesses - counted[:, HITS], accesses


def in_order(keys_A: np.ndarray, sizes_V: np.ndarray, order: str, seed: int) -> np.ndarray:
    """int64 [A]: the order in which the members of every event are taken, event by event."""
    event_A = np.repeat(np.arange(len(sizes_V)), sizes_V)
    within = {
        "ascending": lambda: keys_A,
        "rank": lambda: np.arange(len(keys_A)),
        "reverse": lambda: -np.arange(len(keys_A)),
        "random": lambda: np.random.default_rng(seed).random(len(keys_A)),
    }[order]()
    return np.lexsort((within, event_A))


def rows(bench: Bench, subject: Subject) -> list[pa.Table]:
    pool = PoolConfig(slots=slots_at(subject.scored, SHARE))
    batch, filled = matched_batch(subject.scored, slots_at(subject.scored, SHARE), bench.seed)
    orders = QUICK_ORDERS if bench.quick else ORDERS
    cases = [(name, case) for name in SHOWN for case in (ATOMIC, *(ORDERINGS[::3] if bench.quick else ORDERINGS))]
    missed: dict[tuple[str, str], list[np.ndarray]] = {case: [] for case in cases}
    asked: list[np.ndarray] = []
    for number, trace in enumerate(streams(subject.scored, batch, orders, bench.seed)):
        shared = SharedEvents(trace)

        def one(
            case: tuple[str, str], trace: Trace = trace, shared: SharedEvents = shared, number: int = number
        ) -> np.ndarray:
            policy, known = POLICIES[case[0]], subject.calibration
            if case[1] == ATOMIC:
                return counts(trace, policy, pool, reset="none", calibration=known, shared=shared).loads
            return one_at_a_time(trace, policy, pool, case[1], calibration=known, seed=number)[0]

        for cell, result in zip(cases, bench.map(one, cases), strict=True):
            missed[cell].append(result)
        asked.append(sizes_of(trace, "none")[1])
    context = bench.context(subject, ABOUT.figure, batch=batch)
    tables = [context.rows("union_over_slots", "ratio", filled)]
    for (name, case), results in missed.items():
        at = at_pool(context, name, pool, subject.scored, "none", case=case)
        own, atomic = np.stack(results), np.stack(missed[name, ATOMIC])
        tables.append(at.ratio("effective_miss", own, np.stack(asked), keep=False))
        if case != ATOMIC:
            tables.append(at.ratio("inflation", own - atomic, atomic, keep=False))
    return tables


def judge(found: pd.DataFrame) -> list[Criterion]:
    def value(metric: str, case: str, policy: str | None = None) -> float:
        own = found[(found["metric"] == metric) & (found["case"] == case)]
        own = own if policy is None else own[own["policy"] == policy]
        return float(own["value"].iloc[0])

    bias = {name: value("inflation", "ascending", name) for name in SHOWN}
    steady = max(bias[name] for name in STEADY)
    atomic = {name: value("effective_miss", ATOMIC, name) for name in SHOWN}
    flat = {name: value("effective_miss", "ascending", name) for name in SHOWN}
    online = [name for name in SHOWN if name != "belady_bypass"]
    first = [min(online, key=lambda name: table[name]) for table in (atomic, flat)]
    random = {name: value("inflation", "random", name) for name in RECENCY}
    said = {name: published(ABOUT.id, "inflation", policy=name) for name in SHOWN}
    return [
        shape(
            "every recency policy is inflated more than every frequency, static and offline one",
            min(bias[n] for n in RECENCY) > steady,
            bias,
            said,
        ),
        shape("a static profile does not move", bias["static_hot"] == 0, bias["static_hot"], 0.0),
        shape("a random order does not take the bias away", min(random.values()) > 0, random, "remains"),
        *(near(f"inflation of {name.upper()}:", bias[name], said[name], 0.05) for name in ("lru", "lfru")),
        near("largest inflation of a frequency, static or offline policy:", steady, max(said[n] for n in STEADY), 0.02),
        Criterion("the best online policy changes", first[0] != first[1], first, ["lfru", "static_hot"], "value"),
    ]
