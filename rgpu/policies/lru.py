"""LRU: evict the expert whose last use is oldest (Mattson et al. 1970, "Evaluation techniques for storage hierarchies").

One list in order of use; a proactive load enters at its head, as if just used.
"""

from dataclasses import dataclass
from typing import ClassVar

from rgpu.policies.lists import LINKED, move_front, push_front, take_oldest, tight
from rgpu.policies.loop import OWN, always, compiled, loop, no_event, no_wish, nothing
from rgpu.policies.policy import Traits

L, QUEUE = OWN, 1


@tight
def touch(m, f, key, hit):
    move_front(m, L, QUEUE, key)


@tight
def arrive(m, f, key):
    push_front(m, L, QUEUE, key)


@tight
def victim(m, f):
    return take_oldest(m, L, QUEUE)


@compiled
def run(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog):
    loop(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog,
         no_event, always, victim, nothing, arrive, touch, no_wish)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Lru:
    """Least recently used; no parameters."""

    name: ClassVar[str] = "lru"
    traits: ClassVar[Traits] = Traits(rows=LINKED)
    run: ClassVar = staticmethod(run)
