"""LFRU: evict the expert with the fewest uses per time since its last use (uses / age). Ties to the least recent.

Source: the frequency-recency score of tinyserve (github.com/e1n00r/tinyserve) and vLLM pull request 37190, and of Zhang
2026 (arXiv 2608.07911, moe-cache-eval). Kept: the score. The line disagrees on whether a count outlives eviction:
`forget=true` is tinyserve's (counted while resident), `forget=false` Zhang's. Differs: age is in ticks of the pool's clock,
one for each access and one for each load, and members of the event are pinned.
"""

from dataclasses import dataclass
from typing import ClassVar

from rgpu.policies.heap import HEAP_FROM
from rgpu.policies.hooks import lean
from rgpu.policies.levels import eldest, level_rows, link, next_free, unlink, younger
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
    no_event,
    no_wish,
)
from rgpu.policies.policy import Setting, Traits

COUNT, LAST, LISTS = OWN, OWN + 1, OWN + 2  # uses; clock of the last use or load; lists by count, for large pools
LEVELS = 42  # the last list holds every count from there on
FORGET = R0


@lean
def place(m, key):
    if m[REG, MADE] >= HEAP_FROM:
        link(m, LISTS, min(m[COUNT, key], LEVELS) - 1, key)


@lean
def arrive(m, f, key):
    if m[REG, FORGET] or m[COUNT, key] == 0:
        m[COUNT, key] = 1
    else:
        m[COUNT, key] += 1
    m[LAST, key] = m[REG, CLOCK]
    place(m, key)


@lean
def touch(m, f, key, hit):
    if hit:
        m[COUNT, key] += 1
    m[LAST, key] = m[REG, CLOCK]
    place(m, key)


@lean
def leave(m, f, key):
    if m[REG, MADE] >= HEAP_FROM:
        unlink(m, LISTS, key)


@lean
def worse(m, a, b):
    """Whether key a scores lower than key b, or the same and was used longer ago."""
    now = m[REG, CLOCK] + 1
    left = m[COUNT, a] * (now - m[LAST, b])
    right = m[COUNT, b] * (now - m[LAST, a])
    return left < right or (left == right and m[LAST, a] < m[LAST, b])


@lean
def victim(m, f):
    out = -1
    if m[REG, MADE] < HEAP_FROM:
        for c in range(m[REG, CAP]):
            key = m[KEY_OF, c]
            if key >= 0 and m[PIN, key] != m[REG, WAVE] and (out < 0 or worse(m, key, out)):
                out = key
        return m[SLOT_OF, out]
    for level in range(LEVELS):  # of equal counts the oldest scores lowest
        key = next_free(m, LISTS, eldest(m, LISTS, level))
        if key >= 0 and (out < 0 or worse(m, key, out)):
            out = key
    now = m[REG, CLOCK] + 1
    key = next_free(m, LISTS, eldest(m, LISTS, LEVELS - 1))
    while key >= 0 and LEVELS * (now - m[LAST, out]) <= m[COUNT, out] * (now - m[LAST, key]):
        if worse(m, key, out):  # counts differ here: go on while the smallest of them could still lose
            out = key
        key = next_free(m, LISTS, younger(m, LISTS, key))
    return m[SLOT_OF, out]


@compiled
def run(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog):
    loop(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog,
         no_event, always, victim, leave, arrive, touch, no_wish)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Lfru:
    """`forget`: a count starts anew when its expert is loaded again."""

    forget: bool = True
    name: ClassVar[str] = "lfru"
    traits: ClassVar[Traits] = Traits(rows=2 + level_rows(LEVELS))
    run: ClassVar = staticmethod(run)

    def prepare(self, setting: Setting) -> None:
        setting.m[:, REG, FORGET] = self.forget
