"""Gate-score eviction: the expert with the lowest exponentially averaged router score goes. Ties: least recent.

Source: HybriMoE's minus-recent-score cache (arXiv 2504.05897, 2025), S = a score + (1 - a) S, and HOBBIT's gate-score
weighting (arXiv 2411.01433, 2024). Kept: the running average of the router's scores of every expert of the layer, routed or
not. Differs: a is given as a half-life in passes (a = 1 - 2 ** (-1 / half_life)), no top-p cut is made, and where a trace
has gate weights only, experts that were not routed score 0. Held as a forward decay in whole numbers (fading.py).
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rgpu.errors import InputError
from rgpu.policies.fading import grown, start_clock, tick_pass
from rgpu.policies.heap import HEAP_FROM, HEAP_ROWS, drop, least, track
from rgpu.policies.hooks import lean
from rgpu.policies.loop import (
    CLOCK,
    MADE,
    OWN,
    R0,
    R1,
    REG,
    SLOT_OF,
    always,
    compiled,
    loop,
    no_wish,
)
from rgpu.policies.policy import Setting, Traits

SCORE, LAST, HEAP = OWN, OWN + 1, OWN + 2
FADE = 0  # f[FADE]: the clock, in passes
EXPERTS, LAYERS = R0, R1  # experts a layer, layers of the pool


@lean
def score(m, f, keys, weights, feature):
    tick_pass(m, f, FADE, m[REG, LAYERS])
    if keys.shape[0] == 0:
        return
    first = keys[0] // m[REG, EXPERTS] * m[REG, EXPERTS]
    for e in range(m[REG, EXPERTS]):
        if feature[e] > 0:
            key = first + e
            m[SCORE, key] = grown(m[SCORE, key], f, FADE, feature[e])
            if m[REG, MADE] >= HEAP_FROM and m[SLOT_OF, key] >= 0:
                track(m, HEAP, m, SCORE, LAST, key)


@lean
def arrive(m, f, key):
    m[LAST, key] = m[REG, CLOCK]
    track(m, HEAP, m, SCORE, LAST, key)


@lean
def touch(m, f, key, hit):
    m[LAST, key] = m[REG, CLOCK]
    track(m, HEAP, m, SCORE, LAST, key)


@lean
def leave(m, f, key):
    drop(m, HEAP, m, SCORE, LAST, key)


@lean
def victim(m, f):
    return least(m, HEAP, m, SCORE, LAST)


@compiled
def run(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog):
    loop(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog,
         score, always, victim, leave, arrive, touch, no_wish)  # fmt: skip


@dataclass(frozen=True, slots=True)
class GateScore:
    """`half_life`: passes after which a score counts half."""

    half_life: int = 16
    name: ClassVar[str] = "gate_score"
    traits: ClassVar[Traits] = Traits(rows=2 + HEAP_ROWS, frows=1, weights=True, feature="router")
    run: ClassVar = staticmethod(run)

    def __post_init__(self) -> None:
        if self.half_life < 1:
            raise InputError(f"policy.half_life: got {self.half_life}; expected passes from 1; set policy.half_life=16")

    def prepare(self, setting: Setting) -> None:
        start_clock(setting.f, FADE, self.half_life)
        setting.m[:, REG, EXPERTS] = setting.shape.experts
        setting.m[:, REG, LAYERS] = np.bincount(setting.pool_of, minlength=len(setting.m))
