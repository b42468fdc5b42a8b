"""Class LRU: eight frequency classes, each a list by last use; evict the head whose age is the most for its class.

Source: the dynamic expert cache of llama.cpp (`--moe-cache-mib`, src/llama-moe-cache.cpp at commit c4fb5796, 2026), known
here by its description: 8 classes, a score of recency and frequency, half-life 128 tokens. Kept: those. The arithmetic is
ours: an expert's class is floor(log2) of its fading count of uses at its last one (with a half-life of 128 a count cannot
pass 185, so eight classes hold it), and the head with the largest age / 2 ** class goes, ties to the lower class. Counts
survive eviction; ages are in ticks of the pool's clock.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rgpu.errors import InputError
from rgpu.policies.fading import grown, log2_now, start_clock, tick_pass
from rgpu.policies.hooks import lean
from rgpu.policies.levels import LISTS_FROM, eldest, level_rows, link, next_free, unlink
from rgpu.policies.loop import (
    CAP,
    CLOCK,
    KEY_OF,
    MADE,
    OWN,
    PIN,
    R0,
    REG,
    SLOT_OF,
    WAVE,
    always,
    compiled,
    loop,
    no_wish,
)
from rgpu.policies.policy import Setting, Traits

COUNT, LAST, CLASS, LISTS = OWN, OWN + 1, OWN + 2, OWN + 3
CLASSES = 8
FADE = 0  # f[FADE]: the clock, in passes
LAYERS = R0


@lean
def count(m, f, keys, weights, feature):
    tick_pass(m, f, FADE, m[REG, LAYERS])
    for j in range(keys.shape[0]):
        m[COUNT, keys[j]] = grown(m[COUNT, keys[j]], f, FADE, 1.0)


@lean
def arrive(m, f, key):
    m[LAST, key] = m[REG, CLOCK]
    m[CLASS, key] = max(0, min(CLASSES - 1, int(log2_now(m[COUNT, key], f, FADE))))
    if m[REG, MADE] >= LISTS_FROM:
        link(m, LISTS, m[CLASS, key], key)


@lean
def touch(m, f, key, hit):
    arrive(m, f, key)


@lean
def leave(m, f, key):
    if m[REG, MADE] >= LISTS_FROM:
        unlink(m, LISTS, key)


@lean
def victim(m, f):
    slot = -1
    most = -1
    level = 0
    now = m[REG, CLOCK] + 1
    if m[REG, MADE] < LISTS_FROM:
        for c in range(m[REG, CAP]):
            key = m[KEY_OF, c]
            if key >= 0 and m[PIN, key] != m[REG, WAVE]:
                age = ((now - m[LAST, key]) << CLASSES) >> m[CLASS, key]
                if age > most or (age == most and m[CLASS, key] < level):
                    most = age
                    level = m[CLASS, key]
                    slot = c
        return slot
    for level in range(CLASSES):
        key = next_free(m, LISTS, eldest(m, LISTS, level))
        if key >= 0:
            age = ((now - m[LAST, key]) << CLASSES) >> level
            if age > most:
                most = age
                slot = m[SLOT_OF, key]
    return slot


@compiled
def run(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog):
    loop(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog,
         count, always, victim, leave, arrive, touch, no_wish)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ClassLru:
    """`half_life`: passes (tokens, while decoding) after which a use counts half."""

    half_life: int = 128
    name: ClassVar[str] = "class_lru"
    traits: ClassVar[Traits] = Traits(rows=3 + level_rows(CLASSES), frows=1)
    run: ClassVar = staticmethod(run)

    def __post_init__(self) -> None:
        if self.half_life < 1:
            raise InputError(
                f"policy.half_life: got {self.half_life}; expected passes from 1; set policy.half_life=128"
            )

    def prepare(self, setting: Setting) -> None:
        start_clock(setting.f, FADE, self.half_life)
        setting.m[:, REG, LAYERS] = np.bincount(setting.pool_of, minlength=len(setting.m))
