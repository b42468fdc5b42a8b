"""A lower bound on bytes loaded by any schedule, for experts of unequal size: the fractional caching LP.

An expert used in event i and next in event j is either kept between them, which saves one load, or not. Kept by a share x
in [0, 1] it takes x * weight of the pool at every border between events i and j:
    loaded >= sum of all uses' bytes - max { sum bytes * x : at every border sum weight * x <= capacity }
Whole keeps of any schedule (staged, prefetched, pinned or not) are a feasible x, so nothing loads less. In differences of
neighbouring borders the LP is a min-cost flow along the line of events (Bar-Noy et al. 2001; Berger, Beckmann,
Harchol-Balter 2018, "Practical bounds on optimal caching with variable object sizes"), solved with HiGHS. Where all weights
are equal it is integral: with equal bytes it equals bypass-Belady.

Large traces are solved in windows of events for their prices only. For any prices p >= 0 of the borders, weak duality gives
    savings <= sum capacity * p + sum over intervals of max(0, bytes - weight * (price between i and j))
and this is evaluated over the whole timeline, intervals across windows included. So windows, and a solver's tolerance, can
only loosen the bound, never break it. Legend: P pools, N events of one pool, I intervals.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit

from rgpu.errors import InputError
from rgpu.replay.engine import segments
from rgpu.replay.events import Events, build_events
from rgpu.replay.placement import place_layers

WINDOW = 1024  # events of a pool that are solved at once
MARGIN = 128  # further events on both sides, solved along and thrown away


@dataclass(frozen=True, slots=True)
class FlowBound:
    """`bytes_P` float64 [P]: at least this much is loaded by each pool; `uses` bytes loaded if nothing were ever kept.
    `windowed`: some timeline was longer than a window, so the bound may be looser than the LP."""

    bytes_P: np.ndarray
    uses: float
    windowed: bool

    @property
    def bytes(self) -> float:
        return float(self.bytes_P.sum())


@njit(cache=True, nogil=True)
def _intervals(pool, offs, keys, pools, width, start, stop, key, owner):  # type: ignore[no-untyped-def]
    """Fill start, stop (numbers of the pool's own events), key and owner of every reuse; -> (I, events of each pool)."""
    at = np.zeros(pools, np.int64)
    last = np.full((pools, width), -1)
    n = 0
    for e in range(pool.shape[0]):
        p = pool[e]
        for a in range(offs[e], offs[e + 1]):
            k = keys[a]
            if last[p, k] >= 0:
                start[n], stop[n], key[n], owner[n] = last[p, k], at[p], k, p
                n += 1
            last[p, k] = at[p]
        at[p] += 1
    return n, at


def flow_bound(
    trace: Any, *, scope: str = "layer", slots: int | None = None, budget: int | None = None, reset: str = "none",
    window: int = WINDOW,
) -> FlowBound:  # fmt: skip
    """The bound for pools of `slots` experts, or for a `budget` of bytes over all pools (staging included), as in a sweep.

    Raises InputError for a trace without expert sizes, or without scipy.
    """
    sizes = np.asarray(trace.header.expert_bytes or [0], np.int64)
    if not sizes.all():
        raise InputError(
            "flow bound: got a trace without expert sizes; expected expert_bytes; set trace.expert_bytes=N"
        )
    if (slots is None) == (budget is None):
        raise InputError(f"flow bound: got slots={slots} and bytes={budget}; expected exactly one of them; set one")
    placed = place_layers(scope, trace.layers, trace.header.num_experts)
    events = build_events(trace, scope=scope)
    bytes_PK = np.repeat(sizes.reshape(placed.pools, placed.span), trace.header.num_experts, axis=1).astype(float)
    weight_PK = np.ones_like(bytes_PK) if budget is None else bytes_PK
    capacity = float(slots) if budget is None else float(budget // placed.pools)  # type: ignore[arg-type]
    bounds = segments(trace, reset) * trace.layers
    return bound_of(events, bytes_PK, weight_PK, np.full(placed.pools, capacity), bounds, window=window)


def bound_of(
    events: Events, bytes_PK: np.ndarray, weight_PK: np.ndarray, capacity_P: np.ndarray, bounds: np.ndarray,
    *, window: int = WINDOW,
) -> FlowBound:  # fmt: skip
    """As `flow_bound`, for events already built; at each of `bounds` (event numbers) but the last every pool is empty."""
    pools, width = bytes_PK.shape
    loaded_P, uses, windowed = np.zeros(pools), 0.0, False
    for first, last in zip(bounds[:-1], bounds[1:], strict=True):
        offs = events.offs[first : last + 1]
        keys, pool = events.keys[offs[0] : offs[-1]], events.pool[first:last]
        owner_A = np.repeat(pool, np.diff(offs))
        used_P = np.bincount(owner_A, bytes_PK[owner_A, keys], pools)
        start, stop, key, owner = (np.empty(len(keys), np.int64) for _ in range(4))
        n, events_P = _intervals(pool, offs - offs[0], keys, pools, width, start, stop, key, owner)
        for p in range(pools):
            mine = np.flatnonzero((owner[:n] == p) & (weight_PK[p, key[:n]] <= capacity_P[p]))  # others never fit
            windowed |= bool(events_P[p] > window)
            line = (start[mine], stop[mine], bytes_PK[p, key[mine]], weight_PK[p, key[mine]], int(events_P[p]))
            loaded_P[p] += used_P[p] - savings(*line, float(capacity_P[p]), window)
        uses += float(used_P.sum())
    return FlowBound(loaded_P, uses, windowed)


def savings(
    start_I: np.ndarray, stop_I: np.ndarray, bytes_I: np.ndarray, weight_I: np.ndarray, events: int, capacity: float,
    window: int = WINDOW,
) -> float:  # fmt: skip
    """An upper bound on the bytes that keeping can save, by weak duality; the LP's value where one window holds all."""
    if not len(start_I):
        return 0.0
    price_N = np.zeros(events)
    for begin in range(0, events - 1, window):
        low, high = max(0, begin - MARGIN), min(events - 1, begin + window + MARGIN)  # borders low .. high - 1
        if events - 1 <= window:
            low, high = 0, events - 1
        inside = (start_I < high) & (stop_I > low)
        a, b = np.maximum(start_I[inside], low), np.minimum(stop_I[inside], high)
        share = (b - a) / (stop_I[inside] - start_I[inside])  # a part inside earns its share of the saving
        prices = _prices(a - low, b - low, bytes_I[inside] * share, weight_I[inside], high - low, capacity)
        kept = slice(begin, min(begin + window, events - 1))
        price_N[kept] = prices[kept.start - low : kept.stop - low]
    paid_N = np.concatenate([[0.0], np.cumsum(price_N)])
    rent_I = weight_I * (paid_N[stop_I] - paid_N[start_I])
    return float(capacity * price_N.sum() + np.maximum(0.0, bytes_I - rent_I).sum())


def _prices(
    a_I: np.ndarray, b_I: np.ndarray, bytes_I: np.ndarray, weight_I: np.ndarray, borders: int, capacity: float
) -> np.ndarray:
    """float64 [borders]: what a unit of the pool is worth at each border, from the dual of the LP as a flow."""
    load_N = np.cumsum(np.bincount(a_I, weight_I, borders + 1) - np.bincount(b_I, weight_I, borders + 1))[:borders]
    if (load_N <= capacity).all():
        return np.zeros(borders)
    try:
        from scipy.optimize import linprog
        from scipy.sparse import coo_array
    except ImportError:
        raise InputError("flow bound: got no scipy; expected it installed; pip install scipy") from None
    n, line = len(a_I), np.arange(borders)
    inner = b_I < borders
    # columns: what each interval keeps, in units of weight, then what is left free at each border
    rows = np.concatenate([a_I, b_I[inner], line, line[1:]])
    columns = np.concatenate([np.arange(n), np.flatnonzero(inner), n + line, n + line[:-1]])
    signs = np.concatenate([np.ones(n), -np.ones(int(inner.sum())), np.ones(borders), -np.ones(borders - 1)])
    scale = bytes_I.max() / weight_I.max()
    cost = np.concatenate([-(bytes_I / weight_I) / scale, np.zeros(borders)])
    unit = weight_I.max()
    right = np.zeros(borders)
    right[0] = capacity / unit
    upper = np.concatenate([weight_I / unit, np.full(borders, capacity / unit)])
    found = linprog(
        cost, A_eq=coo_array((signs, (rows, columns)), shape=(borders, n + borders)).tocsr(), b_eq=right,
        bounds=np.column_stack([np.zeros(n + borders), upper]), method="highs",
    )  # fmt: skip
    if found.status != 0:
        return np.zeros(borders)  # no prices: still a bound, only a loose one
    potential_N = np.append(found.eqlin.marginals, 0.0)
    return np.asarray(np.maximum(0.0, (potential_N[1:] - potential_N[:-1]) * scale))
