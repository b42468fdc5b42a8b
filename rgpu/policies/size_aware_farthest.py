"""Size-aware farthest use: evict the largest (events until the next use) x (size). A heuristic, not an optimum.

Source: farthest-in-future (Belady 1966) weighted by size, as BeladySize of libCacheSim and the offline greedy of Irani 1997
("Page replacement with multi-size pages") do. With unequal sizes neither this nor plain Belady loads the fewest bytes (that
problem is NP-hard); it stands beside lower bounds, never as one. Clairvoyant: replay only. Experts that are never used
again go first, the largest of them first; ties go to the lowest slot. With equal sizes it is Belady.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rgpu.policies.heap import HEAP_FROM, HEAP_ROWS, before, remove, settle, smallest
from rgpu.policies.hooks import lean
from rgpu.policies.loop import (
    CAP,
    EVENT,
    KEY_OF,
    MADE,
    NEVER,
    NEXT,
    OWN,
    PIN,
    R0,
    R1,
    R2,
    REG,
    SIZE,
    SLOT_OF,
    WAVE,
    always,
    compiled,
    loop,
    no_access,
    no_wish,
)
from rgpu.policies.policy import Setting, Traits

SOONEST, ORDER, HEAP = OWN, OWN + 1, OWN + 2  # minus the next use; the pool's layers, first to last; heaps by layer
WEIGHT = 0  # f[WEIGHT, key]: minus (events until the next use) x size, as of the last look
EXPERTS, LAYERS, ALL = R0, R1, R2  # experts a layer, layers of the pool, layers of the model


@lean
def weigh(m, f, key):
    """Rank by next use times size; events are numbered over all pools, so the pool's own count is spread over them."""
    seen = m[REG, EVENT] - 1
    now = seen // m[REG, LAYERS] * m[REG, ALL] + m[ORDER, seen % m[REG, LAYERS]]
    if m[REG, LAYERS] == 1:
        now = 0  # equal sizes: only the order of next uses matters, and events may be numbered layer by layer
    away = float(m[NEXT, key] - now)
    if m[NEXT, key] >= NEVER:
        away = float(NEVER)
    f[WEIGHT, key] = -away * max(1, m[SIZE, key])


@lean
def look_ahead(m, f, keys, weights, feature):
    if m[REG, MADE] >= HEAP_FROM:
        for j in range(keys.shape[0]):
            m[SOONEST, keys[j]] = -m[NEXT, keys[j]]
            if m[SLOT_OF, keys[j]] >= 0:
                settle(m, HEAP, m, SOONEST, SLOT_OF, m[REG, EXPERTS], keys[j])


@lean
def arrive(m, f, key):
    m[SOONEST, key] = -m[NEXT, key]
    if m[REG, MADE] >= HEAP_FROM:
        settle(m, HEAP, m, SOONEST, SLOT_OF, m[REG, EXPERTS], key)


@lean
def leave(m, f, key):
    if m[REG, MADE] >= HEAP_FROM:
        remove(m, HEAP, m, SOONEST, SLOT_OF, m[REG, EXPERTS], key)


@lean
def victim(m, f):
    out = -1
    if m[REG, MADE] >= HEAP_FROM:  # a layer's experts have one size: its farthest is its candidate
        for layer in range(m[REG, LAYERS]):
            key = smallest(m, HEAP, m, SOONEST, SLOT_OF, m[REG, EXPERTS], layer)
            if key >= 0:
                weigh(m, f, key)
                if out < 0 or before(m, f, WEIGHT, SLOT_OF, key, out):
                    out = key
        return m[SLOT_OF, out]
    for c in range(m[REG, CAP]):
        key = m[KEY_OF, c]
        if key >= 0 and m[PIN, key] != m[REG, WAVE]:
            weigh(m, f, key)
            if out < 0 or before(m, f, WEIGHT, SLOT_OF, key, out):
                out = key
    return m[SLOT_OF, out]


@compiled
def run(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog):
    loop(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog,
         look_ahead, always, victim, leave, arrive, no_access, no_wish)  # fmt: skip


@dataclass(frozen=True, slots=True)
class SizeAwareFarthest:
    """Largest next-use distance times size, forced admission; no parameters."""

    name: ClassVar[str] = "size_aware_farthest"
    traits: ClassVar[Traits] = Traits(rows=2 + HEAP_ROWS, frows=1, needs_future=True)
    run: ClassVar = staticmethod(run)

    def prepare(self, setting: Setting) -> None:
        setting.m[:, REG, EXPERTS] = setting.shape.experts
        setting.m[:, REG, ALL] = setting.shape.layers
        for p in range(len(setting.m)):
            mine = np.flatnonzero(setting.pool_of == p)
            setting.m[p, REG, LAYERS] = len(mine)
            setting.m[p, ORDER, : len(mine)] = mine
