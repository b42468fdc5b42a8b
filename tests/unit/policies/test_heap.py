"""The heap of a policy gives the victim that a scan gives, whatever is pinned, touched or removed in between."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rgpu.policies import heap
from rgpu.policies.loop import CAP, KEY_OF, OWN, PIN, REG, SLOT_OF, WAVE, make_state

KEYS = 24
P, T, AT = OWN, OWN + 1, OWN + 2
STEPS = st.lists(
    st.tuples(st.sampled_from(["touch", "pin", "wave", "drop", "victim"]), st.integers(0, KEYS - 1), st.integers(0, 5)),
    max_size=120,
)


def by_hand(m: np.ndarray, p: np.ndarray, members: set[int], group: int, span: int) -> int:
    free = [k for k in members if k // span == group and m[0, PIN, k] != m[0, REG, WAVE]]
    return min(free, key=lambda k: (p[k], m[0, T, k]), default=-1)


@pytest.mark.parametrize("row", ["int", "float"])
@pytest.mark.parametrize("span", [heap.WHOLE, 8])
@given(steps=STEPS)
@settings(max_examples=60, deadline=None)
def test_heap_finds_what_a_look_at_everything_finds(row: str, span: int, steps: list[tuple[str, int, int]]) -> None:
    state, floats = make_state(1, KEYS, [KEYS], rows=2 + heap.HEAP_ROWS, frows=1)
    m: Any = state[0]
    m[T, :KEYS] = np.arange(KEYS)[::-1]
    p, at_row = (m, P) if row == "int" else (floats[0], 0)
    members: set[int] = set()
    groups = 1 if span == heap.WHOLE else KEYS // span
    for what, key, value in steps:
        if what == "touch":
            p[at_row, key] = value
            heap.settle(m, AT, p, at_row, T, span, key)
            members.add(key)
        elif what == "pin":
            m[PIN, key] = m[REG, WAVE]
        elif what == "wave":
            m[REG, WAVE] += 1
        elif what == "drop":
            heap.remove(m, AT, p, at_row, T, span, key)
            members.discard(key)
        else:
            for group in range(groups):
                assert heap.smallest(m, AT, p, at_row, T, span, group) == by_hand(
                    state, p[at_row], members, group, span
                )


@given(
    values=st.lists(st.integers(0, 3), min_size=KEYS, max_size=KEYS),
    pinned=st.sets(st.integers(0, KEYS - 1), max_size=KEYS - 1),
)
@settings(max_examples=40, deadline=None)
def test_scan_takes_the_lowest_slot_of_equals(values: list[int], pinned: set[int]) -> None:
    state, _ = make_state(1, KEYS, [KEYS], rows=2 + heap.HEAP_ROWS)
    m = state[0]
    slots = np.random.default_rng(0).permutation(KEYS)
    m[KEY_OF, slots], m[SLOT_OF, :KEYS], m[P, :KEYS] = np.arange(KEYS), slots, values
    m[REG, WAVE] = 1
    m[PIN, list(pinned)] = 1
    for key in range(KEYS):
        heap.settle(m, AT, m, P, SLOT_OF, heap.WHOLE, key)
    found = heap.scan(m, m, P, SLOT_OF)
    assert found == min((values[k], int(slots[k])) for k in range(KEYS) if k not in pinned)[1]
    assert m[SLOT_OF, heap.smallest(m, AT, m, P, SLOT_OF, heap.WHOLE, 0)] == found
    m[P, :KEYS] = m[P, :KEYS][::-1].copy()
    heap.rebuild(m, AT, m, P, SLOT_OF)
    found = heap.scan(m, m, P, SLOT_OF)
    assert m[SLOT_OF, heap.smallest(m, AT, m, P, SLOT_OF, heap.WHOLE, 0)] == found
    assert m[REG, CAP] == KEYS


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("span", [heap.WHOLE, 8])
def test_heap_stays_in_order_and_knows_every_place(seed: int, span: int) -> None:
    rng = np.random.default_rng(seed)
    m: Any = make_state(1, KEYS, [KEYS], rows=2 + heap.HEAP_ROWS)[0][0]
    m[T, :KEYS] = rng.permutation(KEYS)
    order, places, aside, count, book = m[AT : AT + heap.HEAP_ROWS]
    members: set[int] = set()
    groups = 1 if span == heap.WHOLE else KEYS // span
    for _ in range(250):
        key, what = int(rng.integers(KEYS)), rng.random()
        if what < 0.5:
            m[P, key] = rng.integers(0, 12)
            heap.settle(m, AT, m, P, T, span, key)
            members.add(key)
        elif what < 0.65:
            heap.remove(m, AT, m, P, T, span, key)
            members.discard(key)
        elif what < 0.8:
            m[PIN, key] = m[REG, WAVE]
        elif what < 0.84:
            m[REG, WAVE] += 1
        else:
            heap.smallest(m, AT, m, P, T, span, int(rng.integers(groups)))
        if span == heap.WHOLE and what > 0.98:
            m[P, :KEYS] = rng.integers(0, 12, KEYS)
            heap.rebuild(m, AT, m, P, T)
            assert book[0] == 0
        kept = aside[: book[0]].tolist()
        for group in range(groups):
            low, n = group * (0 if span == heap.WHOLE else span), int(count[group])
            keys = order[low : low + n].tolist()
            assert all(
                (m[P, keys[(i - 1) // 2]], m[T, keys[(i - 1) // 2]]) < (m[P, k], m[T, k])
                for i, k in enumerate(keys)
                if i
            )
            assert [places[k] for k in keys] == list(range(1, n + 1))
            kept += keys
        assert [places[k] for k in aside[: book[0]]] == [-1 - i for i in range(book[0])]
        assert sorted(kept) == sorted(members) and all(places[k] == 0 for k in range(KEYS) if k not in members)
