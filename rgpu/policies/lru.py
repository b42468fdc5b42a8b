"""LRU: evict the expert whose last use is oldest (Mattson et al. 1970, "Evaluation techniques for storage hierarchies")."""

from dataclasses import dataclass
from typing import ClassVar

from rgpu.policies.hooks import oldest
from rgpu.policies.loop import CLOCK, OWN, REG, always, compiled, hook, loop, no_event, no_wish, nothing
from rgpu.policies.policy import Traits

LAST = OWN  # m[LAST, key]: clock of the last use, or of the proactive load


@hook
def touch(m, f, key, hit):
    m[LAST, key] = m[REG, CLOCK]


@hook
def arrive(m, f, key):
    m[LAST, key] = m[REG, CLOCK]


@hook
def victim(m, f):
    return oldest(m, LAST)


@compiled
def run(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog):
    loop(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog,
         no_event, always, victim, nothing, arrive, touch, no_wish)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Lru:
    """Least recently used; no parameters."""

    name: ClassVar[str] = "lru"
    traits: ClassVar[Traits] = Traits(rows=1)
    run: ClassVar = staticmethod(run)
