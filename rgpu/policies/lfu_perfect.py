"""Perfect LFU: evict the least used since the pool was last emptied; counts survive eviction. Ties to the least recent.

Source: "perfect" against "in-cache" LFU in Breslau et al. 1999 ("Web caching and Zipf-like distributions"). Kept: a count
for every expert, resident or not. Differs: an event counts each member once, when it begins, so members that an oversized
event pushes out again are counted too.
"""

from dataclasses import dataclass
from typing import ClassVar

from rgpu.policies.heap import HEAP_FROM, HEAP_ROWS, drop, first, track
from rgpu.policies.hooks import lean
from rgpu.policies.loop import CLOCK, MADE, OWN, REG, SLOT_OF, always, compiled, loop, no_wish
from rgpu.policies.policy import Traits

RANK = OWN  # m[RANK, key]: uses << 40 | clock of the last use or load
HEAP = OWN + 1
ONE_USE, CLOCK_BITS = 1 << 40, (1 << 40) - 1


@lean
def count(m, f, keys, weights, feature):
    for j in range(keys.shape[0]):
        key = keys[j]
        m[RANK, key] += ONE_USE
        if m[REG, MADE] >= HEAP_FROM and m[SLOT_OF, key] >= 0:
            track(m, HEAP, m, RANK, SLOT_OF, key)


@lean
def arrive(m, f, key):
    m[RANK, key] = (m[RANK, key] & ~CLOCK_BITS) + m[REG, CLOCK]
    track(m, HEAP, m, RANK, SLOT_OF, key)


@lean
def touch(m, f, key, hit):
    m[RANK, key] = (m[RANK, key] & ~CLOCK_BITS) + m[REG, CLOCK]
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
         count, always, victim, leave, arrive, touch, no_wish)  # fmt: skip


@dataclass(frozen=True, slots=True)
class LfuPerfect:
    """Least frequently used over everything seen; no parameters."""

    name: ClassVar[str] = "lfu_perfect"
    traits: ClassVar[Traits] = Traits(rows=1 + HEAP_ROWS)
    run: ClassVar = staticmethod(run)
