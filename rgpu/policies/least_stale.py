"""Least-Stale: evict what the current forward pass has not used or loaded (stale), first loaded first; then the rest.

Source: SpecMD (arXiv 2602.03921, 2026). Kept: two generations, stale before current, so that what was just fetched for this
pass is safe. The order within a generation was not to be read there and is named here: `order=loaded` is first in, first
out; `order=used` the last use, as Zhang 2026 (arXiv 2608.07911) takes it, which without prefetching is exactly LRU. A
pass begins when an event's layer is not above the last one's; in a per-layer pool every event begins one, so there
`order=loaded` is FIFO. Ties cannot happen.
"""

from dataclasses import dataclass
from typing import ClassVar

from rgpu.errors import InputError
from rgpu.policies.heap import HEAP_FROM, HEAP_ROWS, WHOLE, drop, settle, smallest
from rgpu.policies.hooks import lean
from rgpu.policies.loop import (
    CAP,
    CLOCK,
    KEY_OF,
    MADE,
    OWN,
    PIN,
    R0,
    R1,
    R2,
    R3,
    R4,
    REG,
    SLOT_OF,
    WAVE,
    always,
    compiled,
    loop,
    no_wish,
)
from rgpu.policies.policy import Setting, Traits

# Small pools: clock (of the load, or of the last use), and the pass of the last use or load. Large pools: rank, the clock
# plus CURRENT if used or loaded in this pass; a list of those keys; a heap by rank.
RANK, PASS, FRESH, HEAP = OWN, OWN + 1, OWN + 2, OWN + 3
CURRENT = 1 << 50
EXPERTS, LAYER, COUNT, BY_USE, NUMBER = (
    R0,
    R1,
    R2,
    R3,
    R4,
)  # experts a layer; last event's layer; FRESH's length; order; pass


@lean
def begin(m, f, keys, weights, feature):
    if keys.shape[0] == 0:
        return
    layer = keys[0] // m[REG, EXPERTS]
    if layer <= m[REG, LAYER]:  # a new pass: all that was current is stale
        m[REG, NUMBER] += 1
        for i in range(m[REG, COUNT]):
            key = m[FRESH, i]
            m[RANK, key] -= CURRENT
            if m[SLOT_OF, key] >= 0:
                settle(m, HEAP, m, RANK, SLOT_OF, WHOLE, key)
        m[REG, COUNT] = 0
    m[REG, LAYER] = layer


@lean
def refresh(m, key, clock):
    if m[REG, MADE] < HEAP_FROM:
        m[RANK, key] = clock
        m[PASS, key] = m[REG, NUMBER]
        return
    if m[RANK, key] < CURRENT:
        m[FRESH, m[REG, COUNT]] = key
        m[REG, COUNT] += 1
    m[RANK, key] = CURRENT + clock
    settle(m, HEAP, m, RANK, SLOT_OF, WHOLE, key)


@lean
def arrive(m, f, key):
    refresh(m, key, m[REG, CLOCK])


@lean
def touch(m, f, key, hit):
    if m[REG, BY_USE]:
        refresh(m, key, m[REG, CLOCK])
    elif m[REG, MADE] < HEAP_FROM:
        m[PASS, key] = m[REG, NUMBER]
    elif m[RANK, key] < CURRENT:
        refresh(m, key, m[RANK, key])


@lean
def leave(m, f, key):
    drop(m, HEAP, m, RANK, SLOT_OF, key)


@lean
def victim(m, f):
    if m[REG, MADE] >= HEAP_FROM:
        return m[SLOT_OF, smallest(m, HEAP, m, RANK, SLOT_OF, WHOLE, 0)]
    slot = -1
    best = 0
    for c in range(m[REG, CAP]):
        key = m[KEY_OF, c]
        if key >= 0 and m[PIN, key] != m[REG, WAVE]:
            rank = m[RANK, key]
            if m[PASS, key] == m[REG, NUMBER]:
                rank += CURRENT
            if slot < 0 or rank < best:
                slot = c
                best = rank
    return slot


@compiled
def run(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog):
    loop(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog,
         begin, always, victim, leave, arrive, touch, no_wish)  # fmt: skip


@dataclass(frozen=True, slots=True)
class LeastStale:
    """`order` within a generation: "loaded" (first in, first out) or "used" (least recent)."""

    order: str = "loaded"
    name: ClassVar[str] = "least_stale"
    traits: ClassVar[Traits] = Traits(rows=3 + HEAP_ROWS)
    run: ClassVar = staticmethod(run)

    def __post_init__(self) -> None:
        if self.order not in ("loaded", "used"):
            raise InputError(f"policy.order: got {self.order!r}; expected loaded or used; choose one")

    def prepare(self, setting: Setting) -> None:
        setting.m[:, REG, EXPERTS] = setting.shape.experts
        setting.m[:, REG, LAYER] = -1
        setting.m[:, REG, BY_USE] = self.order == "used"
