"""LFU with counts while resident: evict the least used, ties to the least recent; a count is forgotten at eviction.

The in-cache variant of least-frequently-used (Robinson and Devarakonda 1990 discuss why the reset matters).
"""

from dataclasses import dataclass
from typing import ClassVar

from rgpu.policies.hooks import oldest
from rgpu.policies.loop import CLOCK, OWN, REG, always, compiled, hook, loop, no_event, no_wish, nothing
from rgpu.policies.policy import Traits

RANK = OWN  # m[RANK, key]: (uses while resident) << 40 | clock of the last use: one comparison orders both
ONE_USE, CLOCK_BITS = 1 << 40, (1 << 40) - 1


@hook
def touch(m, f, key, hit):
    m[RANK, key] = (m[RANK, key] & ~CLOCK_BITS) + ONE_USE + m[REG, CLOCK]


@hook
def arrive(m, f, key):
    m[RANK, key] = m[REG, CLOCK]


@hook
def victim(m, f):
    return oldest(m, RANK)


@compiled
def run(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog):
    loop(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog,
         no_event, always, victim, nothing, arrive, touch, no_wish)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Lfu:
    """Least frequently used while resident; no parameters."""

    name: ClassVar[str] = "lfu"
    traits: ClassVar[Traits] = Traits(rows=1)
    run: ClassVar = staticmethod(run)
