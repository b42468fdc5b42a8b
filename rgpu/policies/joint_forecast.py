"""Joint forecast: the expert that the prefetcher's own forecast finds least likely to be used next goes. Ties: least recent.

Source: eviction and prefetch from one prediction, as in ProMoE (arXiv 2410.22134) and FlashMoE (arXiv 2601.17063), and gap 6
of the field. Kept: one predictor serves both. Differs: no training for it; the forecast is of each layer's next event (for
the layer that just routed: the next pass), so what comes later is left to recency: score = chance + recency / (1 + passes
since the last use). Without a predictor every chance is 0, which leaves LRU.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rgpu.errors import InputError
from rgpu.policies.hooks import lean
from rgpu.policies.loop import (
    CAP,
    CLOCK,
    EVENT,
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
from rgpu.policies.policy import Setting, Traits

LAST, TURN = OWN, OWN + 1  # event and clock of the last use
CHANCE, WEIGHT = 0, 1  # rows of f: what the controller writes; f[WEIGHT, 0]: recency's
LAYERS = R0  # layers of the pool


@lean
def arrive(m, f, key):
    m[LAST, key] = m[REG, EVENT]
    m[TURN, key] = m[REG, CLOCK]


@lean
def touch(m, f, key, hit):
    arrive(m, f, key)


@lean
def victim(m, f):
    slot, best, oldest = -1, np.inf, 0
    for c in range(m[REG, CAP]):
        key = m[KEY_OF, c]
        if key >= 0 and m[PIN, key] != m[REG, WAVE]:
            age = (m[REG, EVENT] - m[LAST, key]) // m[REG, LAYERS]
            score = f[CHANCE, key] + f[WEIGHT, 0] / (1 + age)
            if slot < 0 or score < best or (score == best and m[TURN, key] < oldest):
                slot, best, oldest = c, score, m[TURN, key]
    return slot


@compiled
def run(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog):
    loop(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog,
         no_event, always, victim, nothing, arrive, touch, no_wish)  # fmt: skip


@dataclass(frozen=True, slots=True)
class JointForecast:
    """`recency`: what a use in the last pass adds to a chance."""

    recency: float = 0.1
    name: ClassVar[str] = "joint_forecast"
    traits: ClassVar[Traits] = Traits(rows=2, frows=2, forecast=True)
    run: ClassVar = staticmethod(run)

    def __post_init__(self) -> None:
        if not 0 <= self.recency < np.inf:
            raise InputError(f"policy.recency: got {self.recency}; expected 0 or more; set policy.recency=0.1")

    def prepare(self, setting: Setting) -> None:
        setting.f[:, WEIGHT, 0] = self.recency
        setting.m[:, REG, LAYERS] = np.bincount(setting.pool_of, minlength=len(setting.m))
