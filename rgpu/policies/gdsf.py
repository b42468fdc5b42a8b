"""GDSF: evict the lowest inflation + uses x cost / size; the inflation is the highest score evicted so far. Ties: least recent.

Source: GreedyDual-Size-Frequency (Cherkasova 1998, HP Labs HPL-98-69R1; Cao and Irani 1997 for GreedyDual-Size). Kept: the
score, counts while resident, aging by inflation. Differs: sizes are relative to the pool's smallest expert (equal sizes
give whole numbers), an unknown size counts as 1, members of the event are pinned. `cost=one` counts misses, so that
large experts go first; `cost=bytes` counts traffic, which makes it LFU with dynamic aging (LFU-DA).
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rgpu.errors import InputError
from rgpu.policies.heap import HEAP_ROWS, drop, least, track
from rgpu.policies.hooks import lean
from rgpu.policies.loop import CLOCK, OWN, REG, SIZE, always, compiled, loop, no_event, no_wish
from rgpu.policies.policy import Setting, Traits

COUNT, LAST, HEAP = OWN, OWN + 1, OWN + 2
SCORE, VALUE, INFLATION = 0, 1, 2  # f[SCORE, key]; f[VALUE, key]: cost / size; f[INFLATION, 0]
COSTS = ("one", "bytes")


@lean
def rate(m, f, key):
    m[LAST, key] = m[REG, CLOCK]
    f[SCORE, key] = f[INFLATION, 0] + m[COUNT, key] * f[VALUE, key]
    track(m, HEAP, f, SCORE, LAST, key)


@lean
def arrive(m, f, key):
    m[COUNT, key] = 1
    rate(m, f, key)


@lean
def touch(m, f, key, hit):
    if hit:
        m[COUNT, key] += 1
    rate(m, f, key)


@lean
def leave(m, f, key):
    f[INFLATION, 0] = max(f[INFLATION, 0], f[SCORE, key])
    drop(m, HEAP, f, SCORE, LAST, key)


@lean
def victim(m, f):
    return least(m, HEAP, f, SCORE, LAST)


@compiled
def run(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog):
    loop(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog,
         no_event, always, victim, leave, arrive, touch, no_wish)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Gdsf:
    """`cost` of a miss: "one" (hits count) or "bytes" (traffic counts)."""

    cost: str = "one"
    name: ClassVar[str] = "gdsf"
    traits: ClassVar[Traits] = Traits(rows=2 + HEAP_ROWS, frows=3)
    run: ClassVar = staticmethod(run)

    def __post_init__(self) -> None:
        if self.cost not in COSTS:
            raise InputError(f"policy.cost: got {self.cost!r}; expected one or bytes; choose one")

    def prepare(self, setting: Setting) -> None:
        size = setting.m[:, SIZE].astype(np.float64)
        smallest = np.where(size > 0, size, np.inf).min(axis=1, keepdims=True)
        known = (size > 0) & (self.cost == "one")
        setting.f[:, VALUE] = np.divide(smallest, size, out=np.ones_like(size), where=known)
