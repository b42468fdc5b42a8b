"""Every verdict rule of the claims on outcomes made for it: all the words a claim can get, and on which side they fall."""

import numpy as np
import pytest

from rgpu.experiments.suites.claim import c1_semantic, c2_surge, c3_return, c4_hit_rate, c7_step, c8_modes
from rgpu.experiments.suites.claim.scoring import Counts
from rgpu.experiments.suites.claim.verdicts import (
    BETTER,
    CANNOT_TELL,
    NO_BETTER,
    NOT_SUPPORTED,
    OPEN,
    SUPPORTED,
    TRADE,
    Versus,
    above_all,
    above_one,
    agreed,
    below,
    mean_difference,
    versus,
)
from rgpu.results.statistics import Interval

UP, DOWN, SAME, WIDE = (
    Interval((a + b) / 2, a, b) for a, b in ((0.02, 0.04), (-0.04, -0.02), (-0.001, 0.001), (-0.1, 0.1))
)


def told(hits: Interval, loads: Interval, clusters: int = 20) -> Versus:
    """Slack of 0.005 loads a token."""
    return Versus(hits, loads, 0.005, clusters)


@pytest.mark.parametrize(
    ("hits", "loads", "word"),
    [
        (UP, SAME, BETTER), (UP, DOWN, BETTER), (SAME, DOWN, BETTER), (UP, UP, TRADE), (DOWN, DOWN, TRADE),
        (SAME, SAME, NO_BETTER), (SAME, UP, NO_BETTER), (DOWN, UP, NO_BETTER), (DOWN, SAME, NO_BETTER),
        (UP, WIDE, OPEN), (WIDE, SAME, OPEN), (WIDE, DOWN, OPEN), (SAME, WIDE, OPEN), (WIDE, WIDE, OPEN),
    ],
)  # fmt: skip
def test_hits_and_loads_decide_together(hits: Interval, loads: Interval, word: str) -> None:
    assert told(hits, loads).word == word


@pytest.mark.parametrize(("hits", "loads"), [(UP, DOWN), (SAME, SAME), (UP, UP), (SAME, DOWN), (DOWN, DOWN)])
def test_few_clusters_decide_nothing(hits: Interval, loads: Interval) -> None:
    assert told(hits, loads, clusters=7).word == OPEN


def test_every_control_counts() -> None:
    assert above_all([BETTER, BETTER]) == SUPPORTED
    assert above_all([BETTER, NO_BETTER]) == above_all([OPEN, NO_BETTER]) == NOT_SUPPORTED
    assert above_all([BETTER, TRADE]) == above_all([BETTER, OPEN]) == above_all([]) == CANNOT_TELL


def test_one_arm_is_enough() -> None:
    assert above_one([NO_BETTER, BETTER]) == SUPPORTED and above_one([NO_BETTER, NO_BETTER]) == NOT_SUPPORTED
    assert above_one([NO_BETTER, OPEN]) == above_one([NO_BETTER, TRADE]) == above_one([]) == CANNOT_TELL


def test_materials_must_agree() -> None:
    assert agreed({"a": SUPPORTED, "b": SUPPORTED}) == SUPPORTED
    assert agreed({"a": SUPPORTED, "b": NOT_SUPPORTED}) == CANNOT_TELL


def test_below() -> None:
    assert below(DOWN, 0.005, 20) == "lower" and below(SAME, 0.005, 20) == below(UP, 0.005, 20) == "not lower"
    assert below(WIDE, 0.005, 20) == below(DOWN, 0.005, 7) == below(Interval(0, np.nan, np.nan), 0.005, 20) == OPEN


def counts(hits: np.ndarray, loads: np.ndarray) -> Counts:
    n = len(hits)
    of, tokens = np.full(n, 400), np.full(n, 100)
    return Counts(hits, of, loads, loads, tokens, np.zeros(n))


def test_versus_is_own_minus_rival_in_shares_and_loads_a_token() -> None:
    rng = np.random.default_rng(0)
    base = rng.integers(150, 250, 30)
    found = versus(counts(base + 40, base), {"rival": counts(base, base + 50)})["rival"]
    assert found.hits.estimate == pytest.approx(0.1) and found.loads.estimate == pytest.approx(-0.5)
    assert found.slack == pytest.approx(0.005 * (base + 50).sum() / 3000) and found.word == BETTER
    assert versus(counts(base, base + 50), {"rival": counts(base + 40, base)})["rival"].word == NO_BETTER


def test_more_tests_make_wider_intervals() -> None:
    rng = np.random.default_rng(1)
    own, other = (counts(rng.integers(150, 250, 30), rng.integers(50, 80, 30)) for _ in range(2))
    one, many = (versus(own, {"rival": other}, tests=n)["rival"].hits for n in (1, 24))
    assert many.lo < one.lo and many.hi > one.hi


def c1(capacity: list[Versus], dial: list[Versus]) -> str:
    by_slots = {i: dict.fromkeys(c1_semantic.RIVALS, v) for i, v in enumerate(capacity)}
    return c1_semantic.decide(by_slots, {f"step {i}": dict.fromkeys(c1_semantic.MOVING, v) for i, v in enumerate(dial)})


def test_c1_needs_capacity_and_moved_bytes() -> None:
    more, even, none = told(UP, UP), told(WIDE, WIDE), told(SAME, SAME)
    assert c1([more, more, even], [told(UP, SAME), more]) == SUPPORTED
    assert c1([more, more, more], [more, more]) == NOT_SUPPORTED  # every limit moves more
    assert c1([more, more, more], [more, none]) == NOT_SUPPORTED
    assert c1([none, none, more], [told(UP, SAME)]) == NOT_SUPPORTED  # no more hits at equal capacity
    assert c1([more, more, more], [told(UP, WIDE)]) == CANNOT_TELL  # loads that may be more are not "no more"
    assert c1([more, even], [told(UP, SAME)]) == CANNOT_TELL  # half of the capacities is not more than half


def test_c1_every_rival_counts() -> None:
    more, good = told(UP, UP), told(UP, SAME)
    one_rival = {0: {"lru": more, "lfu": told(SAME, UP), "static_hot": more}}
    assert c1_semantic.decide(one_rival, {"step 1": {"lru": good, "lfu": good}}) == NOT_SUPPORTED
    alike = {0: dict.fromkeys(c1_semantic.RIVALS, more)}
    assert c1_semantic.decide(alike, {"step 1": {"lru": good, "lfu": more}}) == NOT_SUPPORTED
    assert c1_semantic.decide(alike, {"step 1": {"lru": good, "lfu": told(WIDE, SAME)}}) == CANNOT_TELL


def test_c2() -> None:
    assert c2_surge.decide(UP, DOWN, 16)[0] == SUPPORTED
    assert c2_surge.decide(SAME, DOWN, 16)[0] == c2_surge.decide(UP, SAME, 16)[0] == NOT_SUPPORTED
    assert c2_surge.decide(UP, UP, 16)[0] == NOT_SUPPORTED
    assert c2_surge.decide(UP, WIDE, 16)[0] == c2_surge.decide(WIDE, DOWN, 16)[0] == CANNOT_TELL
    assert c2_surge.decide(UP, DOWN, 7)[0] == CANNOT_TELL


def test_c3() -> None:
    assert c3_return.decide(DOWN, DOWN, 8)[0] == SUPPORTED
    assert c3_return.decide(SAME, DOWN, 8)[0] == c3_return.decide(DOWN, SAME, 8)[0] == NOT_SUPPORTED
    assert c3_return.decide(WIDE, DOWN, 8)[0] == c3_return.decide(DOWN, WIDE, 8)[0] == CANNOT_TELL
    assert c3_return.decide(DOWN, DOWN, 7)[0] == c3_return.decide(UP, UP, 7)[0] == CANNOT_TELL


def test_c4_at_equal_step_limits() -> None:
    good, bad, trade = (dict.fromkeys(("static_hot", "linear_residency"), w) for w in (BETTER, NO_BETTER, TRADE))
    assert c4_hit_rate.decide({"2": good, "none": bad}) == SUPPORTED
    assert c4_hit_rate.decide({"2": bad, "none": {**trade, "linear_residency": NO_BETTER}}) == NOT_SUPPORTED
    assert c4_hit_rate.decide({"2": bad, "none": trade}) == c4_hit_rate.decide({"2": trade}) == CANNOT_TELL


def test_c7_words() -> None:
    rising = np.linspace(1, 2, 12)
    gap, known = mean_difference(rising - 1, rising)
    assert c7_step.WORDS[below(gap, 0.05, known)] == SUPPORTED
    gap, known = mean_difference(rising, rising)
    assert c7_step.WORDS[below(gap, 0.05, known)] == NOT_SUPPORTED
    gap, known = mean_difference(np.array([1.0, np.nan]), np.array([1.0, 1.0]))
    assert known == 1 and below(gap, 0.05, known) == OPEN


def test_c8_needs_the_whole_order() -> None:
    half = Interval(-0.015, -0.02, -0.01)
    groups, synchronised = told(half, half), told(DOWN, DOWN)
    assert c8_modes.decide(synchronised, groups) == SUPPORTED
    assert c8_modes.decide(told(UP, DOWN), groups) == c8_modes.decide(told(DOWN, UP), groups) == NOT_SUPPORTED
    assert c8_modes.decide(synchronised, told(UP, half)) == c8_modes.decide(told(SAME, DOWN), groups) == CANNOT_TELL
