"""What a hook picks where two keys are equal, or a number is just at its bound: no count of hits shows it."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rgpu.policies import belady, belady_bypass, class_lru, lru_k, next_use
from rgpu.policies.loop import (
    BYTE_CAP,
    BYTES,
    KEY_OF,
    NEXT,
    OWN,
    REG,
    SIZE,
    SLOT_OF,
    USED,
    WAVE,
    make_state,
)

KEYS = 8


def full(slots: int, rows: int) -> tuple[Any, Any]:
    """A pool whose slot s holds key slots - 1 - s, none of them pinned."""
    m, f = make_state(1, KEYS, [slots], rows=rows)
    m[0, KEY_OF, :slots] = np.arange(slots)[::-1]
    m[0, SLOT_OF, :slots] = np.arange(slots)[::-1]
    m[0, SIZE], m[0, REG, USED], m[0, REG, BYTES], m[0, REG, WAVE] = 1, slots, slots, 1
    return m[0], f[0]


@pytest.mark.parametrize("search", [belady.victim, belady_bypass.farthest])
def test_of_next_uses_equally_far_the_lowest_slot_goes(search: Any) -> None:
    m, f = full(4, next_use.ROWS)
    m[NEXT] = (9, 3, 9, 9, 0, 0, 0, 0, *[0] * (len(m[NEXT]) - 8))
    assert search.py_func(m, f) == 0
    m[NEXT, 3] = 5
    assert search.py_func(m, f) == 1


def test_the_bound_keeps_a_newcomer_only_where_it_is_needed_sooner() -> None:
    m, f = full(4, next_use.ROWS)
    m[NEXT, :6] = 5, 3, 5, 5, 5, 4
    assert not belady_bypass.worth.py_func(m, f, 4) and belady_bypass.worth.py_func(m, f, 5)
    m[KEY_OF, 3], m[SLOT_OF, 0], m[REG, USED], m[REG, BYTES] = -1, -1, 3, 3
    m[REG, BYTE_CAP] = 5
    for size, kept in ((1, True), (2, True), (3, False)):
        m[SIZE, 4] = size
        assert belady_bypass.worth.py_func(m, f, 4) == kept


def test_a_key_loaded_ahead_is_ranked_by_its_next_use(monkeypatch: pytest.MonkeyPatch) -> None:
    m, f = full(4, next_use.ROWS)
    ranks: list[int] = []
    monkeypatch.setattr(next_use, "track", lambda m, at, p, row, tie, key: ranks.append(int(p[row, key])))
    m[NEXT, 2] = 7
    next_use.arrive.py_func(m, f, 2)
    assert ranks == [-7]


def test_lru_k_takes_the_lowest_slot_of_equals_outside_their_period() -> None:
    m, f = full(4, lru_k.HISTORY - OWN + 2)
    m[lru_k.RANK, :4] = 7, 6, 6, 9
    assert lru_k.scan.py_func(m, False) == 1
    assert lru_k.LruK(k=2).traits.rows == lru_k.HISTORY - OWN + 2 and lru_k.HISTORY == OWN + 9


def test_class_lru_has_as_many_classes_as_lists() -> None:
    m, f = full(4, class_lru.ClassLru.traits.rows)
    setting: Any = SimpleNamespace(m=m[None], f=f[None], pool_of=np.zeros(1, int))
    class_lru.ClassLru(half_life=9).prepare(setting)
    for exponent, level in ((-2, 0), (0, 0), (1, 1), (6, 6), (7, 7), (8, 7), (9, 7), (30, 7)):
        m[class_lru.COUNT, 2] = (64 + exponent) << 40
        class_lru.arrive.py_func(m, f, 2)
        assert m[class_lru.CLASS, 2] == level
