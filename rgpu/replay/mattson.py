"""LRU at every capacity in one pass: hits by stack distance (Mattson et al. 1970), event-atomic.

Exact for capacities from the largest union on: there LRU is a stack algorithm under the definitions used here.
"""

from typing import Any

import numpy as np
from numba import njit

from rgpu.replay.events import Events, build_events
from rgpu.replay.placement import place_layers


@njit(cache=True, nogil=True)
def _stack_pass(pool, offs, keys, touch, hits, stack, place, depth):  # type: ignore[no-untyped-def]
    """Adds to hits[pool, d] the accesses found at stack depth d; `stack`, `place`, `depth` are scratch by pool."""
    for e in range(pool.shape[0]):
        p = pool[e]
        for a in range(offs[e], offs[e + 1]):
            at = place[p, keys[a]]
            if at >= 0:
                hits[p, at] += 1
        for j in range(offs[e], offs[e + 1]):
            key = keys[offs[e] + touch[j]] if touch.shape[0] else keys[j]
            at = place[p, key]
            if at < 0:
                at = depth[p]
                depth[p] += 1
            for i in range(at, 0, -1):
                stack[p, i] = stack[p, i - 1]
                place[p, stack[p, i]] = i
            stack[p, 0] = key
            place[p, key] = 0


def lru_curve(trace: Any, *, scope: str = "layer", touch_order: str = "rank") -> tuple[np.ndarray, int]:
    """(hits int64 [pools, C + 1], smallest exact capacity): hits[p, c] of pool p with c slots, warm over the whole trace."""
    events = build_events(trace, scope=scope, touch_order=touch_order, by_layer=scope == "layer")
    placed = place_layers(scope, trace.layers, trace.header.num_experts)
    return lru_curve_of(events, placed.pools, placed.keys)


def lru_curve_of(events: Events, pools: int, keys: int) -> tuple[np.ndarray, int]:
    """As `lru_curve`, for events already built."""
    found = np.zeros((pools, keys), np.int64)
    stack, place = np.full((pools, keys), -1, np.int64), np.full((pools, keys), -1, np.int64)
    _stack_pass(events.pool, events.offs, events.keys, events.touch, found, stack, place, np.zeros(pools, np.int64))
    hits = np.concatenate([np.zeros((pools, 1), np.int64), np.cumsum(found, axis=1)], axis=1)
    return hits, int(np.diff(events.offs).max(initial=0))
