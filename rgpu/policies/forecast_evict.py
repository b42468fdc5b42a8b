"""Forecast eviction: the expert least likely to be needed within the next `horizon` passes goes. Ties: see below.

Source: eviction by need within the reuse horizon, as prediction-led MoE caches do (ProMoE arXiv 2410.22134, FlashMoE arXiv
2601.17063), with a hit-probability table by age as in LHD (Beckmann et al., NSDI 2018). Kept: the target, the probability
of need within a horizon. Differs: no network; the probability is a calibrated table P(needed | age, count) over buckets of
passes since the last use and of the fading count at that use against an even share of uses, one table a pool, pulled to
its age's mean where samples are few. In pools that are not small, residents sit in a list for each bucket and move on
as they age, so a victim costs a look at the buckets. Equal chances: the older bucket, then
the rarer; within a bucket the least recent.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rgpu.errors import InputError
from rgpu.policies.fading import (
    AGE_BUCKETS,
    USE_BUCKETS,
    age_bucket,
    even_share,
    grown,
    log2_now,
    start_clock,
    tick_pass,
    use_bucket,
)
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
from rgpu.policies.reuse import reuse_samples

# Fading count; event and clock of the last use; count bucket then; buckets, worst first, and the rank of each; their lists
COUNT, LAST, TURN, USED, CELLS, RANKS, LISTS = OWN, OWN + 1, OWN + 2, OWN + 3, OWN + 4, OWN + 6, OWN + 8
FADE, EVEN = 0, 1  # f[FADE]: the clock, in passes; f[EVEN, 0]: log2 of the count that an even share of uses gives
HALF = USE_BUCKETS * AGE_BUCKETS // 2  # buckets in each of the two rows at CELLS and RANKS
LAYERS, AGED = R0, R1  # layers of the pool; event up to which residents have moved on
PULL = 4.0  # samples that an age's mean counts for


@lean
def count(m, f, keys, weights, feature):
    tick_pass(m, f, FADE, m[REG, LAYERS])
    for j in range(keys.shape[0]):
        m[COUNT, keys[j]] = grown(m[COUNT, keys[j]], f, FADE, 1.0)


@lean
def arrive(m, f, key):
    m[LAST, key] = m[REG, EVENT]
    m[TURN, key] = m[REG, CLOCK]
    m[USED, key] = use_bucket(log2_now(m[COUNT, key], f, FADE), f[EVEN, 0])
    if m[REG, MADE] >= LISTS_FROM:
        link(m, LISTS, m[USED, key] * AGE_BUCKETS, key)


@lean
def touch(m, f, key, hit):
    arrive(m, f, key)


@lean
def leave(m, f, key):
    if m[REG, MADE] >= LISTS_FROM:
        unlink(m, LISTS, key)


@lean
def aged(m, key):
    """Age bucket now."""
    age = m[REG, EVENT] - m[LAST, key]
    if m[REG, LAYERS] > 1:
        age = (age + m[REG, LAYERS] - 1) // m[REG, LAYERS]
    return age_bucket(age)


@lean
def move_on(m):
    """Residents whose age has outgrown their bucket, oldest buckets first so that every list stays in order of use."""
    for cell in range(USE_BUCKETS * AGE_BUCKETS - 1, -1, -1):
        if cell % AGE_BUCKETS == AGE_BUCKETS - 1:
            continue
        key = eldest(m, LISTS, cell)
        while key >= 0:
            bucket = aged(m, key)
            if bucket <= cell % AGE_BUCKETS:
                break
            link(m, LISTS, cell - cell % AGE_BUCKETS + bucket, key)
            key = eldest(m, LISTS, cell)
    m[REG, AGED] = m[REG, EVENT]


@lean
def victim(m, f):
    out = -1
    if m[REG, MADE] < LISTS_FROM:
        worst = 0
        for c in range(m[REG, CAP]):
            key = m[KEY_OF, c]
            if key >= 0 and m[PIN, key] != m[REG, WAVE]:
                cell = m[USED, key] * AGE_BUCKETS + aged(m, key)
                rank = m[RANKS + cell // HALF, cell % HALF]
                if out < 0 or rank < worst or (rank == worst and m[TURN, key] < m[TURN, out]):
                    worst = rank
                    out = key
        return m[SLOT_OF, out]
    if m[REG, AGED] != m[REG, EVENT]:
        move_on(m)
    for i in range(USE_BUCKETS * AGE_BUCKETS):
        out = next_free(m, LISTS, eldest(m, LISTS, m[CELLS + i // HALF, i % HALF]))
        if out >= 0:
            break
    return m[SLOT_OF, out]


@compiled
def run(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog):
    loop(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog,
         count, always, victim, leave, arrive, touch, no_wish)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ForecastEvict:
    """`horizon`: passes within which a need counts; `half_life`: passes after which a use counts half."""

    horizon: int = 8
    half_life: int = 64
    name: ClassVar[str] = "forecast_evict"
    traits: ClassVar[Traits] = Traits(rows=8 + level_rows(USE_BUCKETS * AGE_BUCKETS), frows=2, calibration=True)
    run: ClassVar = staticmethod(run)

    def __post_init__(self) -> None:
        for name in ("horizon", "half_life"):
            if getattr(self, name) < 1:
                raise InputError(
                    f"policy.{name}: got {getattr(self, name)}; expected passes from 1; set policy.{name}=8"
                )

    def prepare(self, setting: Setting) -> None:
        start_clock(setting.f, FADE, self.half_life)
        needed, total, _ = reuse_samples(setting.calibration, self.half_life, self.horizon, self.horizon)
        setting.f[:, EVEN, 0] = even_share(setting.shape.top_k, setting.shape.experts, self.half_life)
        age = np.tile(np.arange(AGE_BUCKETS), USE_BUCKETS)
        for p in range(len(setting.m)):
            mine = setting.pool_of == p
            setting.m[p, REG, LAYERS] = mine.sum()
            n, k = total[mine].sum(0), needed[mine].sum(0)
            mean = k.sum(0) / np.maximum(n.sum(0), 1)
            chance = ((k + PULL * mean) / (n + PULL)).ravel()
            order = np.lexsort((np.arange(len(chance)), -age, chance))
            setting.m[p, CELLS : CELLS + 2, :HALF] = order.reshape(2, HALF)
            setting.m[p, RANKS : RANKS + 2, :HALF] = np.argsort(order).reshape(2, HALF)
