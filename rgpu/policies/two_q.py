"""2Q, full version: first-timers wait in a short FIFO; only who comes back after leaving it enters the LRU list.

Johnson and Shasha 1994, "2Q: a low overhead high performance buffer management replacement algorithm". A1in (FIFO of
residents, `a1in` of the slots), A1out (ghosts, as many as `a1out` of the slots), Am (LRU). A miss found on A1out enters Am,
any other A1in; a hit in A1in changes nothing, one in Am moves it to the head. The victim is A1in's oldest where A1in is
above its share (it becomes a ghost), else Am's least recent (it does not); where the current wave pins all of that list,
the other gives the victim. Misses that entered Am are touched in touch order. A proactive load enters as a miss would.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rgpu.errors import InputError
from rgpu.policies.lists import LINKED, drop_tail, length, move_front, oldest_free, on_list, push_front, remove, tight
from rgpu.policies.loop import CAP, OWN, R0, R1, REG, SLOT_OF, always, compiled, loop, no_event, no_wish
from rgpu.policies.policy import Setting, Traits

L, A1IN, A1OUT, AM = OWN, 1, 2, 3
IN_SHARE, OUT_SHARE = R0, R1  # registers: how long A1in and A1out may grow


@tight
def touch(m, f, key, hit):
    if on_list(m, L, key) == AM:
        move_front(m, L, AM, key)


@tight
def arrive(m, f, key):
    if on_list(m, L, key) == A1OUT:
        move_front(m, L, AM, key)
    else:
        push_front(m, L, A1IN, key)
    while length(m, L, A1OUT) > m[REG, OUT_SHARE]:
        drop_tail(m, L, A1OUT)


@tight
def leave(m, f, key):
    if on_list(m, L, key) == A1IN:
        move_front(m, L, A1OUT, key)
    else:
        remove(m, L, key)


@tight
def victim(m, f):
    first = A1IN if length(m, L, A1IN) > m[REG, IN_SHARE] else AM
    key = oldest_free(m, L, first)
    if key < 0:
        key = oldest_free(m, L, A1IN + AM - first)
    return m[SLOT_OF, key]


@compiled
def run(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog):
    loop(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog,
         no_event, always, victim, leave, arrive, touch, no_wish)  # fmt: skip


@dataclass(frozen=True, slots=True)
class TwoQ:
    """`a1in`: share of the slots for first-timers; `a1out`: ghosts remembered, as a share of the slots."""

    a1in: float = 0.25
    a1out: float = 0.5
    name: ClassVar[str] = "two_q"
    traits: ClassVar[Traits] = Traits(rows=LINKED)
    run: ClassVar = staticmethod(run)

    def __post_init__(self) -> None:
        if not 0 < self.a1in <= 1:
            raise InputError(f"policy.a1in: got {self.a1in}; expected a share above 0, at most 1; set policy.a1in=0.25")
        if self.a1out <= 0:
            raise InputError(f"policy.a1out: got {self.a1out}; expected a share above 0; set policy.a1out=0.5")

    def prepare(self, setting: Setting) -> None:
        for m, f in zip(setting.m, setting.f, strict=True):
            self.resized(m, f)

    def resized(self, m: np.ndarray, f: np.ndarray) -> None:
        m[REG, IN_SHARE] = max(1, int(self.a1in * m[REG, CAP]))
        m[REG, OUT_SHARE] = max(1, int(self.a1out * m[REG, CAP]))
