"""Return on recurrence: contexts met before, each with its projection, ring places and id set, and going back to one.

Source: KR 10-2026-0070380, claim 3, [0029], [0051]. A projection at least `tau` similar to a stored one is that context
again; otherwise it is a new one and replaces the oldest. Coming to a stored context from another restores its id set.
"""

import numpy as np

from rgpu.policies.loop import SLOT_OF, hook
from rgpu.policies.rotation import state as s


@hook
def save(m, first):
    """Keep what is resident now as the id set of the context the layer is at."""
    entry = m[s.ENTRY, first] - 1
    if entry >= 0:
        row = s.MEMORY + 2 * entry
        for key in range(first, first + m[s.INTS, s.EXPERTS]):
            m[row, key] = m[s.OWNER, key] + 1 if m[SLOT_OF, key] >= 0 else 0
        for h in range(m[s.INTS, s.HEADS]):
            m[row + 1, first + h] = m[s.PLACE, first + h]


@hook
def recall(m, f, first):
    """Find the context of the current projection. -> row of m with the id set to go back to, or -1."""
    experts = m[s.INTS, s.EXPERTS]
    stored = s.FIXED + s.HEAD_ROWS * m[s.INTS, s.HEADS]
    best = f[s.NUMBERS, s.TAU]
    found = -1
    for entry in range(m[s.INTS, s.DEPTH]):
        both = 0.0
        now = 0.0
        then = 0.0
        for e in range(first, first + experts):
            both += f[s.PROJECTED, e] * f[stored + entry, e]
            now += f[s.PROJECTED, e] ** 2
            then += f[stored + entry, e] ** 2
        if now > 0.0 and then > 0.0 and both / np.sqrt(now * then) >= best:
            best = both / np.sqrt(now * then)
            found = entry
    came_from = m[s.ENTRY, first] - 1
    if found < 0:
        entry = m[s.OLDEST, first]
        m[s.OLDEST, first] = (entry + 1) % m[s.INTS, s.DEPTH]
        m[s.ENTRY, first] = entry + 1
        for e in range(first, first + experts):
            f[stored + entry, e] = f[s.PROJECTED, e]
            m[s.MEMORY + 2 * entry, e] = 0
        return -1
    m[s.ENTRY, first] = found + 1
    return s.MEMORY + 2 * found if found != came_from else -1


@hook
def favour(m, f, first, row):
    """Put the stored ids above all others in the score of the head that held them."""
    experts = m[s.INTS, s.EXPERTS]
    for h in range(m[s.INTS, s.HEADS]):
        score = s.SCORE + s.HEAD_ROWS * h
        low = np.inf
        high = -np.inf
        for e in range(first, first + experts):
            low = min(low, f[score, e])
            high = max(high, f[score, e])
        for e in range(first, first + experts):
            if m[row, e] == h + 1:
                f[score, e] += high - low + 1000.0
        m[s.PLACE, first + h] = m[row + 1, first + h]
