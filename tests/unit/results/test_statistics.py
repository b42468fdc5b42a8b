"""Bootstrap, paired differences, Holm's correction and verdicts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rgpu.errors import InputError
from rgpu.results.statistics import (
    CANNOT_TELL,
    Interval,
    bootstrap,
    compare,
    gap_closed,
    holm,
    interval_of,
    paired_difference,
    verdict,
)

counts = st.lists(st.tuples(st.integers(0, 50), st.integers(51, 90)), min_size=2, max_size=12)
quick = settings(max_examples=25, deadline=None)


def sequences(seed: int, rate: float, size: int = 40) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    accesses = rng.integers(50, 400, size)
    return rng.binomial(accesses, np.clip(rng.normal(rate, 0.05, size), 0, 1)).astype(float), accesses.astype(float)


def test_agrees_with_scipy() -> None:
    hits, accesses = sequences(1, 0.6)
    ours = bootstrap(hits, accesses, samples=20_000)
    theirs = stats.bootstrap(
        (hits, accesses),
        lambda h, a, axis: h.sum(axis) / a.sum(axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=20_000,
        rng=np.random.default_rng(5),
    ).confidence_interval
    assert ours.lo == pytest.approx(theirs.low, abs=8e-4)
    assert ours.hi == pytest.approx(theirs.high, abs=8e-4)


@quick
@given(counts)
def test_estimate_is_the_ratio_of_sums_inside_the_range_of_sequences(pairs: list[tuple[int, int]]) -> None:
    hits, accesses = np.array(pairs, float).T
    found = bootstrap(hits, accesses, samples=200)
    assert found.estimate == pytest.approx(hits.sum() / accesses.sum())
    assert (hits / accesses).min() - 1e-12 <= found.lo <= found.hi <= (hits / accesses).max() + 1e-12


@quick
@given(counts, st.integers(0, 5))
def test_the_same_seed_gives_the_same_interval(pairs: list[tuple[int, int]], seed: int) -> None:
    hits, accesses = np.array(pairs, float).T
    assert bootstrap(hits, accesses, samples=100, seed=seed) == bootstrap(hits, accesses, samples=100, seed=seed)


def test_equal_sequences_leave_no_doubt() -> None:
    found = bootstrap(np.full(10, 3.0), np.full(10, 4.0))
    assert found == Interval(0.75, 0.75, 0.75)


def test_one_sequence_has_no_interval() -> None:
    found = bootstrap(np.array([3.0]), np.array([4.0]))
    assert found.estimate == 0.75
    assert np.isnan([found.lo, found.hi]).all()


def test_no_accesses_give_nan() -> None:
    assert np.isnan(bootstrap(np.zeros(3), np.zeros(3)).estimate)


def test_nothing_to_resample_is_an_input_error() -> None:
    with pytest.raises(InputError, match="at least one sequence"):
        bootstrap(np.zeros(0), np.zeros(0))


def test_warm_interval_covers_the_spread_of_orders() -> None:
    hits = np.array([[20.0] * 10, [40.0] * 10, [60.0] * 10])
    found = bootstrap(hits, np.full((3, 10), 100.0))
    assert found == Interval(pytest.approx(0.4), pytest.approx(0.2), pytest.approx(0.6))


@quick
@given(counts, st.data())
def test_paired_difference_is_antisymmetric(pairs: list[tuple[int, int]], data: st.DataObject) -> None:
    hits, accesses = np.array(pairs, float).T
    other = np.array([data.draw(st.integers(0, int(a))) for a in accesses], float)
    ab, p_ab = paired_difference(hits, accesses, other, accesses, samples=200)
    ba, p_ba = paired_difference(other, accesses, hits, accesses, samples=200)
    assert [ab.estimate, ab.lo, ab.hi] == pytest.approx([-ba.estimate, -ba.hi, -ba.lo], abs=1e-12)
    assert p_ab == pytest.approx(p_ba)


def test_pairing_removes_what_sequences_share() -> None:
    hits, accesses = sequences(2, 0.5)
    better, _ = paired_difference(hits + 2, accesses, hits, accesses)
    alone = bootstrap(hits, accesses)
    assert better.lo > 0
    assert better.hi - better.lo < (alone.hi - alone.lo) / 5


def test_unpaired_sequences_are_an_input_error() -> None:
    with pytest.raises(InputError, match="same sequences"):
        paired_difference(np.ones(3), np.ones(3), np.ones(4), np.ones(4))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_is_the_textbook_step_down(p: list[float]) -> None:
    order = sorted(range(len(p)), key=lambda i: p[i])
    expected, running = [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(p) - rank) * p[i]))
        expected[i] = running
    assert holm(p) == pytest.approx(expected)


def test_holm_worked_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_verdict_needs_the_margin_the_correction_and_the_clusters() -> None:
    clear = Interval(0.05, 0.03, 0.07)
    assert verdict(clear, 0.01, margin=0.02, clusters=20) == "higher"
    assert verdict(Interval(-0.05, -0.07, -0.03), 0.01, margin=0.02, clusters=20) == "lower"
    assert verdict(clear, 0.01, margin=0.04, clusters=20) == CANNOT_TELL
    assert verdict(clear, 0.20, margin=0.02, clusters=20) == CANNOT_TELL
    assert verdict(clear, 0.01, margin=0.02, clusters=4) == CANNOT_TELL
    assert verdict(Interval(0.05, np.nan, np.nan), np.nan, margin=0.0, clusters=20) == CANNOT_TELL


def test_compare_finds_the_one_that_differs() -> None:
    hits, accesses = sequences(3, 0.5)
    noise = np.random.default_rng(4).integers(-1, 2, len(hits))
    table = np.stack([hits, hits + noise, hits + 0.1 * accesses])
    found = {
        c.a: c.verdict
        for c in compare(["lru", "same", "better"], table, np.stack([accesses] * 3), margin=0.02, baseline="lru")
    }
    assert found == {"same": CANNOT_TELL, "better": "higher"}
    assert len(compare(["a", "b", "c"], table, np.stack([accesses] * 3), margin=0.02, samples=100)) == 3


def test_gap_closed_is_zero_at_the_baseline_and_one_at_the_optimum() -> None:
    lru, best = np.array([10.0, 20, 30]), np.array([20.0, 40, 60])
    assert interval_of(gap_closed, np.stack([lru, lru, best]))[0] == Interval(0, 0, 0)
    assert interval_of(gap_closed, np.stack([best, lru, best]))[0] == Interval(1, 1, 1)
    assert np.isnan(interval_of(gap_closed, np.stack([lru, lru, lru]))[0].estimate)
