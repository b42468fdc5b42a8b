"""LRU-K: evict the expert whose K-th last use is longest ago; who has had fewer uses goes first, least recent first.

O'Neil, O'Neil and Weikum 1993, "The LRU-K page replacement algorithm for database disk buffering" (SIGMOD), figure 2.1.
Uses are ordered by the loop's clock, periods counted in events. A use within `correlated` events of the last one does not
count as another, and such an expert is spared while others can be evicted; the event itself is always a correlated
period, because the loop pins its members. History outlives eviction for `retained` events (null: always, which the few experts
of a pool allow; 0: libCacheSim's way, equal hit counts with one access an event). Ties, which need K > 2 and a correlated
period, go to the lowest slot. Unlike the lists of the other queue policies the order of K-th uses needs a heap: a victim
costs the logarithm of a large pool. A proactive load is not a use, but ranks as recent among those with fewer than K.
"""

from dataclasses import dataclass
from typing import ClassVar

from rgpu.errors import InputError
from rgpu.policies.heap import HEAP_FROM, HEAP_ROWS, WHOLE, drop, remove, settle, smallest, track
from rgpu.policies.lists import tight
from rgpu.policies.loop import (
    CAP,
    CLOCK,
    EVENT,
    KEY_OF,
    MADE,
    NEVER,
    OWN,
    PIN,
    R0,
    R1,
    R2,
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

# Rows: what the victim has least of; clock and event of the last use; keys a search sets aside; then the heap's; and from
# HISTORY on K rows: clocks of the last K uncorrelated uses, 0 where there were fewer.
RANK, LAST, LAST_EVENT, ASIDE, HEAP = range(OWN, OWN + 5)
HISTORY = HEAP + HEAP_ROWS
K, CORRELATED, RETAINED = R0, R1, R2  # registers


@tight
def rank(m, key, now):
    oldest = m[HISTORY + m[REG, K] - 1, key]
    m[RANK, key] = oldest if oldest > 0 else now - NEVER
    track(m, HEAP, m, RANK, SLOT_OF, key)


@tight
def in_correlated_period(m, key):
    return m[HISTORY, key] > 0 and m[REG, EVENT] - m[LAST_EVENT, key] <= m[REG, CORRELATED]


@tight
def touch(m, f, key, hit):
    now = m[REG, CLOCK]
    if not (hit and in_correlated_period(m, key)):
        spell = m[LAST, key] - m[HISTORY, key] if hit else 0  # a correlated period counts as one moment, its end
        for i in range(HISTORY + m[REG, K] - 1, HISTORY, -1):
            m[i, key] = m[i - 1, key] + spell if m[i - 1, key] > 0 else 0
        m[HISTORY, key] = now
    m[LAST, key] = now
    m[LAST_EVENT, key] = m[REG, EVENT]
    rank(m, key, now)


@tight
def arrive(m, f, key):
    if m[REG, EVENT] - m[LAST_EVENT, key] > m[REG, RETAINED]:
        for i in range(HISTORY, HISTORY + m[REG, K]):
            m[i, key] = 0
    rank(m, key, m[REG, CLOCK])


@tight
def leave(m, f, key):
    drop(m, HEAP, m, RANK, SLOT_OF, key)


@tight
def scan(m, spare):
    """Slot of the lowest rank among the evictable; `spare`: of those outside their correlated period."""
    best = NEVER
    slot = -1
    for c in range(m[REG, CAP]):
        key = m[KEY_OF, c]
        if key >= 0 and m[RANK, key] < best and m[PIN, key] != m[REG, WAVE]:
            if spare and in_correlated_period(m, key):
                continue
            best = m[RANK, key]
            slot = c
    return slot


@tight
def victim(m, f):
    if m[REG, MADE] < HEAP_FROM:
        slot = scan(m, m[REG, CORRELATED] > 0)
        return slot if slot >= 0 else scan(m, False)
    key = smallest(m, HEAP, m, RANK, SLOT_OF, WHOLE, 0)
    n = 0
    while m[REG, CORRELATED] > 0 and key >= 0 and in_correlated_period(m, key):
        remove(m, HEAP, m, RANK, SLOT_OF, WHOLE, key)
        m[ASIDE, n] = key
        n += 1
        key = smallest(m, HEAP, m, RANK, SLOT_OF, WHOLE, 0)
    if key < 0:  # all are in their period: the lowest rank, which surfaced first
        key = m[ASIDE, 0]
    for i in range(n):
        settle(m, HEAP, m, RANK, SLOT_OF, WHOLE, m[ASIDE, i])
    return m[SLOT_OF, key]


@compiled
def run(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog):
    loop(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog,
         no_event, always, victim, leave, arrive, touch, no_wish)  # fmt: skip


@dataclass(frozen=True, slots=True)
class LruK:
    """`k` uses back; `correlated`: events within which uses count as one; `retained`: events that history outlives."""

    k: int = 2
    correlated: int = 0
    retained: int | None = None
    name: ClassVar[str] = "lru_k"
    run: ClassVar = staticmethod(run)

    @property
    def traits(self) -> Traits:
        return Traits(rows=HISTORY - OWN + self.k)

    def __post_init__(self) -> None:
        if self.k < 1:
            raise InputError(f"policy.k: got {self.k}; expected a whole number from 1; set policy.k=2")
        if self.correlated < 0:
            raise InputError(f"policy.correlated: got {self.correlated}; expected at least 0; set policy.correlated=0")
        if self.retained is not None and self.retained < 0:
            raise InputError(
                f"policy.retained: got {self.retained}; expected null or at least 0; set policy.retained=null"
            )

    def prepare(self, setting: Setting) -> None:
        kept = NEVER if self.retained is None else self.retained
        setting.m[:, REG, K], setting.m[:, REG, CORRELATED], setting.m[:, REG, RETAINED] = self.k, self.correlated, kept
