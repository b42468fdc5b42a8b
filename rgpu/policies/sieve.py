"""SIEVE: a queue in order of loading that nothing ever moves in; a hand sweeps it and evicts what was not used.

Zhang et al. 2024, "SIEVE is simpler than LRU" (NSDI). A hit marks; the hand goes from the oldest to the newest, clears marks,
evicts the first unmarked expert, and stays where it was; past the newest it begins again at the oldest. It passes members
of the current wave and leaves their mark. A proactive load's first use counts as a hit.
"""

from dataclasses import dataclass
from typing import ClassVar

from rgpu.policies.lists import LINKED, newer, push_front, remove, tail, tight
from rgpu.policies.loop import (
    OWN,
    PIN,
    R0,
    REG,
    SLOT_OF,
    WAVE,
    always,
    compiled,
    loop,
    no_event,
    no_wish,
    nothing,
)
from rgpu.policies.policy import Traits

L, QUEUE = OWN, 1
VISITED = OWN + LINKED  # m[VISITED, key]: 1 after a hit, until the hand comes by; a victim has none
HAND = R0  # register: key + 1 that the hand looks at next; 0: the tail


@tight
def touch(m, f, key, hit):
    if hit:
        m[VISITED, key] = 1


@tight
def arrive(m, f, key):
    push_front(m, L, QUEUE, key)


@tight
def victim(m, f):
    key = m[REG, HAND] - 1
    while True:
        if key < 0:
            key = tail(m, L, QUEUE)
        if m[PIN, key] != m[REG, WAVE]:
            if m[VISITED, key] == 0:
                break
            m[VISITED, key] = 0
        key = newer(m, L, key)
    m[REG, HAND] = newer(m, L, key) + 1
    remove(m, L, key)
    return m[SLOT_OF, key]


@compiled
def run(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog):
    loop(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog,
         no_event, always, victim, nothing, arrive, touch, no_wish)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sieve:
    """SIEVE; no parameters."""

    name: ClassVar[str] = "sieve"
    traits: ClassVar[Traits] = Traits(rows=LINKED + 1)
    run: ClassVar = staticmethod(run)
