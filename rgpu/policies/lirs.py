"""LIRS: keep who comes back soon (LIR); who has shown a long or no reuse distance (HIR) passes through a few slots.

Jiang and Zhang 2002, "LIRS: an efficient low inter-reference recency set replacement policy" (SIGMETRICS). Stack S orders
LIR and recently used HIR, resident or not, by last use, its bottom always LIR; queue Q holds the resident HIR. `hir` of
the slots are HIR (at least one). A hit or a miss of a HIR that is still on S makes it LIR, and S's bottom becomes HIR at
Q's end; other HIR go to the top of S and the end of Q. The victim is Q's front; if still on S it stays there as a ghost. S is
not bounded: a pool has few experts outside.

Event-atomic: where the current wave pins all of Q (an event with more misses than HIR slots) the victim is the LIR lowest on
S, and its place is not refilled by the miss: experts become LIR at loading only while the pool first fills; later by
reuse alone. Misses are touched in touch order with their standing unchanged. A proactive load's first use counts as a hit.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rgpu.errors import InputError
from rgpu.policies.lists import (
    LINKED,
    drop_tail,
    length,
    move_front,
    newer,
    oldest_free,
    on_list,
    push_front,
    remove,
    tail,
    tight,
)
from rgpu.policies.loop import (
    CAP,
    OWN,
    PIN,
    R0,
    REG,
    SLOT_OF,
    USED,
    WAVE,
    always,
    compiled,
    loop,
    no_event,
    no_wish,
)
from rgpu.policies.policy import Setting, Traits

S, Q, ONLY = OWN, OWN + LINKED, 1  # two families of one list each; resident and not on Q: LIR
LIR_SHARE = R0  # register: slots that LIR may take


@tight
def prune(m):
    """Take what is not LIR off the bottom of S."""
    key = tail(m, S, ONLY)
    while key >= 0 and (m[SLOT_OF, key] < 0 or on_list(m, Q, key)):
        remove(m, S, key)
        key = tail(m, S, ONLY)


@tight
def demote(m):
    """Turn the bottom of S into HIR while there are too many LIR."""
    prune(m)
    while m[REG, USED] - length(m, Q, ONLY) > m[REG, LIR_SHARE]:
        push_front(m, Q, ONLY, drop_tail(m, S, ONLY))
        prune(m)


@tight
def climb(m, key):
    """To the top of S, from inside or outside."""
    if on_list(m, S, key):
        move_front(m, S, ONLY, key)
    else:
        push_front(m, S, ONLY, key)


@tight
def touch(m, f, key, hit):
    if not on_list(m, Q, key):
        bottom = tail(m, S, ONLY) == key
        move_front(m, S, ONLY, key)
        if bottom:
            prune(m)
    elif hit and on_list(m, S, key):
        move_front(m, S, ONLY, key)
        remove(m, Q, key)
        demote(m)
    else:
        climb(m, key)
        move_front(m, Q, ONLY, key)


@tight
def arrive(m, f, key):
    if on_list(m, S, key):
        move_front(m, S, ONLY, key)
        demote(m)
    else:
        push_front(m, S, ONLY, key)
        if m[REG, USED] > m[REG, LIR_SHARE]:
            push_front(m, Q, ONLY, key)


@tight
def leave(m, f, key):
    if on_list(m, Q, key):
        remove(m, Q, key)
    elif tail(m, S, ONLY) == key:
        remove(m, S, key)
        prune(m)


@tight
def victim(m, f):
    key = oldest_free(m, Q, ONLY)
    if key < 0:
        key = tail(m, S, ONLY)
        while m[SLOT_OF, key] < 0 or m[PIN, key] == m[REG, WAVE]:
            key = newer(m, S, key)
    return m[SLOT_OF, key]


@compiled
def run(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog):
    loop(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog,
         no_event, always, victim, leave, arrive, touch, no_wish)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Lirs:
    """`hir`: share of the slots for experts without a short reuse distance."""

    hir: float = 0.01
    name: ClassVar[str] = "lirs"
    traits: ClassVar[Traits] = Traits(rows=2 * LINKED)
    run: ClassVar = staticmethod(run)

    def __post_init__(self) -> None:
        if not 0 < self.hir <= 1:
            raise InputError(f"policy.hir: got {self.hir}; expected a share above 0, at most 1; set policy.hir=0.01")

    def prepare(self, setting: Setting) -> None:
        for m, f in zip(setting.m, setting.f, strict=True):
            self.resized(m, f)

    def resized(self, m: np.ndarray, f: np.ndarray) -> None:
        m[REG, LIR_SHARE] = m[REG, CAP] - max(1, int(self.hir * m[REG, CAP]))
