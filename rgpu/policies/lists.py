"""Doubly linked lists of keys inside a policy's rows of m: every operation is O(1), whatever the size of the pool.

A family of lists takes `LINKED` rows from row `L` on; a key is on at most one list of a family, resident or not (a list
of keys that have left is a ghost list). All of it is zero in an empty state, so links and ends hold key + 1 and 0 means
none. Lists are numbered 1 to 4; columns below `SPARE` of the ends' row are nobody's, a policy may keep numbers there.
The head is where keys enter, the tail where victims are sought; members of the current wave are never victims.
"""

from numba import njit

from rgpu.policies.loop import OPTIONS, PIN, REG, SLOT_OF, WAVE

NEWER, OLDER, WHICH, ENDS, LINKED = range(5)  # rows of a family, counted from L
SPARE = 3  # list q has its head, tail and length in columns 3q, 3q + 1 and 3q + 2 of row L + ENDS

# A hook that becomes part of the loop and counts no references (it must allocate nothing). Left to itself the compiler calls
# the larger hooks and counts their array arguments atomically: with a few list moves a miss that halves the speed.
tight = njit(forceinline=True, **{**OPTIONS, "_nrt": False})


@tight
def push_front(m, L, q, key):
    """Put a key that is on no list of the family at the head of list q."""
    head = m[L + ENDS, 3 * q]
    m[L + OLDER, key] = head
    m[L + NEWER, key] = 0
    if head > 0:
        m[L + NEWER, head - 1] = key + 1
    else:
        m[L + ENDS, 3 * q + 1] = key + 1
    m[L + ENDS, 3 * q] = key + 1
    m[L + ENDS, 3 * q + 2] += 1
    m[L + WHICH, key] = q


@tight
def remove(m, L, key):
    """Take a key off the list of the family that holds it."""
    q = m[L + WHICH, key]
    newer = m[L + NEWER, key]
    older = m[L + OLDER, key]
    if newer > 0:
        m[L + OLDER, newer - 1] = older
    else:
        m[L + ENDS, 3 * q] = older
    if older > 0:
        m[L + NEWER, older - 1] = newer
    else:
        m[L + ENDS, 3 * q + 1] = newer
    m[L + ENDS, 3 * q + 2] -= 1
    m[L + WHICH, key] = 0


@tight
def move_front(m, L, q, key):
    """Move a key from its list to the head of list q. (`remove` and `push_front` in one, because it is every hit's work.)"""
    head = m[L + ENDS, 3 * q]
    if head != key + 1:
        was = m[L + WHICH, key]
        newer = m[L + NEWER, key]
        older = m[L + OLDER, key]
        if newer > 0:
            m[L + OLDER, newer - 1] = older
        else:
            m[L + ENDS, 3 * was] = older
        if older > 0:
            m[L + NEWER, older - 1] = newer
        else:
            m[L + ENDS, 3 * was + 1] = newer
        if was != q:
            m[L + ENDS, 3 * was + 2] -= 1
            m[L + ENDS, 3 * q + 2] += 1
            m[L + WHICH, key] = q
        m[L + OLDER, key] = head
        m[L + NEWER, key] = 0
        if head > 0:
            m[L + NEWER, head - 1] = key + 1
        else:
            m[L + ENDS, 3 * q + 1] = key + 1
        m[L + ENDS, 3 * q] = key + 1


@tight
def on_list(m, L, key):
    """Number of the list of the family that holds the key; 0: none."""
    return m[L + WHICH, key]


@tight
def length(m, L, q):
    return m[L + ENDS, 3 * q + 2]


@tight
def tail(m, L, q):
    """Key at the tail of list q, or -1."""
    return m[L + ENDS, 3 * q + 1] - 1


@tight
def newer(m, L, key):
    """The next key towards the head, or -1."""
    return m[L + NEWER, key] - 1


@tight
def oldest_free(m, L, q):
    """Key nearest the tail of list q that no member of the current wave is, or -1; passes over pinned keys only."""
    key = m[L + ENDS, 3 * q + 1] - 1
    while key >= 0 and m[PIN, key] == m[REG, WAVE]:
        key = m[L + NEWER, key] - 1
    return key


@tight
def take_oldest(m, L, q):
    """Take the key that `oldest_free` finds off a list that has one. -> its slot (what calls `victim` evicts it at once)"""
    key = oldest_free(m, L, q)
    remove(m, L, key)
    return m[SLOT_OF, key]


@tight
def drop_tail(m, L, q):
    """Take the tail off a list that is not empty (a ghost list above its length). -> key"""
    key = m[L + ENDS, 3 * q + 1] - 1
    remove(m, L, key)
    return key
