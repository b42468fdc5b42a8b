"""Drawn states of the rotary family: noise in every row of the floats, residents in shuffled slots."""

from typing import Any

import numpy as np

from rgpu.policies.loop import KEY_OF, PIN, REG, SLOT_OF, USED, WAVE, make_state
from rgpu.policies.rotation import state as s

LAYERS, EXPERTS, WIDTH, DEPTH, SLOTS = 2, 9, 5, 3, 9
KEYS, TURN = LAYERS * EXPERTS, 2 * np.pi
FIRSTS = (0, EXPERTS)


def drawn(seed: int, heads: int = 2) -> tuple[np.random.Generator, Any, Any]:
    """(generator, m, f): noise in every row of f, the blocks one after another, residents in shuffled slots."""
    rng = np.random.default_rng(seed)
    rows = s.frows(heads, DEPTH, True, False)
    state, floats = make_state(1, KEYS, [SLOTS], rows=s.rows(DEPTH, False), frows=rows + KEYS)
    m, f = state[0], floats[0]
    f[:] = rng.standard_normal(f.shape)
    m[s.INTS, [s.EXPERTS, s.KEYS, s.HEADS, s.DEPTH]] = EXPERTS, KEYS, heads, DEPTH
    m[s.LIVE, s.BUFFER] = s.recalled_row(heads) + DEPTH
    m[s.LIVE, s.TRAJECTORY] = m[s.LIVE, s.BUFFER] + s.BUFFER_LENGTH
    m[s.LIVE, s.SIGNATURE] = rows
    at = rng.permutation(SLOTS)[: SLOTS - seed % 4 % 3]
    keys = rng.permutation(KEYS)[: len(at)]
    m[KEY_OF, at], m[SLOT_OF, keys], m[REG, USED], m[REG, WAVE] = keys, at, len(at), 4
    m[PIN, :KEYS] = rng.choice([3, 4], KEYS, p=(0.7, 0.3))
    m[s.OWNER, :KEYS] = rng.integers(0, heads, KEYS)
    m[s.MARK, :KEYS] = rng.choice([0, 8, 9], KEYS, p=(0.4, 0.4, 0.2))
    return rng, m, f


def block(row: int, first: int) -> tuple[int, slice]:
    return row, slice(first, first + EXPERTS)


def alone(before: Any, after: Any, *parts: Any) -> None:
    """Nothing but those parts changed."""
    before = before.copy()
    for part in parts:
        before[part] = after[part]
    assert np.array_equal(before, after)
