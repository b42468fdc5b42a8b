"""What policies that know the future share: in pools large enough for a heap, residents in order of their next use."""

from rgpu.policies.heap import HEAP_FROM, HEAP_ROWS, WHOLE, drop, settle, track
from rgpu.policies.hooks import lean
from rgpu.policies.loop import MADE, NEXT, OWN, REG, SLOT_OF

SOONEST, HEAP = OWN, OWN + 1  # m[SOONEST, key]: minus the next use; only kept up in pools large enough for a heap
ROWS = 1 + HEAP_ROWS


@lean
def look_ahead(m, f, keys, weights, feature):
    if m[REG, MADE] >= HEAP_FROM:
        for j in range(keys.shape[0]):
            m[SOONEST, keys[j]] = -m[NEXT, keys[j]]
            if m[SLOT_OF, keys[j]] >= 0:
                settle(m, HEAP, m, SOONEST, SLOT_OF, WHOLE, keys[j])


@lean
def arrive(m, f, key):
    m[SOONEST, key] = -m[NEXT, key]
    track(m, HEAP, m, SOONEST, SLOT_OF, key)


@lean
def leave(m, f, key):
    drop(m, HEAP, m, SOONEST, SLOT_OF, key)
