"""Event-atomic replay of a trace through the decision loop, in bulk. Legend: A accesses, S sequences, L MoE layers."""

import threading
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numba import njit

from rgpu.errors import TraceError
from rgpu.policies.loop import (
    COLD,
    COUNTS,
    DEMAND_LOADS,
    FILL,
    FILL_LOADS,
    HIT,
    HITS,
    LOADED_BYTES,
    LOGGED,
    ORIGIN,
    PREFETCH,
    PREFETCH_HIT,
    PREFETCH_HITS,
    PROACTIVE_LOADS,
    WASTED,
)
from rgpu.policies.policy import Policy, runner
from rgpu.replay.events import Events, build_events, next_uses, pass_groups
from rgpu.replay.features import available, trace_features
from rgpu.replay.log import DecisionLog, fill_rows, proactive_rows
from rgpu.replay.pool import Layout, PoolConfig, initial_state, lay_out
from rgpu.replay.resets import segments as segments

FEATURE_PASSES = 4096  # passes whose features are held in memory at a time
BLOCK = (
    1 << 15
)  # events decided by one call where nothing else asks for fewer: their codes stay in the processor's cache
LogEntry = tuple[int, int, int, tuple[int, ...], tuple[int, ...], tuple[int, ...]]


@dataclass(slots=True)
class ReplayResult:
    """Counts of one replay; terms in docs/concepts.md. `hits` includes prefetch hits; `hits_event` int32 an
    event, aligned with `events`; `pieces` int64 [P, COUNTS]: what each stretch of passes counted (a sequence each with
    `by_sequence`); `log` (when asked for) holds (layer, pass, kind, experts, codes, victims) a decision."""

    policy: str
    scope: str
    slots: int
    accesses: int
    assignments: int
    hits: int
    prefetch_hits: int
    cold_misses: int
    demand_loads: int
    proactive_loads: int
    fill_loads: int
    wasted: int
    pending: int
    bytes_loaded: int | None
    oversized_events: int
    hit_rate_decode: float | None
    seconds: float
    events: Events = field(repr=False)
    hits_event: np.ndarray = field(repr=False)
    pieces: np.ndarray = field(repr=False)
    log: list[LogEntry] = field(default_factory=list, repr=False)
    decisions: DecisionLog | None = field(default=None, repr=False)

    @property
    def misses(self) -> int:
        return self.accesses - self.hits

    @property
    def loads(self) -> int:
        """Demand, proactive and initial fill."""
        return self.demand_loads + self.proactive_loads + self.fill_loads

    @property
    def loads_piece(self) -> np.ndarray:
        """int64 [P]: loads of each piece."""
        return self.pieces[:, [DEMAND_LOADS, PROACTIVE_LOADS, FILL_LOADS]].sum(1)  # type: ignore[no-any-return]

    @property
    def bytes_piece(self) -> np.ndarray:
        """int64 [P]: bytes loaded in each piece (0 where sizes are unknown)."""
        return self.pieces[:, LOADED_BYTES]  # type: ignore[no-any-return]

    @property
    def hits_piece(self) -> np.ndarray:
        """int64 [P]: hits of each piece."""
        return self.pieces[:, HITS]  # type: ignore[no-any-return]

    @property
    def accesses_piece(self) -> np.ndarray:
        """int64 [P]: every access is a hit or a demand load."""
        return self.pieces[:, [HITS, DEMAND_LOADS]].sum(1)  # type: ignore[no-any-return]

    @property
    def hit_rate(self) -> float:
        return self.hits / self.accesses if self.accesses else 0.0

    def to_json(self) -> dict[str, Any]:
        named = ("policy", "slots", "scope", "accesses", "assignments", "hits", "prefetch_hits", "misses", "cold_misses",
                 "loads", "demand_loads", "proactive_loads", "fill_loads", "wasted", "pending", "hit_rate",
                 "hit_rate_decode", "bytes_loaded", "oversized_events")  # fmt: skip
        return {n: getattr(self, n) for n in named} | {"accesses_per_s": self.accesses / max(self.seconds, 1e-9)}


@njit(cache=True, nogil=True)
def tally(codes, offs, pool, decode, capacity, out, totals):  # type: ignore[no-untyped-def]
    """Fill out int32 [events] with each event's hits (prefetch hits included); codes start at the first event's. Adds to
    totals int64 [3]: events larger than capacity[pool]; hits and accesses of the events that are `decode`."""
    for e in range(out.shape[0]):
        hits, first = 0, offs[e] - offs[0]
        size = offs[e + 1] - offs[e]
        for a in range(first, first + size):
            hits += codes[a] == HIT or codes[a] == PREFETCH_HIT
        out[e] = hits
        totals[0] += size > capacity[pool[e]]
        totals[1] += hits * decode[e]
        totals[2] += size * decode[e]


class SharedEvents:
    """Events of one trace, built once for each (scope, touch order, ordering) and shared by the threads of a grid, as is
    `memo`: what policies learn from calibration traces."""

    def __init__(self, trace: Any) -> None:
        self._trace, self._lock = trace, threading.Lock()
        self.memo: dict[Any, Any] = {}
        self._built: dict[tuple[str, str, bool], Events] = {}

    def get(self, scope: str, touch_order: str, by_layer: bool) -> Events:
        key = (scope, touch_order, by_layer)
        with self._lock:
            if key not in self._built:
                self._built[key] = build_events(self._trace, scope=scope, touch_order=touch_order, by_layer=by_layer)
            return self._built[key]


def fill_pools(
    run: Any, m: np.ndarray, f: np.ndarray, fill: list[np.ndarray], counts: np.ndarray
) -> list[tuple[int, ...]]:
    """Run the initial fill as FILL events; -> for each pool the codes of its keys."""
    out = []
    for p, keys in enumerate(fill):
        codes, victims = np.empty(len(keys), np.int32), np.empty(len(keys), np.int32)
        one = np.zeros(1, np.int32)
        run(m, f, one + p, np.full(1, FILL, np.int8), np.array([0, len(keys)], np.int64), keys,
            np.zeros(len(keys), np.float32), np.zeros(0, np.int64), np.zeros(0, np.int32), np.zeros((1, 0), np.float32),
            codes, victims, counts, np.zeros((0, 4), np.int64))  # fmt: skip
        out.append(tuple(codes.tolist()))
    return out


def replay(
    trace: Any, policy: Policy, pool: PoolConfig, *, reset: str = "none", touch_order: str = "rank",
    calibration: Any = None, seed: int = 0, log: bool = False, by_sequence: bool = False, chunk: int = FEATURE_PASSES,
    shared: "SharedEvents | None" = None, decisions: bool = False,
) -> ReplayResult:  # fmt: skip
    """Replay `trace` and count. `calibration` is a trace disjoint from it; `chunk` passes at a time where features are
    needed (the result does not depend on it); `by_sequence` counts each sequence apart; `shared` saves building the
    events again in a grid over one trace; `decisions` keeps every decision as arrays.
    Raises InputError or TraceError on what cannot be replayed."""
    if policy.traits.weights:
        available(policy.traits.feature or "router", trace, policy.name)
    shape = trace.shape
    layout = lay_out(pool, policy, shape)
    feature = available(policy.traits.feature, trace, policy.name) if policy.traits.feature else ""
    if feature and calibration is not None and feature != available(policy.traits.feature, calibration, policy.name):
        raise TraceError(f"policy {policy.name}: got a calibration trace with other arrays than the replayed one")
    width = (shape.hidden if feature == "hidden" else shape.experts) if feature else 0
    shared = shared or SharedEvents(trace)
    m, f, fill = initial_state(layout, policy, shape, feature, width, calibration, seed, shared.memo)
    bounds = segments(trace, reset)
    resets = set(bounds[:-1].tolist())
    if by_sequence:
        bounds = np.union1d(bounds, segments(trace, "sequence"))
    whole = len(bounds) == 2 and not log and not decisions and not feature and pool.scope == "layer"
    events = shared.get(pool.scope, touch_order, whole)
    n = len(events.keys)
    if n == 0:
        raise TraceError("replay: got a trace without any recorded expert; expected at least one routed token")
    every = log or decisions  # else what was decided is counted and forgotten
    largest = n if every else int(np.diff(events.offs).max()) * max(BLOCK, chunk * trace.layers)
    codes, victims = np.empty(min(n, largest), np.int32), np.empty(min(n, largest), np.int32)
    hits_event, totals = np.empty(len(events.offs) - 1, np.int32), np.zeros(3, np.int64)
    capacity = np.asarray(layout.main) + layout.staging
    counts = np.zeros(COUNTS, np.int64)
    run = runner(policy)
    order, starts, _ = pass_groups(trace)
    kept = (log or decisions) and not policy.traits.demand
    room = min(chunk, len(starts) - 1) * trace.layers * max(1, max(layout.main))
    plog = np.zeros((room if kept else 0, 4), np.int64)
    entries: list[LogEntry] = []
    proactive, fills = [np.zeros((0, 5), np.int64)], [np.zeros((0, 5), np.int64)]
    m0, f0 = m.copy(), f.copy()
    _warm(run, m0.copy(), f0.copy())
    seconds, pending, layers = 0.0, 0, trace.layers
    future = _future(events, resets, len(starts) - 1, layout, layers) if policy.traits.needs_future else None
    pieces = np.zeros((len(bounds) - 1, COUNTS), np.int64)
    for piece, (start, stop) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
        pieces[piece] -= counts
        if int(start) in resets:
            pending += int(m[:, ORIGIN].sum())
            m[:], f[:] = m0, f0
            filled = fill_pools(run, m, f, fill, counts)
            if decisions:
                fills += [
                    fill_rows(int(start) * layers, p, k, c) for p, (k, c) in enumerate(zip(fill, filled, strict=True))
                ]
        step = chunk if feature or kept else int(stop - start) if every else max(1, BLOCK // layers)
        nexts = np.zeros(0, np.int64)
        for p in range(int(start), int(stop), step):
            q = min(p + step, int(stop))
            span = slice(p * layers, q * layers)
            features = trace_features(feature, trace, order, starts[p : q + 1])
            offs = events.offs[span.start : span.stop + 1]
            base, top = int(offs[0]), int(offs[-1])
            part = slice(base, top)
            mine = part if every else slice(0, top - base)
            if future is not None:
                nexts = future[part]
            counts[LOGGED] = 0
            began = time.perf_counter()
            run(m, f, events.pool[span], events.kind[span], offs - base, events.keys[part], events.weights[part], nexts,
                events.touch[part], features, codes[mine], victims[mine], counts, plog)  # fmt: skip
            seconds += time.perf_counter() - began
            tally(codes[mine], offs, events.pool[span], events.decode[span], capacity, hits_event[span], totals)
            if decisions:
                proactive.append(proactive_rows(span.start, events.pool, plog[: counts[LOGGED]]))
            if log:
                entries += _entries(events, span, codes, victims, plog[: counts[LOGGED]], layout)
        pieces[piece] += counts
    pending += int(m[:, ORIGIN].sum())
    decode = totals[1] / totals[2] if trace.phase is not None and totals[2] else None
    return ReplayResult(
        policy.name, pool.scope, layout.slots, n, events.assignments, int(counts[HITS]), int(counts[PREFETCH_HITS]),
        int(counts[COLD]), int(counts[DEMAND_LOADS]), int(counts[PROACTIVE_LOADS]), int(counts[FILL_LOADS]),
        int(counts[WASTED]), pending, int(counts[LOADED_BYTES]) if layout.size_of.all() else None, int(totals[0]),
        decode, seconds, events, hits_event, pieces, entries,
        DecisionLog(policy.name, events, layout, codes, victims, np.concatenate(proactive), np.concatenate(fills),
                    np.array([*sorted(resets), len(starts) - 1], np.int64) * layers) if decisions else None,
    )  # fmt: skip


def _future(events: Events, resets: set[int], passes: int, layout: Layout, layers: int) -> np.ndarray:
    """int64 [A]: event number of every key's next use before its pool is next emptied, however counting is cut."""
    out = np.empty(len(events.keys), np.int64)
    bounds = [*sorted(resets), passes]
    for start, stop in zip(bounds[:-1], bounds[1:], strict=True):
        span = slice(start * layers, stop * layers)
        offs = events.offs[span.start : span.stop + 1]
        part = slice(int(offs[0]), int(offs[-1]))
        out[part] = next_uses(events.pool[span], offs - offs[0], events.keys[part], layout.pools, layout.keys)
    return out


def _warm(run: Any, m: np.ndarray, f: np.ndarray) -> None:
    """Compile outside the timing: a run of no events."""
    i32, i64 = np.zeros(0, np.int32), np.zeros(0, np.int64)
    run(m, f, i32, np.zeros(0, np.int8), np.zeros(1, np.int64), i32, np.zeros(0, np.float32), i64, i32,
        np.zeros((1, 0), np.float32), i32, i32, np.zeros(COUNTS, np.int64), np.zeros((0, 4), np.int64))  # fmt: skip


def _entries(
    events: Events, span: slice, codes: np.ndarray, victims: np.ndarray, plog: np.ndarray, layout: Layout
) -> list[LogEntry]:
    """Log entries of a run of events, each followed by the proactive loads its policy asked for."""
    out: list[LogEntry] = []
    row = 0
    for i, e in enumerate(range(span.start, span.stop)):
        at = slice(events.offs[e], events.offs[e + 1])
        layer, number = int(events.layer[e]), int(events.pass_id[e])
        keys = tuple((events.keys[at]).tolist())
        out.append((layer, number, int(events.kind[e]), keys, tuple(codes[at].tolist()), tuple(victims[at].tolist())))
        first = row
        while row < len(plog) and plog[row, 0] == i:
            row += 1
        if row > first:
            _, k, s, v = (tuple(c.tolist()) for c in plog[first:row].T)
            out.append((layer, number, PREFETCH, k, s, v))
    return out
