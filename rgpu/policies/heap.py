"""An indexed binary min-heap over resident keys, so that large pools find their victim without looking at every slot.

A policy keeps a priority a key (row `row` of `p`, which is m or f) and a row `tie` of m for equals (`SLOT_OF`: the lowest
slot first), gives the heap `HEAP_ROWS` rows of m from row `at`, and calls `track` when a resident's priority changed or it
was placed, `drop` when it leaves, `least` for the victim. Pools under `HEAP_FROM` slots are scanned instead: same victim,
less bookkeeping. (Rows go by number: a view of a row would be counted as a reference, atomically, at every call.)

Members that the current wave pins are set aside when they surface, and put back when the wave has changed or they are
touched, so that each costs two moves a wave at most. `span` divides the keys into groups with a heap each (key // span);
`WHOLE` is one heap.
"""

from rgpu.policies.hooks import lean, oldest
from rgpu.policies.loop import CAP, KEY_OF, MADE, PIN, REG, SLOT_OF, WAVE, inlined

HEAP_FROM = 128  # slots from which the heap serves; below, a scan is faster
HEAP_ROWS = 5
# Rows from `at`: keys in heap order (a group's from its first key on); place + 1 of each key (negative: aside; 0: absent);
# keys set aside; members of each group; and the book: how many are aside, and since which wave.
ORDER, PLACE, ASIDE, COUNT, BOOK = range(5)
WHOLE = 1 << 30  # above every key, and within the int32 that keys of events are


@lean
def before(m, p, row, tie, a, b):
    return p[row, a] < p[row, b] or (p[row, a] == p[row, b] and m[tie, a] < m[tie, b])


@lean
def _up(m, at, p, row, tie, lo, i, key):
    while i > 0:
        j = (i - 1) >> 1
        other = m[at + ORDER, lo + j]
        if not before(m, p, row, tie, key, other):
            break
        m[at + ORDER, lo + i] = other
        m[at + PLACE, other] = i + 1
        i = j
    m[at + ORDER, lo + i] = key
    m[at + PLACE, key] = i + 1
    return i


@lean
def _down(m, at, p, row, tie, lo, n, i, key):
    while 2 * i + 1 < n:
        j = 2 * i + 1
        if j + 1 < n and before(m, p, row, tie, m[at + ORDER, lo + j + 1], m[at + ORDER, lo + j]):
            j += 1
        other = m[at + ORDER, lo + j]
        if not before(m, p, row, tie, other, key):
            break
        m[at + ORDER, lo + i] = other
        m[at + PLACE, other] = i + 1
        i = j
    m[at + ORDER, lo + i] = key
    m[at + PLACE, key] = i + 1


@lean
def remove(m, at, p, row, tie, span, key):
    """Take `key` out of its heap, or from what was set aside; nothing if it is in neither."""
    place = m[at + PLACE, key]
    m[at + PLACE, key] = 0
    if place > 0:
        group = key // span
        lo = group * span
        m[at + COUNT, group] -= 1
        n = m[at + COUNT, group]
        last = m[at + ORDER, lo + n]
        if last != key:
            i = _up(m, at, p, row, tie, lo, place - 1, last)
            _down(m, at, p, row, tie, lo, n, i, last)
    elif place < 0:
        m[at + BOOK, 0] -= 1
        last = m[at + ASIDE, m[at + BOOK, 0]]
        if last != key:
            m[at + ASIDE, -place - 1] = last
            m[at + PLACE, last] = place


@lean
def settle(m, at, p, row, tie, span, key):
    """Put `key` where its priority belongs, whether it is new, moved, or was set aside."""
    if m[at + PLACE, key] < 0:
        remove(m, at, p, row, tie, span, key)
    group = key // span
    lo = group * span
    if m[at + PLACE, key] == 0:
        m[at + COUNT, group] += 1
        _up(m, at, p, row, tie, lo, m[at + COUNT, group] - 1, key)
    else:
        i = _up(m, at, p, row, tie, lo, m[at + PLACE, key] - 1, key)
        _down(m, at, p, row, tie, lo, m[at + COUNT, group], i, key)


@lean
def smallest(m, at, p, row, tie, span, group):
    """Key with the lowest priority of a group that the current wave does not pin; -1 if there is none."""
    if m[at + BOOK, 1] != m[REG, WAVE]:
        m[at + BOOK, 1] = m[REG, WAVE]
        while m[at + BOOK, 0] > 0:
            settle(m, at, p, row, tie, span, m[at + ASIDE, m[at + BOOK, 0] - 1])
    while m[at + COUNT, group] > 0:
        key = m[at + ORDER, group * span]
        if m[PIN, key] != m[REG, WAVE]:
            return key
        remove(m, at, p, row, tie, span, key)
        m[at + ASIDE, m[at + BOOK, 0]] = key
        m[at + BOOK, 0] += 1
        m[at + PLACE, key] = -m[at + BOOK, 0]
    return -1


@lean
def rebuild(m, at, p, row, tie):
    """Order the one heap anew after many priorities changed at once."""
    while m[at + BOOK, 0] > 0:
        m[at + BOOK, 0] -= 1
        key = m[at + ASIDE, m[at + BOOK, 0]]
        m[at + ORDER, m[at + COUNT, 0]] = key
        m[at + COUNT, 0] += 1
    for i in range((m[at + COUNT, 0] - 1), -1, -1):
        _down(m, at, p, row, tie, 0, m[at + COUNT, 0], i, m[at + ORDER, i])


@lean
def scan(m, p, row, tie):
    """Slot of the lowest evictable priority, looking at every slot."""
    slot = -1
    top = 0
    best = p[row, 0]
    wave = m[REG, WAVE]
    for c in range(m[REG, CAP]):
        key = m[KEY_OF, c]
        if key >= 0 and m[PIN, key] != wave:
            value = p[row, key]
            if slot < 0 or value < best or (value == best and m[tie, key] < m[tie, top]):
                slot = c
                top = key
                best = value
    return slot


@inlined
def track(m, at, p, row, tie, key):
    if m[REG, MADE] >= HEAP_FROM:
        settle(m, at, p, row, tie, WHOLE, key)


@inlined
def drop(m, at, p, row, tie, key):
    if m[REG, MADE] >= HEAP_FROM:
        remove(m, at, p, row, tie, WHOLE, key)


@lean
def least(m, at, p, row, tie):
    """Slot of the lowest evictable priority, by heap or scan as the pool's size asks for."""
    if m[REG, MADE] < HEAP_FROM:
        return scan(m, p, row, tie)
    return m[SLOT_OF, smallest(m, at, p, row, tie, WHOLE, 0)]


@inlined
def first(m, at, row):
    """`least` of a row of m whose equals go by slot: the plainest scan where a scan serves."""
    if m[REG, MADE] < HEAP_FROM:
        return oldest(m, row)
    return m[SLOT_OF, smallest(m, at, m, row, SLOT_OF, WHOLE, 0)]
