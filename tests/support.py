"""Traces and reference simulators that tests share. The simulators share no code with rgpu's loop."""

import itertools
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import numpy as np

from rgpu.policies.belady import Belady
from rgpu.policies.belady_bypass import BeladyBypass
from rgpu.policies.fifo import Fifo
from rgpu.policies.lfu import Lfu
from rgpu.policies.lru import Lru
from rgpu.policies.on_demand import OnDemand
from rgpu.policies.random import Random
from rgpu.policies.ring import Ring
from rgpu.policies.rotary import Rotary
from rgpu.policies.router_lag import RouterLag
from rgpu.policies.static_hot import StaticHot
from rgpu.traces.trace import DECODE, Trace, TraceHeader

FORCED: tuple[Any, ...] = (Lru(), Fifo(), Lfu(), Random())  # demand policies that keep every miss
LIVE: tuple[Any, ...] = (
    *FORCED,
    OnDemand(),
    Ring(),
    Ring(step=3),
    StaticHot(),
    RouterLag(),
    Rotary(),
    Rotary(rotation="random"),
)
ALL: tuple[Any, ...] = (*LIVE, Belady(), BeladyBypass())


def trace_of(events: Sequence[Sequence[int]], experts: int, layers: int = 1, sizes: Sequence[int] = ()) -> Trace:
    """A trace whose pass p routes the same union events[p] in every layer, as one row a member (top-1)."""
    ids, passes = [], []
    for number, members in enumerate(events):
        for expert in members:
            ids.append([[expert]] * layers)
            passes.append(number)
    header = TraceHeader("toy", experts, 1, list(range(layers)), expert_bytes=list(sizes))
    n = len(ids)
    return Trace(
        header, np.asarray(ids, np.uint8).reshape(n, layers, 1), np.array([0, n]), np.arange(n, dtype=np.int32),
        np.asarray(passes, np.int32), weights=np.ones((n, layers, 1), np.float16),
    )  # fmt: skip


def routed_trace(
    seed: int, tokens: int = 40, layers: int = 2, experts: int = 8, top_k: int = 2, sequences: int = 2, hidden: int = 5,
    group: int = 1, sizes: Sequence[int] = (),
) -> Trace:  # fmt: skip
    """Random routing with some reuse, every array present; `group` tokens share a pass."""
    rng = np.random.default_rng(seed)
    taste = rng.gamma(0.5, size=(layers, experts)) + 0.05
    ids = np.empty((tokens, layers, top_k), np.uint8)
    for t, layer in itertools.product(range(tokens), range(layers)):
        ids[t, layer] = rng.choice(experts, top_k, replace=False, p=taste[layer] / taste[layer].sum())
    weights = np.sort(rng.random((tokens, layers, top_k)).astype(np.float16), axis=2)[:, :, ::-1].copy()
    bounds = np.linspace(0, tokens, sequences + 1).astype(np.int64)
    passes, count = np.empty(tokens, np.int32), 0
    for s in range(sequences):
        inside = np.arange(bounds[s + 1] - bounds[s]) // group
        passes[bounds[s] : bounds[s + 1]] = inside + count
        count += int(inside[-1]) + 1
    header = TraceHeader("toy", experts, top_k, list(range(layers)), expert_bytes=list(sizes))
    header.sequences = [{"document": f"d{s}"} for s in range(sequences)]
    return Trace(
        header, ids, bounds, np.arange(tokens, dtype=np.int32), passes, weights=weights,
        phase=np.full(tokens, DECODE, np.uint8), hidden=rng.standard_normal((tokens, layers, hidden)).astype(np.float16),
        router_logits=rng.standard_normal((tokens, layers, experts)).astype(np.float16),
    )  # fmt: skip


def unions(trace: Trace, layer: int) -> list[list[int]]:
    """Union of each pass of one layer in rank order, last appearance counting, written the slow way."""
    out = []
    for number in np.unique(trace.passes):
        flat = [int(e) for e in trace.expert_ids[trace.passes == number, layer].ravel() if e != trace.missing]
        out.append([e for i, e in enumerate(flat) if e not in flat[i + 1 :]])
    return out


def simulate(events: Iterable[Sequence[int]], slots: int, policy: str) -> tuple[int, int]:
    """(hits, loads) of LRU, FIFO or LFU by the words of the definitions: event-atomic, pinned waves, touch after."""
    resident: list[int] = []
    last: dict[int, int] = {}
    born: dict[int, int] = {}
    count: dict[int, int] = {}
    hits = loads = clock = 0
    for union in events:
        present = [e for e in union if e in resident]
        hits += len(present)
        pinned = set(present)
        for e in (x for x in union if x not in present):
            loads += 1
            if len(resident) == slots:
                if pinned >= set(resident):
                    pinned = set()  # the wave has been served
                free = [x for x in resident if x not in pinned]
                rank = {"lru": lambda x: last[x], "fifo": lambda x: born[x], "lfu": lambda x: (count[x], last[x])}[
                    policy
                ]
                gone = min(free, key=rank)
                resident.remove(gone)
                count[gone] = 0
            clock += 1
            resident.append(e)
            born[e] = last[e] = clock
            count[e] = 0
            pinned.add(e)
        for e in union:
            clock += 1
            if e in resident:
                last[e] = clock
                count[e] = count.get(e, 0) + 1
    return hits, loads


def fewest_loads(events: Sequence[Sequence[int]], slots: int, forced: bool) -> int:
    """Fewest demand loads over every choice of what to keep, by exhaustive search.

    Forced: an event's members all stay until the next event. Otherwise anything resident or just routed may stay.
    """
    sets = [frozenset(e) for e in events]

    @cache
    def best(i: int, resident: frozenset[int]) -> int:
        if i == len(sets):
            return 0
        cost, pool = len(sets[i] - resident), resident | sets[i]
        must = sets[i] if forced else frozenset()
        rest = sorted(pool - must)
        room = min(slots - len(must), len(rest))
        keeps = itertools.combinations(rest, room)
        return cost + min(best(i + 1, must | frozenset(k)) for k in keeps)

    return best(0, frozenset())
