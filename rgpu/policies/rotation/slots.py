"""Slot groups: every head of every layer has slots of its own, and only its own experts make room there.

The pool is full from the start, a layer's share split over its heads; every later arrival replaces a key of the same
layer and head, so shares last. An expert has one slot: a head passes over what another holds.
"""

import numpy as np

from rgpu.policies.loop import CAP, CHANGES, EVENT, KEY_OF, REG, SLOT_OF, USED, WANT, evictable, hook
from rgpu.policies.rotation import state as s


@hook
def weakest(m, f, first, head, stamp, spare_pinned):
    """Slot of the head's lowest-scored key in the layer, or -1; keys marked `stamp` are passed over."""
    score = s.SCORE + s.HEAD_ROWS * head
    best = -1
    for c in range(m[REG, CAP]):
        key = m[KEY_OF, c]
        if key < first or key >= first + m[s.INTS, s.EXPERTS] or m[s.OWNER, key] != head or m[s.MARK, key] == stamp:
            continue
        if (best < 0 or f[score, key] < f[score, m[KEY_OF, best]]) and (not spare_pinned or evictable(m, c)):
            best = c
    return best


@hook
def admit(m, f, key):
    """Keep a miss if a slot may change and some head scores it above the weakest it holds; the widest gap takes it."""
    first = key // m[s.INTS, s.EXPERTS] * m[s.INTS, s.EXPERTS]
    if not m[s.INTS, s.KEEP] or m[s.LEFT, first] <= 0:
        return False
    widest = 0.0
    taker = -1
    for h in range(m[s.INTS, s.HEADS]):
        value = f[s.SCORE + s.HEAD_ROWS * h, key]
        if value < f[s.NUMBERS, s.FLOOR]:
            continue
        gap = 0.0
        if m[REG, USED] < m[REG, CAP]:
            gap = np.inf
        else:
            slot = weakest(m, f, first, h, -1, True)
            if slot >= 0:
                gap = value - f[s.SCORE + s.HEAD_ROWS * h, m[KEY_OF, slot]]
        if gap > widest:
            widest = gap
            taker = h
    m[s.LIVE, s.PHASE] = s.ON_DEMAND
    m[s.LIVE, s.FIRST] = first
    m[s.LIVE, s.HEAD] = taker
    return taker >= 0


@hook
def victim(m, f):
    """The weakest of the head that takes the incoming key; where that is not known, or it has none, of all."""
    first = -1
    head = m[s.LIVE, s.HEAD]
    if m[s.LIVE, s.PHASE] == s.ON_DEMAND:
        first = m[s.LIVE, s.FIRST]
    elif m[s.LIVE, s.PHASE] == s.WISHING:
        while m[s.LIVE, s.AT] < m[s.LIVE, s.WISHES] and m[SLOT_OF, m[WANT, m[s.LIVE, s.AT]]] >= 0:
            m[s.LIVE, s.AT] += 1
        if m[s.LIVE, s.AT] < m[s.LIVE, s.WISHES]:
            first = m[WANT, m[s.LIVE, s.AT]] // m[s.INTS, s.EXPERTS] * m[s.INTS, s.EXPERTS]
            head = m[s.WISH_HEAD, m[s.LIVE, s.AT]]
    slot = -1
    if first >= 0:
        slot = weakest(m, f, first, head, -1, True)
    if slot < 0:
        for c in range(m[REG, CAP]):
            if evictable(m, c):
                value = f[s.SCORE + s.HEAD_ROWS * m[s.OWNER, m[KEY_OF, c]], m[KEY_OF, c]]
                key = m[KEY_OF, slot]
                if slot < 0 or value < f[s.SCORE + s.HEAD_ROWS * m[s.OWNER, key], key]:
                    slot = c
        head = m[s.OWNER, m[KEY_OF, slot]]
    m[s.LIVE, s.HEAD] = head
    return slot


@hook
def arrive(m, f, key):
    if m[REG, EVENT] == 0:  # the initial fill: owners were written when it was planned
        return
    head = max(0, m[s.LIVE, s.HEAD])
    if m[s.LIVE, s.PHASE] == s.WISHING:
        for j in range(m[s.LIVE, s.WISHES]):
            if m[WANT, j] == key:
                head = m[s.WISH_HEAD, j]
    m[s.OWNER, key] = head
    m[s.LEFT, key // m[s.INTS, s.EXPERTS] * m[s.INTS, s.EXPERTS]] -= 1


@hook
def strongest(m, f, first, head, stamp):
    """The head's highest-scored absent key of the layer that is not marked `stamp`, or -1; ties by lowest key."""
    score = s.SCORE + s.HEAD_ROWS * head
    best = -1
    for key in range(first, first + m[s.INTS, s.EXPERTS]):
        if m[SLOT_OF, key] < 0 and m[s.MARK, key] != stamp and (best < 0 or f[score, key] > f[score, best]):
            best = key
    return best


@hook
def wish(m, f):
    """What the layers just decided want: the absent keys that outscore what their head holds, the widest gap first.

    At most as many a layer as may still change. The event is over, so its members count like any other resident.
    """
    m[s.LIVE, s.PHASE] = s.WISHING
    m[s.LIVE, s.AT] = 0
    m[s.LIVE, s.STAMP] += 1
    stamp = m[s.LIVE, s.STAMP]
    free = m[REG, CAP] - m[REG, USED]
    n = 0
    for first in range(m[s.LIVE, s.FROM], m[s.LIVE, s.TO], m[s.INTS, s.EXPERTS]):
        for _ in range(m[s.LEFT, first]):
            widest = 0.0
            wanted = -1
            given = -1
            for h in range(m[s.INTS, s.HEADS]):
                key = strongest(m, f, first, h, stamp)
                if key < 0 or f[s.SCORE + s.HEAD_ROWS * h, key] < f[s.NUMBERS, s.FLOOR]:
                    continue
                gap = 0.0
                slot = -1
                if free > 0:
                    gap = np.inf
                else:
                    slot = weakest(m, f, first, h, stamp, False)
                    if slot >= 0:
                        gap = f[s.SCORE + s.HEAD_ROWS * h, key] - f[s.SCORE + s.HEAD_ROWS * h, m[KEY_OF, slot]]
                if gap > widest:
                    widest = gap
                    wanted = key
                    given = slot
                    m[s.WISH_HEAD, n] = h
            if wanted < 0:
                break
            m[s.MARK, wanted] = stamp
            if given >= 0:
                m[s.MARK, m[KEY_OF, given]] = stamp
            else:
                free -= 1
            m[WANT, n] = wanted
            n += 1
    m[s.LIVE, s.WISHES] = n
    m[REG, CHANGES] = n
    return n


def shares(slots: int, parts: int) -> list[int]:
    """`slots` split as evenly as it goes, the first parts getting one more."""
    return [slots // parts + (i < slots % parts) for i in range(parts)]
