"""Belady with forced admission: every miss is kept, and the expert used farthest in the future goes (Belady 1966, "MIN").

The most hits that any demand policy which keeps all its misses can have. Clairvoyant: replay only. Ties: lowest slot.
"""

from dataclasses import dataclass
from typing import ClassVar

from rgpu.policies.heap import HEAP_FROM, WHOLE, smallest
from rgpu.policies.hooks import lean
from rgpu.policies.loop import (
    CAP,
    KEY_OF,
    MADE,
    NEXT,
    PIN,
    REG,
    SLOT_OF,
    WAVE,
    always,
    compiled,
    loop,
    no_access,
    no_wish,
)
from rgpu.policies.next_use import HEAP, ROWS, SOONEST, arrive, leave, look_ahead
from rgpu.policies.policy import Traits


@lean
def victim(m, f):
    if m[REG, MADE] >= HEAP_FROM:
        return m[SLOT_OF, smallest(m, HEAP, m, SOONEST, SLOT_OF, WHOLE, 0)]
    far = -1
    slot = -1
    for c in range(m[REG, CAP]):
        key = m[KEY_OF, c]
        if key >= 0 and m[NEXT, key] > far and m[PIN, key] != m[REG, WAVE]:
            far = m[NEXT, key]
            slot = c
    return slot


@compiled
def run(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog):
    loop(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog,
         look_ahead, always, victim, leave, arrive, no_access, no_wish)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Belady:
    """Farthest next use, forced admission; no parameters."""

    name: ClassVar[str] = "belady"
    traits: ClassVar[Traits] = Traits(rows=ROWS, needs_future=True)
    run: ClassVar = staticmethod(run)
