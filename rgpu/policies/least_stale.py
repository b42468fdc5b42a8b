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
from rgpu.policies.heap import HEAP_FROM, HEAP_ROWS, drop, least, track
from rgpu.policies.hooks import lean
from rgpu.policies.loop import (
    CAP,
    CLOCK,
    OWN,
    R0,
    R1,
    R2,
    R3,
    REG,
    SLOT_OF,
    always,
    compiled,
    loop,
    no_wish,
)
from rgpu.policies.policy import Setting, Traits

RANK, FRESH, HEAP = OWN, OWN + 1, OWN + 2  # clock, plus CURRENT if used or loaded in this pass; list of those keys
CURRENT = 1 << 50
EXPERTS, LAYER, COUNT, BY_USE = R0, R1, R2, R3  # experts a layer; layer of the last event; length of FRESH; order


@lean
def begin(m, f, keys, weights, feature):
    if keys.shape[0] == 0:
        return
    layer = keys[0] // m[REG, EXPERTS]
    if layer <= m[REG, LAYER]:  # a new pass: all that was current is stale
        for i in range(m[REG, COUNT]):
            key = m[FRESH, i]
            m[RANK, key] -= CURRENT
            if m[REG, CAP] >= HEAP_FROM and m[SLOT_OF, key] >= 0:
                track(m, HEAP, m, RANK, SLOT_OF, key)
        m[REG, COUNT] = 0
    m[REG, LAYER] = layer


@lean
def refresh(m, key, clock):
    if m[RANK, key] < CURRENT:
        m[FRESH, m[REG, COUNT]] = key
        m[REG, COUNT] += 1
    m[RANK, key] = CURRENT + clock
    track(m, HEAP, m, RANK, SLOT_OF, key)


@lean
def arrive(m, f, key):
    refresh(m, key, m[REG, CLOCK])


@lean
def touch(m, f, key, hit):
    if m[REG, BY_USE]:
        refresh(m, key, m[REG, CLOCK])
    elif m[RANK, key] < CURRENT:
        refresh(m, key, m[RANK, key])


@lean
def leave(m, f, key):
    drop(m, HEAP, m, RANK, SLOT_OF, key)


@lean
def victim(m, f):
    return least(m, HEAP, m, RANK, SLOT_OF)


@compiled
def run(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog):
    loop(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog,
         begin, always, victim, leave, arrive, touch, no_wish)  # fmt: skip


@dataclass(frozen=True, slots=True)
class LeastStale:
    """`order` within a generation: "loaded" (first in, first out) or "used" (least recent)."""

    order: str = "loaded"
    name: ClassVar[str] = "least_stale"
    traits: ClassVar[Traits] = Traits(rows=2 + HEAP_ROWS)
    run: ClassVar = staticmethod(run)

    def __post_init__(self) -> None:
        if self.order not in ("loaded", "used"):
            raise InputError(f"policy.order: got {self.order!r}; expected loaded or used; choose one")

    def prepare(self, setting: Setting) -> None:
        setting.m[:, REG, EXPERTS] = setting.shape.experts
        setting.m[:, REG, LAYER] = -1
        setting.m[:, REG, BY_USE] = self.order == "used"
