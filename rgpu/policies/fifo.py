"""FIFO: evict the expert that was loaded first, whatever its use since.

One list in order of loading (Belady 1966, "A study of replacement algorithms for a virtual-storage computer", its FIFO).
"""

from dataclasses import dataclass
from typing import ClassVar

from rgpu.policies.lists import LINKED, push_front, take_oldest, tight
from rgpu.policies.loop import OWN, always, compiled, loop, no_access, no_event, no_wish, nothing
from rgpu.policies.policy import Traits

L, QUEUE = OWN, 1


@tight
def arrive(m, f, key):
    push_front(m, L, QUEUE, key)


@tight
def victim(m, f):
    return take_oldest(m, L, QUEUE)


@compiled
def run(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog):
    loop(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog,
         no_event, always, victim, nothing, arrive, no_access, no_wish)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fifo:
    """First in, first out; no parameters."""

    name: ClassVar[str] = "fifo"
    traits: ClassVar[Traits] = Traits(rows=LINKED)
    run: ClassVar = staticmethod(run)
