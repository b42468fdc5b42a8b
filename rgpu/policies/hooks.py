"""Victim searches and random draws that several policies share. Ties go to the lowest slot."""

import numpy as np
from numba import njit

from rgpu.policies.loop import (
    CAP,
    CLOCK,
    EVENT,
    KEY_OF,
    NEVER,
    OPTIONS,
    PIN,
    PINNED,
    POOL,
    REG,
    SEED,
    SLOT_OF,
    USED,
    WANT,
    WAVE,
    hook,
)

DRAWN_FROM, DRAWS = 128, 64  # slots from which a victim at random is not counted off; draws before it is after all

# A hook that does not count references to the state (it must allocate nothing): where hooks call hooks that are too large
# to be inlined, the atomic counts of array arguments cost as much as the decision.
lean = njit(**{**OPTIONS, "_nrt": False})


@hook
def oldest(m, row):
    """Slot whose key has the smallest m[row, key] among the evictable ones."""
    best = NEVER + 1
    slot = -1
    wave = m[REG, WAVE]
    for c in range(m[REG, CAP]):
        key = m[KEY_OF, c]
        if key >= 0 and m[row, key] < best and m[PIN, key] != wave:
            best = m[row, key]
            slot = c
    return slot


@hook
def lowest(m, f, row):
    """Slot whose key has the smallest f[row, key] among the evictable ones."""
    best = np.inf
    slot = -1
    wave = m[REG, WAVE]
    for c in range(m[REG, CAP]):
        key = m[KEY_OF, c]
        if key >= 0 and m[PIN, key] != wave and (slot < 0 or f[row, key] < best):
            best = f[row, key]
            slot = c
    return slot


@hook
def draw(m, n, again=0):
    """Whole number in [0, n): a hash of (seed, pool, event, clock, again), so that live and replay draw the same.

    32-bit multiply-xorshift steps (Wellons, "hash-prospector", 2018), masked so that plain Python gives the same bits.
    """
    x = (int(m[REG, SEED]) * 0x9E3779B1 + int(m[REG, POOL]) * 0x85EBCA77) & 0xFFFFFFFF
    x = (
        x ^ ((int(m[REG, EVENT]) * 0xC2B2AE3D) & 0xFFFFFFFF) ^ ((int(m[REG, CLOCK]) * 0x27D4EB2F) & 0xFFFFFFFF)
    ) & 0xFFFFFFFF
    x ^= (int(again) * 0x165667B1) & 0xFFFFFFFF
    for _ in range(2):
        x ^= x >> 16
        x = (x * 0x7FEB352D) & 0xFFFFFFFF
        x ^= x >> 15
        x = (x * 0x846CA68B) & 0xFFFFFFFF
        x ^= x >> 16
    return x % n


@hook
def random_slot(m):
    """An evictable slot, each equally likely. Of a large pool slots are drawn until one is: nearly always the first."""
    if m[REG, CAP] >= DRAWN_FROM:
        for again in range(DRAWS):
            slot = draw(m, m[REG, CAP], again)
            key = m[KEY_OF, slot]
            if key >= 0 and m[PIN, key] != m[REG, WAVE]:
                return slot
    left = draw(m, m[REG, USED] - m[REG, PINNED])
    slot = -1
    for c in range(m[REG, CAP]):
        key = m[KEY_OF, c]
        if key >= 0 and m[PIN, key] != m[REG, WAVE]:
            if left == 0:
                slot = c
                break
            left -= 1
    return slot


@hook
def below(m, f, row, score):
    """How many evictable residents score less than `score` in f[row]."""
    count = 0
    for c in range(m[REG, CAP]):
        key = m[KEY_OF, c]
        if key >= 0 and m[PIN, key] != m[REG, WAVE] and f[row, key] < score:
            count += 1
    return count


@hook
def beats(m, f, row, key):
    """Whether `key` deserves a slot: one is free, or an evictable resident scores less."""
    return m[REG, USED] < m[REG, CAP] or below(m, f, row, f[row, key]) > 0


@hook
def wish_by_score(m, f, row, first, experts, floor):
    """Fill m[WANT] with the non-resident keys of [first, first + experts) that outscore evictable residents, best first.

    Each wish must have a resident of its own to replace (or a free slot); scores at or under `floor` are never wished.
    """
    free = m[REG, CAP] - m[REG, USED]
    n = 0
    last = np.inf
    at = first - 1
    while True:  # next in falling order of score, ties by lowest key; few are looked at, so no sort
        best = floor
        key = -1
        for k in range(first, first + experts):
            after = f[row, k] < last or (f[row, k] == last and k > at)
            if after and f[row, k] > best:
                best = f[row, k]
                key = k
        if key < 0:
            break
        last = best
        at = key
        if m[SLOT_OF, key] >= 0:
            continue
        if n >= free and below(m, f, row, best) < n - free + 1:
            break
        m[WANT, n] = key
        n += 1
    return n
