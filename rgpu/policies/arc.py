"""ARC: two LRU lists, seen once (T1) and seen again (T2), whose balance follows which one's ghosts are asked for.

Megiddo and Modha 2003, "ARC: a self-tuning, low overhead replacement cache" (FAST). B1 and B2 remember what T1 and T2 lost.
A miss found on B1 raises T1's target p by max(1, |B2| / |B1|), one found on B2 lowers it by max(1, |B1| / |B2|); either enters
T2, any other miss T1; a hit moves to the head of T2. The victim is T1's least recent where |T1| > p, or |T1| = p and the miss
is on B2, else T2's; where the current wave pins all of that list, the other gives the victim. |T1| + |B1| stays within
the pool's slots c, all four lists within 2c. p moves when the miss is seen, even if the admission plug then turns it away.
Misses are touched in touch order within their list. A proactive load enters as a miss would, but leaves p alone.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rgpu.policies.lists import LINKED, drop_tail, length, move_front, oldest_free, on_list, push_front, tight
from rgpu.policies.loop import CAP, CLOCK, OWN, R0, REG, SLOT_OF, compiled, loop, no_event, no_wish
from rgpu.policies.policy import Traits

L, T1, T2, B1, B2 = OWN, 1, 2, 3, 4
P = 0  # f[P, 0]: target length of T1
ON_B2 = R0  # register: clock + 1 of the last miss seen on B2: equal while that miss is being placed, never after


@tight
def touch(m, f, key, hit):
    move_front(m, L, T2 if hit else on_list(m, L, key), key)


@tight
def adapt(m, f, key):
    """The `admit` hook: keeps every miss, and learns from it."""
    q = on_list(m, L, key)
    if q >= B1:
        ones, twos = length(m, L, B1), length(m, L, B2)
        if q == B1:
            f[P, 0] = min(float(m[REG, CAP]), f[P, 0] + max(1.0, twos / ones))
        else:
            f[P, 0] = max(0.0, f[P, 0] - max(1.0, ones / twos))
    m[REG, ON_B2] = m[REG, CLOCK] + 1 if q == B2 else 0
    return True


@tight
def arrive(m, f, key):
    if on_list(m, L, key) > 0:
        move_front(m, L, T2, key)
    else:
        push_front(m, L, T1, key)
        # evictions leave both sums alone, so one too many is all there can be, unless the pool has become smaller
        while length(m, L, T1) + length(m, L, B1) > m[REG, CAP]:
            drop_tail(m, L, B1)
        # ... and likewise of all four, of which B2 holds what is too many: the others hold the capacity twice at most
        while length(m, L, T1) + length(m, L, B1) + length(m, L, T2) + length(m, L, B2) > 2 * m[REG, CAP]:
            drop_tail(m, L, B2)


@tight
def leave(m, f, key):
    move_front(m, L, on_list(m, L, key) + 2, key)


@tight
def victim(m, f):
    ones = length(m, L, T1)
    first = T1 if ones > f[P, 0] or (ones == f[P, 0] and m[REG, ON_B2] == m[REG, CLOCK] + 1) else T2
    key = oldest_free(m, L, first)
    if key < 0:
        key = oldest_free(m, L, T1 + T2 - first)
    return m[SLOT_OF, key]


@compiled
def run(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog):
    loop(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog,
         no_event, adapt, victim, leave, arrive, touch, no_wish)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Arc:
    """Adaptive replacement; no parameters."""

    name: ClassVar[str] = "arc"
    traits: ClassVar[Traits] = Traits(rows=LINKED, frows=1)
    run: ClassVar = staticmethod(run)

    def resized(self, m: np.ndarray, f: np.ndarray) -> None:
        f[P, 0] = min(f[P, 0], float(m[REG, CAP]))
