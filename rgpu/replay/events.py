"""Routing events as flat arrays for the decision loop, built from a trace or from one live event by the same kernels.

Legend: T tokens of an event, K top-k, E experts a layer, L MoE layers, A accesses, F feature width.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit

from rgpu.errors import InputError
from rgpu.policies.loop import DEMAND, NEVER
from rgpu.replay.placement import place_layers
from rgpu.traces.trace import DECODE, PADDING, PROMPT

TOUCH_ORDERS = ("rank", "reverse_rank")


@dataclass(slots=True)
class Events:
    """Event e is keys[offs[e]:offs[e + 1]] of pool[e], duplicate-free, in rank order by last appearance.

    pool int32, kind int8, layer int16, pass_id int32, decode bool (one an event); offs int64; keys int32, weights
    float32 (gate weight summed over the event's tokens; 0 where none recorded), touch int32 (empty: same order as keys).
    """

    pool: np.ndarray
    kind: np.ndarray
    layer: np.ndarray
    pass_id: np.ndarray
    decode: np.ndarray
    offs: np.ndarray
    keys: np.ndarray
    weights: np.ndarray
    touch: np.ndarray
    assignments: int


@njit(cache=True, nogil=True)
def union_of(ids_TK, weights_TK, experts, missing, reverse, stamp, mark, mass, where, keys, weights, touch):  # type: ignore[no-untyped-def]
    """Union of one event into keys/weights/touch; -> (members, assignments). `mark`, `mass`, `where` are scratch [E].

    Order: token by token, router rank order, last appearance counts. `touch` gets the touch order as offsets into keys:
    the same, or, reversed, ranks from last to first within each token.
    """
    tokens, k = ids_TK.shape
    pairs = 0
    for t in range(tokens):
        for r in range(k):
            e = np.int64(ids_TK[t, r])
            if e != missing:
                if mark[e] < stamp:
                    mark[e] = stamp
                    mass[e] = 0.0
                if weights_TK.shape[0]:
                    mass[e] += weights_TK[t, r]
                pairs += 1
    n = 0
    for i in range(tokens - 1, -1, -1):  # backwards: the first time an expert is met is its last appearance
        for r in range(k - 1, -1, -1):
            e = np.int64(ids_TK[i, r])
            if e != missing and mark[e] == stamp:
                mark[e] = stamp + 1
                keys[n] = e
                n += 1
    for j in range(n // 2):
        keys[j], keys[n - 1 - j] = keys[n - 1 - j], keys[j]
    for j in range(n):
        weights[j] = mass[keys[j]]
        where[keys[j]] = j
    if reverse:
        c = n
        for i in range(tokens - 1, -1, -1):
            for r in range(k):
                e = np.int64(ids_TK[i, r])
                if e != missing and mark[e] == stamp + 1:
                    mark[e] = stamp + 2
                    c -= 1
                    touch[c] = where[e]
    return n, pairs


@njit(cache=True, nogil=True)
def _build(  # type: ignore[no-untyped-def]
    ids, weights_in, order, starts, by_layer, experts, missing, reverse, offs, keys, weights, touch, layers, passes
):
    groups = starts.shape[0] - 1
    L = ids.shape[1]
    mark = np.zeros(experts, np.int64)
    mass = np.zeros(experts, np.float32)
    where = np.zeros(experts, np.int64)
    k = ids.shape[2]
    widest = 0
    for g in range(groups):
        widest = max(widest, starts[g + 1] - starts[g])
    ids_TK = np.empty((widest, k), ids.dtype)
    w_TK = np.empty((widest if weights_in.shape[0] else 0, k), np.float32)
    a = 0
    pairs = 0
    stamp = 1
    for e in range(groups * L):
        layer = e // groups if by_layer else e % L
        g = e % groups if by_layer else e // L
        n_tokens = starts[g + 1] - starts[g]
        for t in range(n_tokens):
            row = order[starts[g] + t]
            for r in range(k):
                ids_TK[t, r] = ids[row, layer, r]
                if weights_in.shape[0]:
                    w_TK[t, r] = weights_in[row, layer, r]
        n, p = union_of(
            ids_TK[:n_tokens], w_TK[:n_tokens], experts, missing, reverse, stamp, mark, mass, where, keys[a:], weights[a:],
            touch[a:] if reverse else touch,
        )  # fmt: skip
        stamp += 3
        a += n
        pairs += p
        offs[e + 1] = a
        layers[e] = layer
        passes[e] = g
    return a, pairs


def pass_groups(trace: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(order int64 [N], starts int64 [G + 1], pass numbers int32 [G]): tokens grouped by forward pass, in pass order."""
    order = np.argsort(trace.passes, kind="stable")
    numbers, first = np.unique(trace.passes[order], return_index=True)
    return order, np.append(first, len(order)).astype(np.int64), numbers


def build_events(
    trace: Any, *, scope: str = "layer", touch_order: str = "rank", by_layer: bool = False, passes: slice = slice(None)
) -> Events:
    """Events of a trace, pass by pass (or, `by_layer`, one layer after another); `passes` takes a range of them.

    Pools and keys as `placement` lays them out: in scope layer a key is an expert.
    """
    if touch_order not in TOUCH_ORDERS:
        raise InputError(f"replay.touch_order: got {touch_order!r}; expected one of {', '.join(TOUCH_ORDERS)}")
    order, starts, numbers = pass_groups(trace)
    numbers = numbers[passes]
    chosen = np.arange(len(starts) - 1)[passes]
    starts = np.append(starts[chosen], starts[chosen[-1] + 1] if len(chosen) else 0)
    n, k, layers, experts = int(starts[-1] - starts[0]), trace.header.top_k, trace.layers, trace.header.num_experts
    events, reverse = len(numbers) * layers, touch_order == "reverse_rank"
    offs = np.zeros(events + 1, np.int64)
    keys, weights = np.empty(n * layers * k + experts, np.int32), np.empty(n * layers * k + experts, np.float32)
    touch = np.empty(len(keys) if reverse else 0, np.int32)
    layer, group = np.empty(events, np.int16), np.empty(events, np.int32)
    given = trace.weights if trace.weights is not None else np.zeros((0, layers, k), np.float16)
    used, pairs = _build(
        trace.expert_ids, _half_to_single(given), order, starts, by_layer, experts, trace.missing, reverse, offs, keys,
        weights, touch, layer, group,
    )  # fmt: skip
    keys, weights = keys[:used], weights[:used]
    placed = place_layers(scope, layers, experts)
    if placed.span > 1:
        keys = keys + np.repeat(placed.base.astype(np.int32)[layer], np.diff(offs))
    decode = decode_of(trace, order, starts)[group]
    pool = placed.pool_of[layer]
    kind = np.full(events, DEMAND, np.int8)
    return Events(
        pool, kind, layer, numbers[group], decode, offs, keys, weights, touch[:used] if reverse else touch, int(pairs)
    )


def _half_to_single(weights: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(weights, dtype=np.float32)


def decode_of(trace: Any, order: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """bool [G]: passes that evaluate generated tokens only (padding rows aside); all False without phases."""
    if trace.phase is None or len(starts) < 2:
        return np.zeros(max(0, len(starts) - 1), bool)
    phase = trace.phase[order[starts[0] : starts[-1]]]
    at = starts[:-1] - starts[0]
    prompt = np.add.reduceat((phase == PROMPT).astype(np.int64), at)
    decode = np.add.reduceat((phase == DECODE).astype(np.int64), at)
    assert PADDING not in (PROMPT, DECODE)
    return (prompt == 0) & (decode > 0)


@njit(cache=True, nogil=True)
def next_uses(pool, offs, keys, pools, width):  # type: ignore[no-untyped-def]
    """int64 [A]: number of the event in which each key is used next in its pool; NEVER if it is not."""
    out = np.empty(keys.shape[0], np.int64)
    last = np.full((pools, width), NEVER)
    for e in range(pool.shape[0] - 1, -1, -1):
        for a in range(offs[e], offs[e + 1]):
            out[a] = last[pool[e], keys[a]]
        for a in range(offs[e], offs[e + 1]):
            last[pool[e], keys[a]] = e
    return out


def union_of_one(ids_K: np.ndarray, weights_TK: np.ndarray, reverse: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What `union_of` gives for one token with k different experts, several times as fast: (keys, mass, touch)."""
    k = len(ids_K)
    mass = weights_TK[0].astype(np.float32) if len(weights_TK) else np.zeros(k, np.float32)
    touch = np.arange(k - 1, -1, -1, dtype=np.int32) if reverse else np.zeros(0, np.int32)
    return ids_K.astype(np.int32), mass, touch
