"""CLOCK, or second chance: a hand goes round the slots, spares an expert used since it last came by, evicts the next.

Corbato 1968, "A paging experiment with the Multics system". A hit sets the mark, a load leaves it clear (as in libCacheSim;
with one access an event the hit counts are equal). The hand passes members of the current wave and leaves their mark, so
that an event's own experts do not lose their second chance to it. A proactive load's first use counts as a hit.
"""

from dataclasses import dataclass
from typing import ClassVar

from rgpu.policies.lists import tight
from rgpu.policies.loop import (
    CAP,
    KEY_OF,
    OWN,
    PIN,
    R0,
    REG,
    WAVE,
    always,
    compiled,
    loop,
    no_event,
    no_wish,
    nothing,
)
from rgpu.policies.policy import Traits

USED_SINCE = OWN  # m[USED_SINCE, key]: 1 after a hit, until the hand comes by; a victim has none
HAND = R0  # register: the slot the hand looks at next


@tight
def touch(m, f, key, hit):
    if hit:
        m[USED_SINCE, key] = 1


@tight
def victim(m, f):
    slot = m[REG, HAND] if m[REG, HAND] < m[REG, CAP] else 0
    while True:
        key = m[KEY_OF, slot]
        if key >= 0 and m[PIN, key] != m[REG, WAVE]:
            if m[USED_SINCE, key] == 0:
                break
            m[USED_SINCE, key] = 0
        slot += 1
        if slot == m[REG, CAP]:
            slot = 0
    m[REG, HAND] = slot + 1 if slot + 1 < m[REG, CAP] else 0
    return slot


@compiled
def run(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog):
    loop(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog,
         no_event, always, victim, nothing, nothing, touch, no_wish)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Clock:
    """Second chance; no parameters."""

    name: ClassVar[str] = "clock"
    traits: ClassVar[Traits] = Traits(rows=1)
    run: ClassVar = staticmethod(run)
