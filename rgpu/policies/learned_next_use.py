"""Learned next use: a small linear model forecasts log2 of the distance to the next use; the farthest goes. Ties: least recent.

Source: the learned next-use predictor of Zhang 2026 (arXiv 2608.07911), whose finding is that such a predictor recovers none
of Belady's gap; compare FlashMoE (arXiv 2601.17063) and LRB (Song et al., NSDI 2020). Kept: the target (log distance) and the
features (recency, frequency, layer, gate weight where wanted). Differs: least squares on the calibration split with an
intercept for each layer, one model a pool, recency as floor(log2) of the age, and what an expert's last use says (all but
its age) rounded to 15 levels, each a list by last use: the farthest of a level is its oldest. A fit that finds older
experts due sooner is made again without recency, which is then the tie-break only.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rgpu.errors import InputError
from rgpu.policies.fading import bits, grown, log2_now, start_clock, tick_pass
from rgpu.policies.hooks import lean
from rgpu.policies.levels import LISTS_FROM, eldest, level_rows, link, next_free, unlink
from rgpu.policies.loop import (
    CAP,
    CLOCK,
    EVENT,
    KEY_OF,
    MADE,
    OWN,
    PIN,
    R0,
    R1,
    REG,
    SLOT_OF,
    WAVE,
    always,
    compiled,
    loop,
    no_wish,
)
from rgpu.policies.policy import Setting, Traits
from rgpu.policies.reuse import AGE, COUNT, DISTANCE, ONE, WEIGHT, reuse_samples

# Fading count of uses; event and clock of the last use; level of what it says; lists by it, for pools that are not small
USES, LAST, TURN, SAID, LISTS = OWN, OWN + 1, OWN + 2, OWN + 3, OWN + 4
LEVELS = 15
FADE, GATE, MODEL, BASE = 0, 1, 2, 3  # the clock, in passes; gate weight at the last use; the model; layers' intercepts
BY_AGE, BY_COUNT, BY_WEIGHT, LOW, WIDTH = range(5)  # columns of f[MODEL]: coefficients; the levels' start and width
EXPERTS, LAYERS = R0, R1


@lean
def count(m, f, keys, weights, feature):
    tick_pass(m, f, FADE, m[REG, LAYERS])
    for j in range(keys.shape[0]):
        m[USES, keys[j]] = grown(m[USES, keys[j]], f, FADE, 1.0)
        f[GATE, keys[j]] = weights[j]


@lean
def arrive(m, f, key):
    m[LAST, key] = m[REG, EVENT]
    m[TURN, key] = m[REG, CLOCK]
    said = f[BASE, key // m[REG, EXPERTS]] + f[MODEL, BY_WEIGHT] * f[GATE, key]
    said += f[MODEL, BY_COUNT] * log2_now(m[USES, key], f, FADE)
    m[SAID, key] = max(0, min(LEVELS - 1, int((said - f[MODEL, LOW]) / f[MODEL, WIDTH])))
    if m[REG, MADE] >= LISTS_FROM:
        link(m, LISTS, m[SAID, key], key)


@lean
def touch(m, f, key, hit):
    arrive(m, f, key)


@lean
def leave(m, f, key):
    if m[REG, MADE] >= LISTS_FROM:
        unlink(m, LISTS, key)


@lean
def distance(m, f, key):
    """The forecast, as of now."""
    age = m[REG, EVENT] - m[LAST, key]
    if m[REG, LAYERS] > 1:
        age = (age + m[REG, LAYERS] - 1) // m[REG, LAYERS]
    return (m[SAID, key] + 0.5) * f[MODEL, WIDTH] + f[MODEL, BY_AGE] * bits(max(1, age))


@lean
def victim(m, f):
    out = -1
    farthest = 0.0
    if m[REG, MADE] < LISTS_FROM:
        for c in range(m[REG, CAP]):
            key = m[KEY_OF, c]
            if key >= 0 and m[PIN, key] != m[REG, WAVE]:
                away = distance(m, f, key)
                if out < 0 or away > farthest or (away == farthest and m[TURN, key] < m[TURN, out]):
                    farthest = away
                    out = key
        return m[SLOT_OF, out]
    for level in range(LEVELS):
        key = next_free(m, LISTS, eldest(m, LISTS, level))
        if key >= 0:
            away = distance(m, f, key)
            if out < 0 or away > farthest or (away == farthest and m[TURN, key] < m[TURN, out]):
                farthest = away
                out = key
    return m[SLOT_OF, out]


@compiled
def run(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog):
    loop(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog,
         count, always, victim, leave, arrive, touch, no_wish)  # fmt: skip


def fit(moments_L55: np.ndarray, with_age: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """(coefficients of AGE, COUNT and WEIGHT, intercepts [L]) by least squares on the layers' summed products."""
    layers = len(moments_L55)
    common = [AGE, COUNT, WEIGHT] if with_age else [COUNT, WEIGHT]
    n = len(common)
    left, right = np.zeros((n + layers, n + layers)), np.zeros(n + layers)
    left[:n, :n] = moments_L55.sum(0)[np.ix_(common, common)]
    right[:n] = moments_L55.sum(0)[common, DISTANCE]
    for layer, moments in enumerate(moments_L55):
        left[:n, n + layer] = left[n + layer, :n] = moments[common, ONE]
        left[n + layer, n + layer] = moments[ONE, ONE]
        right[n + layer] = moments[ONE, DISTANCE]
    solved = np.linalg.lstsq(left, right, rcond=None)[0]
    if with_age and solved[0] < 0:
        return fit(moments_L55, with_age=False)
    return np.concatenate([np.zeros(3 - n), solved[:n]]), solved[n:]


@dataclass(frozen=True, slots=True)
class LearnedNextUse:
    """`half_life`: passes after which a use counts half; `cap`: passes beyond which distances are one; `weights`: use the
    gate weight too (the trace must have it)."""

    half_life: int = 64
    cap: int = 128
    weights: bool = False
    name: ClassVar[str] = "learned_next_use"
    run: ClassVar = staticmethod(run)

    @property
    def traits(self) -> Traits:
        return Traits(rows=4 + level_rows(LEVELS), frows=4, calibration=True, weights=self.weights)

    def __post_init__(self) -> None:
        for name, least in (("half_life", 1), ("cap", 2)):
            if getattr(self, name) < least:
                raise InputError(f"policy.{name}: got {getattr(self, name)}; expected passes from {least}; raise it")

    def prepare(self, setting: Setting) -> None:
        if self.weights:
            setting.calibration.require("weights", f"policy {self.name}")
        start_clock(setting.f, FADE, self.half_life)
        setting.m[:, REG, EXPERTS] = setting.shape.experts
        _, _, moments = reuse_samples(setting.calibration, self.half_life, self.cap, self.cap)
        if not self.weights:
            moments[:, WEIGHT] = moments[:, :, WEIGHT] = 0.0
        for p in range(len(setting.m)):
            mine = np.flatnonzero(setting.pool_of == p)
            setting.m[p, REG, LAYERS] = len(mine)
            slope, base = fit(moments[mine])
            sides = np.zeros((len(mine), 5))  # what the last use says, as a sum over the moments' variables
            sides[:, COUNT], sides[:, WEIGHT], sides[:, ONE] = slope[1], slope[2], base
            n = max(1.0, moments[mine, ONE, ONE].sum())
            mean = np.einsum("li,li->", sides, moments[mine, ONE]) / n
            square = np.einsum("li,lij,lj->", sides, moments[mine], sides) / n
            spread = float(np.sqrt(max(0.0, square - mean**2)))
            setting.f[p, MODEL, [BY_AGE, BY_COUNT, BY_WEIGHT]] = slope
            setting.f[p, MODEL, [LOW, WIDTH]] = mean - 2 * spread, max(1e-9, 4 * spread / LEVELS)
            setting.f[p, BASE, setting.base[mine] // setting.shape.experts] = base
