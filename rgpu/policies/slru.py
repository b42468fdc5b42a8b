"""Segmented LRU: an expert must be hit to rise a segment; only the lowest segment is evicted from.

Karedla, Love and Wherry 1994, "Caching strategies to improve disk system performance" (two segments: probationary and
protected). A miss enters at the head of the lowest segment, a hit moves to the head of the next one up; a segment above its
share hands its least recent member down to the head of the one below. Shares are the pool's slots // `segments`; the
lowest takes what is left. With `spill`, as libCacheSim does, misses of a pool that is not yet full enter the lowest segment
with room. The victim is the least recent member of the lowest segment that the current wave does not pin. Misses are
touched in touch order within their segment. A proactive load's first use counts as a hit.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rgpu.errors import InputError
from rgpu.policies.lists import LINKED, length, move_front, oldest_free, on_list, push_front, remove, tail, tight
from rgpu.policies.loop import (
    CAP,
    OWN,
    R0,
    R1,
    R2,
    REG,
    SLOT_OF,
    always,
    compiled,
    loop,
    no_event,
    no_wish,
    nothing,
)
from rgpu.policies.policy import Setting, Traits

L = OWN  # lists 1 .. segments, the lowest first
SEGMENTS, SHARE, SPILL = R0, R1, R2  # registers


@tight
def touch(m, f, key, hit):
    q = on_list(m, L, key)
    if hit and q < m[REG, SEGMENTS]:
        q += 1
    move_front(m, L, q, key)
    while q > 1 and length(m, L, q) > m[REG, SHARE]:
        q -= 1
        move_front(m, L, q, tail(m, L, q + 1))


@tight
def arrive(m, f, key):
    q = 1
    if m[REG, SPILL]:
        while q < m[REG, SEGMENTS] and length(m, L, q) >= m[REG, SHARE]:
            q += 1
        if length(m, L, q) >= m[REG, SHARE]:
            q = 1
    push_front(m, L, q, key)


@tight
def victim(m, f):
    q = 1
    key = oldest_free(m, L, q)
    while key < 0:
        q += 1
        key = oldest_free(m, L, q)
    remove(m, L, key)
    return m[SLOT_OF, key]


@compiled
def run(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog):
    loop(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog,
         no_event, always, victim, nothing, arrive, touch, no_wish)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Slru:
    """`segments`: 2 to 4 equal segments; `spill`: fill an empty pool from the lowest segment up."""

    segments: int = 2
    spill: bool = False
    name: ClassVar[str] = "slru"
    traits: ClassVar[Traits] = Traits(rows=LINKED)
    run: ClassVar = staticmethod(run)

    def __post_init__(self) -> None:
        if not 2 <= self.segments <= 4:
            raise InputError(f"policy.segments: got {self.segments}; expected 2, 3 or 4; set policy.segments=2")

    def prepare(self, setting: Setting) -> None:
        setting.m[:, REG, SEGMENTS], setting.m[:, REG, SPILL] = self.segments, self.spill
        for m, f in zip(setting.m, setting.f, strict=True):
            self.resized(m, f)

    def resized(self, m: np.ndarray, f: np.ndarray) -> None:
        m[REG, SHARE] = m[REG, CAP] // self.segments
