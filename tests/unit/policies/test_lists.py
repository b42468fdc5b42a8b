"""Linked lists in a policy's rows: they are what plain Python lists would be, and hold every resident exactly once."""

import importlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rgpu.policies import lists
from rgpu.policies.lists import ENDS, LINKED, NEWER, OLDER, WHICH
from rgpu.policies.loop import CAP, KEY_OF, OWN, PIN, REG, SLOT_OF, WAVE, make_state
from rgpu.replay.controller import Controller
from rgpu.replay.pool import PoolConfig
from rgpu.replay.stream import routing_events
from tests.support import routed_trace

KEYS, LISTS = 9, 4
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["push", "push", "move", "remove", "drop", "take", "pin", "wave"]),
        st.integers(1, LISTS),
        st.integers(0, KEYS - 1),
    ),
    max_size=150,
)
# Policies by their lists: (first row of the family, lists of residents, lists of ghosts).
FAMILIES: dict[str, tuple[int, tuple[int, ...], tuple[int, ...]]] = {
    "lru.Lru": (OWN, (1,), ()),
    "fifo.Fifo": (OWN, (1,), ()),
    "sieve.Sieve": (OWN, (1,), ()),
    "slru.Slru": (OWN, (1, 2), ()),
    "two_q.TwoQ": (OWN, (1, 3), (2,)),
    "arc.Arc": (OWN, (1, 2), (3, 4)),
    "s3_fifo.S3Fifo": (OWN, (1, 2), (3,)),
}


def walk(m: np.ndarray, L: int, q: int) -> list[int]:
    """Keys of list q from head to tail, after checking that it reads the same from either end and ends."""
    ahead, back = [], []
    key = int(m[L + ENDS, 3 * q]) - 1
    while key >= 0:
        assert key not in ahead, "a cycle"
        ahead.append(key)
        key = int(m[L + OLDER, key]) - 1
    key = int(m[L + ENDS, 3 * q + 1]) - 1
    while key >= 0:
        assert key not in back, "a cycle"
        back.append(key)
        key = int(m[L + NEWER, key]) - 1
    assert ahead == back[::-1] and len(ahead) == m[L + ENDS, 3 * q + 2]
    assert all(m[L + WHICH, k] == q for k in ahead)
    return ahead


@pytest.mark.parametrize("compiled", [True, False])
@given(steps=STEPS)
@settings(max_examples=60, deadline=None)
def test_lists_are_lists(compiled: bool, steps: list[tuple[str, int, int]]) -> None:
    call: Any = lambda name, *args: getattr(lists, name)(*args) if compiled else getattr(lists, name).py_func(*args)  # noqa: E731
    state, _ = make_state(1, KEYS, [KEYS], rows=1 + LINKED)
    m, L = state[0], OWN + 1
    m[SLOT_OF, :KEYS] = np.arange(KEYS)[::-1]
    books: dict[int, list[int]] = {q: [] for q in range(1, LISTS + 1)}
    for what, q, key in steps:
        on = next((i for i, book in books.items() if key in book), 0)
        free = [k for k in books[q] if m[PIN, k] != m[REG, WAVE]]
        assert call("on_list", m, L, key) == on
        assert call("oldest_free", m, L, q) == (free[-1] if free else -1)
        assert call("tail", m, L, q) == (books[q][-1] if books[q] else -1)
        if what == "push" and not on:
            call("push_front", m, L, q, key)
            books[q].insert(0, key)
        elif what == "move" and on:
            call("move_front", m, L, q, key)
            books[on].remove(key)
            books[q].insert(0, key)
        elif what == "remove" and on:
            at = books[on].index(key)
            assert call("newer", m, L, key) == (books[on][at - 1] if at else -1)
            call("remove", m, L, key)
            books[on].remove(key)
        elif what == "drop" and books[q]:
            assert call("drop_tail", m, L, q) == books[q].pop()
        elif what == "take" and free:
            assert call("take_oldest", m, L, q) == m[SLOT_OF, free[-1]]
            books[q].remove(free[-1])
        elif what == "pin":
            m[PIN, key] = m[REG, WAVE]
        elif what == "wave":
            m[REG, WAVE] += 1
        for i, book in books.items():
            assert walk(m, L, i) == book and call("length", m, L, i) == len(book)
    assert (m[OWN] == 0).all()  # the row before the family is nobody's


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    "pool", [PoolConfig(slots=1), PoolConfig(slots=4), PoolConfig(scope="global", slots=7), PoolConfig("global", bytes=150)]
)  # fmt: skip
@given(seed=st.integers(0, 10_000), group=st.integers(1, 3))
@settings(max_examples=6, deadline=None)
def test_every_resident_is_on_one_list_of_residents(name: str, pool: PoolConfig, seed: int, group: int) -> None:
    module, kind = name.split(".")
    policy = getattr(importlib.import_module(f"rgpu.policies.{module}"), kind)()
    L, here, gone = FAMILIES[name]
    trace = routed_trace(seed, group=group, sizes=(10, 25) if pool.bytes else ())
    controller: Any = Controller(policy, trace.shape, pool)
    for event in routing_events(trace):
        controller.observe(event)
        for m in controller._m:
            resident = {int(k) for k in m[KEY_OF, : m[REG, CAP]] if k >= 0}
            listed = [k for q in here for k in walk(m, L, q)]
            ghosts = [k for q in gone for k in walk(m, L, q)]
            assert set(listed) == resident and len(listed) == len(resident)
            assert not resident & set(ghosts) and len(ghosts) == len(set(ghosts))
            assert np.count_nonzero(m[L + WHICH]) == len(listed) + len(ghosts)


@given(seed=st.integers(0, 10_000), group=st.integers(1, 3), slots=st.integers(1, 7))
@settings(max_examples=20, deadline=None)
def test_lirs_keeps_its_stack_and_queue(seed: int, group: int, slots: int) -> None:
    from rgpu.policies.lirs import Lirs, Q, S

    trace = routed_trace(seed, group=group)
    controller: Any = Controller(Lirs(), trace.shape, PoolConfig(slots=slots))
    for event in routing_events(trace):
        controller.observe(event)
        for m in controller._m:
            resident = {int(k) for k in m[KEY_OF, : m[REG, CAP]] if k >= 0}
            stack, queue = walk(m, S, 1), walk(m, Q, 1)
            lir = resident - set(queue)
            assert set(queue) <= resident and lir <= set(stack)
            assert len(lir) <= max(0, slots - 1)
            if lir:
                assert stack[-1] in lir
