"""State of the decision loop: rows, registers, codes and counters by name, and how its compiled parts are declared.

`m` int64 [pools, rows, width] and `f` float64 [pools, rows, width]. Rows below `OWN` of m belong to the loop; a policy
reads them and owns the rest of m and all of f.
"""

import numpy as np
from numba import njit

SLOT_OF, KEY_OF, PIN, NEXT, REG, ORIGIN, SEEN, SIZE, FREE, WANT, TRIED, OWN = range(12)  # rows of m
# Columns of m[REG]; GATE.. are the admission plug's, R0.. the policy's own registers.
# MADE: the slots that the state was made for, by which policies choose between a scan and a heap; CAP may change after.
(EVENT, CLOCK, USED, CAP, WAVE, PINNED, BYTES, BYTE_CAP, POOL, SEED, CHANGES, MADE, GATE, GATE_VALUE, GATE_LEFT,
 R0, R1, R2, R3, R4, R5, R6, R7) = range(23)  # fmt: skip
DEMAND, PREFETCH, PREFETCH_BUSY, FILL, SHRINK, GROW = range(6)  # kinds of event
HIT, BYPASS, KEPT, DROPPED, PREFETCH_HIT = -1, -2, -3, -4, -5  # codes; >= 0: loaded into that slot
HITS, PREFETCH_HITS, COLD, DEMAND_LOADS, PROACTIVE_LOADS, FILL_LOADS, WASTED, LOADED_BYTES, LOGGED, COUNTS = range(10)
NEVER = 1 << 60  # "no next use", and "no limit" for bytes
OPTIONS = {"nogil": True, "error_model": "numpy"}

hook = njit(**OPTIONS)
inlined = njit(inline="always", **OPTIONS)


def make_state(
    pools: int, keys: int, slots: list[int], rows: int = 0, frows: int = 0, width: int = 0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Empty state: m int64 [pools, OWN + rows, width] and f float64 [pools, frows, width]; slots[p] of pool p."""
    wide = max(keys, max(slots), width, R7 + 1)
    m = np.zeros((pools, OWN + rows, wide), np.int64)
    m[:, [SLOT_OF, KEY_OF, PIN]] = -1
    m[:, NEXT] = NEVER
    for p, cap in enumerate(slots):
        m[p, REG, [CAP, MADE, BYTE_CAP, POOL, SEED]] = cap, cap, NEVER, p, seed
        m[p, FREE, :cap] = np.arange(cap)[::-1]
    return m, np.zeros((pools, max(frows, 1), wide))
