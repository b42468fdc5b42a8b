"""Many lists of resident keys, one a level, each in order of use: policies whose score is a level and an age look at heads.

Rows of m from `at`: links and level of each key (a key is on one list), then the lists' ends, `PER_ROW` lists a row. All of
it is zero in an empty state, so links, ends and levels hold their number + 1 and 0 means none. (`lists.py` has families
of up to four lists with lengths and ghosts.)
"""

from rgpu.policies.hooks import lean
from rgpu.policies.loop import PIN, REG, WAVE

YOUNGER, ELDER, LEVEL, ENDS = range(4)
PER_ROW = 7
LISTS_FROM = 24  # slots from which looking at heads beats looking at every slot


def level_rows(levels: int) -> int:
    """Rows of m that so many lists take."""
    return ENDS + -(-levels // PER_ROW)


@lean
def unlink(m, at, key):
    """Take a key off its list; nothing if it is on none."""
    level = m[at + LEVEL, key] - 1
    if level < 0:
        return
    row = at + ENDS + level // PER_ROW
    column = 2 * (level % PER_ROW)
    younger = m[at + YOUNGER, key]
    elder = m[at + ELDER, key]
    if younger > 0:
        m[at + ELDER, younger - 1] = elder
    else:
        m[row, column + 1] = elder
    if elder > 0:
        m[at + YOUNGER, elder - 1] = younger
    else:
        m[row, column] = younger
    m[at + LEVEL, key] = 0


@lean
def link(m, at, level, key):
    """Make a key the youngest of a level, wherever it was."""
    unlink(m, at, key)
    row = at + ENDS + level // PER_ROW
    column = 2 * (level % PER_ROW)
    last = m[row, column + 1]
    m[at + ELDER, key] = last
    m[at + YOUNGER, key] = 0
    if last > 0:
        m[at + YOUNGER, last - 1] = key + 1
    else:
        m[row, column] = key + 1
    m[row, column + 1] = key + 1
    m[at + LEVEL, key] = level + 1


@lean
def eldest(m, at, level):
    """The key of a level whose use is longest ago, or -1."""
    return m[at + ENDS + level // PER_ROW, 2 * (level % PER_ROW)] - 1


@lean
def next_free(m, at, key):
    """The first key from `key` on, towards younger ones, that the current wave does not pin; -1 if there is none."""
    while key >= 0 and m[PIN, key] == m[REG, WAVE]:
        key = m[at + YOUNGER, key] - 1
    return key


@lean
def younger(m, at, key):
    return m[at + YOUNGER, key] - 1
