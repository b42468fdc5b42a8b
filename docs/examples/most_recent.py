"""An example policy in plain Python: evict the expert used most recently (MRU), the best one for cyclic access.

rgpu replay policy=plain policy.file=docs/examples/most_recent.py pool.slots=8
rgpu compare docs/examples/most_recent.py
"""

from rgpu.policies.loop import CAP, CLOCK, KEY_OF, OWN, REG, evictable
from rgpu.policies.policy import Traits

TRAITS = Traits(rows=1)  # one row of our own beside the loop's
LAST = OWN  # m[LAST, key]: clock of the last use


def on_access(m, f, key, hit):
    m[LAST, key] = m[REG, CLOCK]


def victim(m, f):
    newest = -1
    for slot in range(m[REG, CAP]):
        if evictable(m, slot) and (newest < 0 or m[LAST, m[KEY_OF, slot]] > m[LAST, m[KEY_OF, newest]]):
            newest = slot
    return newest
