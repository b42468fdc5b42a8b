"""Which misses are copied and which are computed in place: the division that ends first, by rates as they are measured."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rgpu.runtime.miss_choice import RETRY, MissChoice, Rate
from rgpu.transfer.counts import TransferCounts

times = st.integers(1, 50).map(lambda tenths: tenths / 10)


def choice(
    copy_s: float, place_s: float | None = None, slot_s: float | None = None, beside: bool = False
) -> MissChoice:
    """As after measurements."""
    counts = TransferCounts()
    made = MissChoice(lambda: counts, slots_take_time=not beside)
    if copy_s:
        counts = TransferCounts(copies=1, busy_s=copy_s)
        assert made.copy_s == copy_s
    for rate, seconds in ((made.in_place, place_s), (made.from_slots, slot_s)):
        if seconds is not None:
            rate.took([1], seconds)
    return made


@given(st.lists(st.integers(1, 9), min_size=1, max_size=7), times, times, times, st.booleans())
def test_no_other_division_ends_sooner(
    rows: list[int], copy_s: float, place_s: float, slot_s: float, beside: bool
) -> None:
    made = choice(copy_s, place_s, slot_s, beside)

    def ends(here: set[int]) -> float:
        place = sum(made.in_place.seconds(rows[i]) for i in here)
        copied = [i for i in range(len(rows)) if i not in here]
        slots = 0.0 if beside else sum(made.from_slots.seconds(rows[i]) for i in copied)
        return max(place, copy_s * len(copied)) + slots

    here, fetched = made.divide(range(len(rows)), rows)
    assert sorted(here + fetched) == list(range(len(rows)))
    assert ends(set(here)) <= min(ends(set()), ends(set(range(len(rows))))) + 1e-9
    if len({row.bit_length() for row in rows}) == 1:  # else the order in which they are taken is a good guess only
        every = [{i for i, own in enumerate(division) if own} for division in product((False, True), repeat=len(rows))]
        assert ends(set(here)) <= min(map(ends, every)) + 1e-9


@pytest.mark.parametrize(
    ("copy_s", "place_s", "here"), [(1.0, 100.0, 0), (100.0, 1.0, 6), (1.0, 1.0, 3), (1.0, 2.0, 2), (2.0, 1.0, 4)]
)
def test_by_the_rates(copy_s: float, place_s: float, here: int) -> None:
    made = choice(copy_s, place_s, beside=True)
    assert len(made.divide(range(6), [1] * 6)[0]) == here


def test_what_is_unknown_or_long_unused_is_tried() -> None:
    made = choice(0.0)
    here, fetched = made.divide([4, 7], [1] * 8)
    assert len(here) + len(fetched) == 2 and fetched
    made = choice(1.0)
    assert made.divide([0, 1, 2], [1] * 3)[0], "in place is unknown"
    made = choice(1.0, 100.0, beside=True)
    used = [len(made.divide(range(3), [1] * 3)[0]) for _ in range(3 * RETRY)]
    assert sum(used) == 3 and max(used) == 1
    made = choice(100.0, 1.0, beside=True)
    used = [len(made.divide(range(3), [1] * 3)[1]) for _ in range(3 * RETRY)]
    assert sum(used) == 3 and max(used) == 1
    assert made.divide([], []) == ([], [])


def test_rates_follow_what_is_measured() -> None:
    rate = Rate()
    assert not rate.known and rate.seconds(3) == 0
    rate.took([1, 1], 4.0)
    assert rate.seconds(1) == 2 and rate.seconds(2) == 4 and rate.seconds(8) == 16
    rate.took([4], 3.0)
    assert rate.seconds(4) == rate.seconds(7) and 3 <= rate.seconds(4) < 8
    for _ in range(100):
        rate.took([1, 4], 3.0)
    assert rate.seconds(1) + rate.seconds(4) == pytest.approx(3, rel=1e-4)
    for _ in range(200):
        rate.took([1], 1.0)
    assert rate.seconds(1) == pytest.approx(1)
    rng, noisy = np.random.default_rng(0), Rate()
    for _ in range(500):
        noisy.took([1], float(rng.uniform(0.5, 1.5)))
    assert 0.7 < noisy.seconds(1) < 1.3


def test_copies_that_nobody_timed_are_unknown() -> None:
    counts = TransferCounts(copies=5, busy_s=10.0)
    made = MissChoice(lambda: counts)
    assert made.copy_s == 0
    counts = TransferCounts(copies=7, busy_s=14.0)
    assert made.copy_s == 2 and made.copy_s == 2
    counts = TransferCounts(copies=400, busy_s=14.0 + 393)
    assert made.copy_s == pytest.approx(1)
