"""An indexed binary min-heap over resident keys, so that large pools find their victim without looking at every slot.

A policy keeps a priority a key (`p`, a row of m or f) and a tie row `t` of m (`m[SLOT_OF]`: lowest slot first), gives the
heap `HEAP_ROWS` rows of m from row `at`, and calls `track` when a resident's priority changed or it was placed, `drop` when
it leaves, `least` for the victim. Pools under `HEAP_FROM` slots are scanned instead: same victim, less bookkeeping.

Members that the current wave pins are set aside when they surface, and put back when the wave has changed or they are
touched, so that each costs two moves a wave at most. `span` divides the keys into groups with a heap each (key // span);
`WHOLE` is one heap.
"""

from rgpu.policies.loop import CAP, KEY_OF, PIN, REG, SLOT_OF, WAVE, hook, inlined

HEAP_FROM = 128  # slots from which the heap serves; below, a scan is faster
HEAP_ROWS = 5
# Rows from `at`: keys in heap order (a group's from its first key on); place + 1 of each key (negative: aside; 0: absent);
# keys set aside; members of each group; and the book: how many are aside, and since which wave.
ORDER, PLACE, ASIDE, COUNT, BOOK = range(5)
WHOLE = 1 << 40


@hook
def before(p, t, a, b):
    return p[a] < p[b] or (p[a] == p[b] and t[a] < t[b])


@hook
def _up(m, at, p, t, lo, i, key):
    while i > 0:
        j = (i - 1) >> 1
        other = m[at + ORDER, lo + j]
        if not before(p, t, key, other):
            break
        m[at + ORDER, lo + i] = other
        m[at + PLACE, other] = i + 1
        i = j
    m[at + ORDER, lo + i] = key
    m[at + PLACE, key] = i + 1
    return i


@hook
def _down(m, at, p, t, lo, n, i, key):
    while 2 * i + 1 < n:
        j = 2 * i + 1
        if j + 1 < n and before(p, t, m[at + ORDER, lo + j + 1], m[at + ORDER, lo + j]):
            j += 1
        other = m[at + ORDER, lo + j]
        if not before(p, t, other, key):
            break
        m[at + ORDER, lo + i] = other
        m[at + PLACE, other] = i + 1
        i = j
    m[at + ORDER, lo + i] = key
    m[at + PLACE, key] = i + 1


@hook
def remove(m, at, p, t, span, key):
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
            i = _up(m, at, p, t, lo, place - 1, last)
            _down(m, at, p, t, lo, n, i, last)
    elif place < 0:
        m[at + BOOK, 0] -= 1
        last = m[at + ASIDE, m[at + BOOK, 0]]
        if last != key:
            m[at + ASIDE, -place - 1] = last
            m[at + PLACE, last] = place


@hook
def settle(m, at, p, t, span, key):
    """Put `key` where its priority belongs, whether it is new, moved, or was set aside."""
    if m[at + PLACE, key] < 0:
        remove(m, at, p, t, span, key)
    group = key // span
    lo = group * span
    if m[at + PLACE, key] == 0:
        m[at + COUNT, group] += 1
        _up(m, at, p, t, lo, m[at + COUNT, group] - 1, key)
    else:
        i = _up(m, at, p, t, lo, m[at + PLACE, key] - 1, key)
        _down(m, at, p, t, lo, m[at + COUNT, group], i, key)


@hook
def smallest(m, at, p, t, span, group):
    """Key with the lowest priority of a group that the current wave does not pin; -1 if there is none."""
    if m[at + BOOK, 1] != m[REG, WAVE]:
        m[at + BOOK, 1] = m[REG, WAVE]
        while m[at + BOOK, 0] > 0:
            settle(m, at, p, t, span, m[at + ASIDE, m[at + BOOK, 0] - 1])
    while m[at + COUNT, group] > 0:
        key = m[at + ORDER, group * span]
        if m[PIN, key] != m[REG, WAVE]:
            return key
        remove(m, at, p, t, span, key)
        m[at + ASIDE, m[at + BOOK, 0]] = key
        m[at + BOOK, 0] += 1
        m[at + PLACE, key] = -m[at + BOOK, 0]
    return -1


@hook
def rebuild(m, at, p, t):
    """Order the one heap anew after many priorities changed at once."""
    while m[at + BOOK, 0] > 0:
        m[at + BOOK, 0] -= 1
        key = m[at + ASIDE, m[at + BOOK, 0]]
        m[at + ORDER, m[at + COUNT, 0]] = key
        m[at + COUNT, 0] += 1
    for i in range((m[at + COUNT, 0] - 1), -1, -1):
        _down(m, at, p, t, 0, m[at + COUNT, 0], i, m[at + ORDER, i])


@hook
def scan(m, p, t):
    """Slot of the lowest evictable priority, looking at every slot."""
    slot = -1
    top = 0
    wave = m[REG, WAVE]
    for c in range(m[REG, CAP]):
        key = m[KEY_OF, c]
        if key >= 0 and m[PIN, key] != wave and (slot < 0 or before(p, t, key, top)):
            slot = c
            top = key
    return slot


@inlined
def track(m, at, p, t, key):
    if m[REG, CAP] >= HEAP_FROM:
        settle(m, at, p, t, WHOLE, key)


@inlined
def drop(m, at, p, t, key):
    if m[REG, CAP] >= HEAP_FROM:
        remove(m, at, p, t, WHOLE, key)


@hook
def least(m, at, p, t):
    """Slot of the lowest evictable priority, by heap or scan as the pool's size asks for."""
    if m[REG, CAP] < HEAP_FROM:
        return scan(m, p, t)
    return m[SLOT_OF, smallest(m, at, p, t, WHOLE, 0)]
