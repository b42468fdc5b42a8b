"""LFU with counts while resident: evict the least used, ties to the least recent; a count is forgotten at eviction.

The in-cache variant of least-frequently-used (Robinson and Devarakonda 1990 discuss why the reset matters).
"""

from dataclasses import dataclass
from typing import ClassVar

from rgpu.policies.heap import HEAP_ROWS, drop, first, track
from rgpu.policies.hooks import lean
from rgpu.policies.loop import CLOCK, OWN, REG, SLOT_OF, always, compiled, loop, no_event, no_wish
from rgpu.policies.policy import Traits

RANK = OWN  # m[RANK, key]: (uses while resident) << 40 | clock of the last use: one comparison orders both
HEAP = OWN + 1
ONE_USE, CLOCK_BITS = 1 << 40, (1 << 40) - 1


@lean
def touch(m, f, key, hit):
    m[RANK, key] = (m[RANK, key] & ~CLOCK_BITS) + ONE_USE + m[REG, CLOCK]
    track(m, HEAP, m, RANK, SLOT_OF, key)


@lean
def arrive(m, f, key):
    m[RANK, key] = m[REG, CLOCK]
    track(m, HEAP, m, RANK, SLOT_OF, key)


@lean
def leave(m, f, key):
    drop(m, HEAP, m, RANK, SLOT_OF, key)


@lean
def victim(m, f):
    return first(m, HEAP, RANK)


@compiled
def run(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog):
    loop(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog,
         no_event, always, victim, leave, arrive, touch, no_wish)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Lfu:
    """Least frequently used while resident; no parameters."""

    name: ClassVar[str] = "lfu"
    traits: ClassVar[Traits] = Traits(rows=1 + HEAP_ROWS)
    run: ClassVar = staticmethod(run)
