"""Decayed LFU: evict the expert with the lowest count of uses, each use worth half after `half_life` events. Ties: lowest slot.

Source: LFU with aging (Robinson and Devarakonda 1990; Lee et al. 2001, "LRFU", spans LFU to LRU by the half-life), the
"decayed LFU" of MoE offloading simulators (microsoft/onnxruntime pull request 32261). Kept: exponential fading of counts,
which survive eviction. Differs: forward decay in whole numbers of 40 bits (fading.py), so no count is ever swept.
"""

from dataclasses import dataclass
from typing import ClassVar

from rgpu.errors import InputError
from rgpu.policies.fading import grown, start_clock, tick
from rgpu.policies.heap import HEAP_FROM, HEAP_ROWS, drop, first, track
from rgpu.policies.hooks import lean
from rgpu.policies.loop import (
    EVENT,
    MADE,
    OWN,
    REG,
    SLOT_OF,
    always,
    compiled,
    loop,
    no_access,
    no_wish,
)
from rgpu.policies.policy import Setting, Traits

SCORE = OWN  # m[SCORE, key]: fading count of uses
HEAP = OWN + 1
FADE = 0  # f[FADE]: the clock


@lean
def count(m, f, keys, weights, feature):
    tick(f, FADE, m[REG, EVENT])
    for j in range(keys.shape[0]):
        key = keys[j]
        m[SCORE, key] = grown(m[SCORE, key], f, FADE, 1.0)
        if m[REG, MADE] >= HEAP_FROM and m[SLOT_OF, key] >= 0:
            track(m, HEAP, m, SCORE, SLOT_OF, key)


@lean
def arrive(m, f, key):
    track(m, HEAP, m, SCORE, SLOT_OF, key)


@lean
def leave(m, f, key):
    drop(m, HEAP, m, SCORE, SLOT_OF, key)


@lean
def victim(m, f):
    return first(m, HEAP, SCORE)


@compiled
def run(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog):
    loop(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog,
         count, always, victim, leave, arrive, no_access, no_wish)  # fmt: skip


@dataclass(frozen=True, slots=True)
class LfuDecayed:
    """`half_life`: events of the pool after which a use is worth half (a pool of L layers sees L events a pass)."""

    half_life: int = 64
    name: ClassVar[str] = "lfu_decayed"
    traits: ClassVar[Traits] = Traits(rows=1 + HEAP_ROWS, frows=1)
    run: ClassVar = staticmethod(run)

    def __post_init__(self) -> None:
        if self.half_life < 1:
            raise InputError(f"policy.half_life: got {self.half_life}; expected events from 1; set policy.half_life=64")

    def prepare(self, setting: Setting) -> None:
        start_clock(setting.f, FADE, self.half_life)
