"""Who leaves and who comes in the rotary family, against lists, on drawn states."""

from typing import Any

import numpy as np
import pytest

from rgpu.policies.loop import CAP, EVENT, KEY_OF, PIN, REG, SLOT_OF, USED, WANT, WAVE
from rgpu.policies.rotation import slots
from rgpu.policies.rotation import state as s
from tests.unit.policies.rotation_states import (
    EXPERTS,
    FIRSTS,
    KEYS,
    SLOTS,
    alone,
    drawn,
)


class Held:
    """The slots of a drawn state in lists: whom each head of a layer would give up, and whom it lacks."""

    def __init__(self, m: Any, f: Any) -> None:
        self.m, self.f = m, f

    def value(self, head: int, key: int) -> float:
        return float(self.f[s.SCORE + s.HEAD_ROWS * head, key])

    def free(self, slot: int) -> bool:
        return bool(self.m[PIN, self.m[KEY_OF, slot]] != self.m[REG, WAVE])

    def weakest(self, first: int, head: int, passed: Any, spare: bool) -> int:
        found = []
        for slot in range(SLOTS):
            key = int(self.m[KEY_OF, slot])
            here = first <= key < first + EXPERTS and self.m[s.OWNER, key] == head and not passed(key)
            if here and (not spare or self.free(slot)):
                found.append((self.value(head, key), slot))
        return min(found)[1] if found else -1

    def strongest(self, head: int, keys: list[int]) -> int:
        return max(keys, key=lambda k: (self.value(head, k), -k), default=-1)

    def weakest_of_all(self) -> int:
        slots_ = [c for c in range(SLOTS) if self.m[KEY_OF, c] >= 0 and self.free(c)]
        key = self.m[KEY_OF]
        return min(slots_, key=lambda c: (self.value(self.m[s.OWNER, key[c]], key[c]), c), default=-1)


def held(seed: int) -> tuple[np.random.Generator, Any, Any, Held]:
    rng, m, f = drawn(seed)
    for h in range(2):
        f[s.SCORE + s.HEAD_ROWS * h] = rng.integers(-2, 5, f.shape[1])
    f[s.NUMBERS, s.FLOOR] = (-np.inf, 0.0, 1.0)[seed % 3]
    return rng, m, f, Held(m, f)


@pytest.mark.parametrize("seed", range(40))
def test_a_miss_takes_the_slot_of_the_head_that_gains_most(seed: int) -> None:
    _, m, f, book = held(seed)
    for first in FIRSTS:
        for head in range(2):
            for stamp in (-1, 9):
                for spare in (True, False):
                    ours = slots.weakest.py_func(m, f, first, head, stamp, spare)
                    assert ours == book.weakest(first, head, lambda k, stamp=stamp: m[s.MARK, k] == stamp, spare)
            absent = [k for k in range(first, first + EXPERTS) if m[SLOT_OF, k] < 0 and m[s.MARK, k] != 9]
            best = book.strongest(head, absent)
            assert slots.strongest.py_func(m, f, first, head, 9) == best
    for key in np.flatnonzero(m[SLOT_OF, :KEYS] < 0).tolist():
        first = key // EXPERTS * EXPERTS
        for keep, left in ((0, 2), (1, 0), (1, -1), (1, 1)):
            m[s.INTS, s.KEEP], m[s.LEFT, first], m[s.LIVE, s.PHASE] = keep, left, s.NO_PHASE
            gaps = {}
            for head in range(2):
                slot = book.weakest(first, head, lambda k: False, True)
                if book.value(head, key) >= f[s.NUMBERS, s.FLOOR]:
                    if m[REG, USED] < m[REG, CAP]:
                        gaps[head] = np.inf
                    elif slot >= 0:
                        gaps[head] = book.value(head, key) - book.value(head, m[KEY_OF, slot])
            taker = max(gaps, key=lambda h: (gaps[h], -h), default=-1)
            taker = taker if gaps.get(taker, 0) > 0 else -1
            asked = keep == 1 and left > 0
            before = m.copy()
            assert slots.admit.py_func(m, f, key) == (asked and taker >= 0)
            if not asked:
                alone(before, m)
                continue
            assert m[s.LIVE, [s.PHASE, s.FIRST, s.HEAD]].tolist() == [s.ON_DEMAND, first, taker]
            alone(before, m, (s.LIVE, [s.PHASE, s.FIRST, s.HEAD]))
            slot = book.weakest(first, taker, lambda k: False, True)
            wanted = slot if slot >= 0 else book.weakest_of_all()
            assert slots.victim.py_func(m, f) == wanted
            assert m[s.LIVE, s.HEAD] == (taker if slot >= 0 else m[s.OWNER, m[KEY_OF, wanted]])


@pytest.mark.parametrize("seed", range(40))
def test_wishes_are_the_widest_gaps_and_come_in_their_owners_slots(seed: int) -> None:
    rng, m, f, book = held(seed)
    start = int(rng.integers(0, 2)) * EXPERTS
    m[s.LIVE, [s.FROM, s.TO, s.STAMP, s.AT, s.PHASE]] = start, KEYS, 8, 3, s.NO_PHASE
    m[s.LEFT, 0], m[s.LEFT, EXPERTS] = rng.integers(0, 4, 2)
    marked = {k for k in range(KEYS) if m[s.MARK, k] == 9}
    free, wanted, heads = SLOTS - int(m[REG, USED]), [], []
    for first in range(start, KEYS, EXPERTS):
        for _ in range(m[s.LEFT, first]):
            options = []
            for head in range(2):
                absent = [k for k in range(first, first + EXPERTS) if m[SLOT_OF, k] < 0 and k not in marked]
                if not absent:
                    continue
                key = book.strongest(head, absent)
                slot = -1 if free > 0 else book.weakest(first, head, lambda k: k in marked, False)
                gap = np.inf if free > 0 else 0.0
                if slot >= 0:
                    gap = book.value(head, key) - book.value(head, m[KEY_OF, slot])
                if gap > 0 and book.value(head, key) >= f[s.NUMBERS, s.FLOOR]:
                    options.append((gap, -head, key, slot))
            if not options:
                break
            _, head, key, slot = max(options)
            marked.add(key)
            if slot >= 0:
                marked.add(int(m[KEY_OF, slot]))
            else:
                free -= 1
            wanted.append(key)
            heads.append(-head)
    before = m.copy()
    n = slots.wish.py_func(m, f)
    assert m[WANT, :n].tolist() == wanted and m[s.WISH_HEAD, :n].tolist() == heads
    assert m[s.LIVE, [s.PHASE, s.AT, s.STAMP, s.WISHES]].tolist() == [s.WISHING, 0, 9, n] and m[REG, slots.CHANGES] == n
    assert {k for k in range(KEYS) if m[s.MARK, k] == 9} == marked
    written = (s.LIVE, [s.PHASE, s.AT, s.STAMP, s.WISHES]), (REG, slots.CHANGES), (s.MARK, slice(0, KEYS))
    alone(before, m, *written, (WANT, slice(0, n)), (s.WISH_HEAD, slice(0, n + 1)))
    m[REG, EVENT] = 1
    for key, head in zip(wanted, heads, strict=True):
        first = key // EXPERTS * EXPERTS
        if m[REG, USED] == SLOTS:
            slot = book.weakest(first, head, lambda k: False, True)
            least = slot if slot >= 0 else book.weakest_of_all()
            if least < 0:
                break
            assert slots.victim.py_func(m, f) == least
            assert m[s.LIVE, s.HEAD] == (head if slot >= 0 else m[s.OWNER, m[KEY_OF, least]])
            assert m[WANT, m[s.LIVE, s.AT]] == key
            m[SLOT_OF, m[KEY_OF, least]] = -1
        else:
            least = int(np.flatnonzero(m[KEY_OF, :SLOTS] < 0)[0])
            m[REG, USED] += 1
        m[KEY_OF, least], m[SLOT_OF, key], left = key, least, int(m[s.LEFT, first])
        slots.arrive.py_func(m, f, key)
        assert m[s.OWNER, key] == head and m[s.LEFT, first] == left - 1
    m[s.LIVE, s.AT] = n  # nothing is wished for any more: the weakest of all
    if (least := book.weakest_of_all()) >= 0:
        assert slots.victim.py_func(m, f) == least


def test_who_arrives_belongs_to_the_head_that_made_room() -> None:
    _, m, f = drawn(0)
    m[s.LEFT, :KEYS] = 5
    before = m.copy()
    slots.arrive.py_func(m, f, 3)
    alone(before, m)  # the initial fill
    m[REG, EVENT] = 1
    for phase, head, owner in ((s.ON_DEMAND, 1, 1), (s.NO_PHASE, -1, 0), (s.NO_PHASE, 0, 0)):
        m[s.LIVE, s.PHASE], m[s.LIVE, s.HEAD], m[s.OWNER, 11], m[s.LEFT, EXPERTS] = phase, head, 7, 5
        slots.arrive.py_func(m, f, 11)
        assert m[s.OWNER, 11] == owner and m[s.LEFT, EXPERTS] == 4 and m[s.LEFT, 0] == 5


def test_shares_are_even_and_the_first_get_what_is_over() -> None:
    assert [slots.shares(n, 3) for n in (0, 2, 6, 7, 8)] == [[0] * 3, [1, 1, 0], [2] * 3, [3, 2, 2], [3, 3, 2]]
