"""Belady with bypass: of everything resident or just routed, keep what is used soonest. A bound, not a policy.

It may drop a member of the very event it serves and keeps a miss only if that pays, with no staging slot set aside: no
lossless schedule of any kind, prefetching included, loads fewer experts of equal size from the same initial state.
(MIN with bypass; with unequal sizes farthest-next-use is only a heuristic.)
"""

from dataclasses import dataclass
from typing import ClassVar

from rgpu.policies.heap import HEAP_FROM, ORDER
from rgpu.policies.hooks import lean
from rgpu.policies.loop import (
    BYTE_CAP,
    BYTES,
    CAP,
    KEY_OF,
    MADE,
    NEXT,
    PINNED,
    REG,
    SIZE,
    SLOT_OF,
    USED,
    compiled,
    loop,
    no_access,
    no_wish,
)
from rgpu.policies.next_use import HEAP, ROWS, arrive, leave, look_ahead
from rgpu.policies.policy import Traits


@lean
def farthest(m, f):
    """Slot of the resident with the farthest next use; members of the event are not spared."""
    if m[REG, MADE] >= HEAP_FROM:
        return m[SLOT_OF, m[HEAP + ORDER, 0]]
    far = -1
    slot = -1
    for c in range(m[REG, CAP]):
        key = m[KEY_OF, c]
        if key >= 0 and m[NEXT, key] > far:
            far = m[NEXT, key]
            slot = c
    return slot


@lean
def worth(m, f, key):
    m[REG, PINNED] = -1  # a bound over all schedules: nothing is pinned
    if m[REG, USED] < m[REG, CAP] and m[REG, BYTES] + m[SIZE, key] <= m[REG, BYTE_CAP]:
        return True
    return m[NEXT, m[KEY_OF, farthest(m, f)]] > m[NEXT, key]


@compiled
def run(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog):
    loop(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog,
         look_ahead, worth, farthest, leave, arrive, no_access, no_wish)  # fmt: skip


@dataclass(frozen=True, slots=True)
class BeladyBypass:
    """Fewest loads of any schedule; no parameters."""

    name: ClassVar[str] = "belady_bypass"
    traits: ClassVar[Traits] = Traits(rows=ROWS, needs_future=True, bound=True)
    run: ClassVar = staticmethod(run)
