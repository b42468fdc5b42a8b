"""Every pair of policies: words, Holm over all pairs, and who takes part."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from rgpu.results.pairs import BETTER, WORSE, compare_pairs, pair_rows, samples_for
from rgpu.results.rows import frame
from rgpu.results.statistics import CANNOT_TELL, compare
from tests.result_rows import CONTEXT, sweep


def of(rows: pd.DataFrame, metric: str, a: str, b: str) -> pd.Series:
    found = rows[(rows["metric"] == metric) & (rows["policy"] == a) & (rows["baseline"] == b)]
    assert len(found) == 1
    return found.iloc[0]


def test_words_follow_the_direction_of_the_metric() -> None:
    base = np.arange(40.0, 60.0)
    values = np.stack([base, base + 10, base + 0.01])
    counted = np.full_like(values, 100.0)
    hits = {(p.a, p.b): p for p in compare_pairs("xyz", values, counted, margin=0.005, higher_is_better=True)}
    loads = {(p.a, p.b): p for p in compare_pairs("xyz", values, counted, margin=0.005, higher_is_better=False)}
    assert (hits["x", "y"].verdict, loads["x", "y"].verdict) == (WORSE, BETTER)
    assert (hits["y", "z"].verdict, loads["y", "z"].verdict) == (BETTER, WORSE)
    assert hits["x", "z"].verdict == loads["x", "z"].verdict == CANNOT_TELL
    assert hits["x", "y"].difference.estimate == pytest.approx(-0.1)


def test_the_same_numbers_as_the_other_comparison() -> None:
    rng = np.random.default_rng(0)
    values, counted = rng.random((4, 3, 12)) * 50, np.full((4, 3, 12), 100.0)
    ours = compare_pairs("abcd", values, counted, margin=0.01, higher_is_better=True)
    theirs = compare("abcd", values, counted, margin=0.01)
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine.a, mine.b) == (other.a, other.b)
        assert mine.difference == other.difference and mine.p == pytest.approx(other.p)


def test_enough_samples_that_hundreds_of_pairs_can_be_told_apart() -> None:
    assert samples_for(3) == 10_000
    assert 780 * 2 / (1 + samples_for(780)) < 0.05
    steps = np.arange(30.0)[:, None] + np.arange(100.0, 120.0)[None]
    found = compare_pairs([str(i) for i in range(30)], steps, np.full(steps.shape, 100.0), margin=0.005,
                          higher_is_better=False)  # fmt: skip
    assert len(found) == 435 and {p.verdict for p in found} == {BETTER}


def test_few_sequences_cannot_tell() -> None:
    values = np.stack([np.full(7, 10.0), np.full(7, 90.0)])
    assert compare_pairs("ab", values, values * 0 + 100, margin=0.0, higher_is_better=True)[0].verdict == CANNOT_TELL
    assert compare_pairs("ab", values[:, :1], values[:, :1], margin=0.0, higher_is_better=True)[0].p == 1.0


def test_rows_hold_every_pair_of_contenders() -> None:
    rows = pair_rows(frame(pa.concat_tables(sweep()))).to_pandas()
    assert set(rows["experiment"]) == {"pair_difference"}
    assert not {"belady", "belady_bypass"} & {*rows["policy"], *rows["baseline"]}
    one = rows[(rows["slots"] == 4) & (rows["reset"] == "sequence")]
    assert len(one[one["metric"] == "loads_per_token"]) == 9 * 8 // 2
    assert {*one.loc[one["metric"] == "hit_rate", "policy"]} <= {"lru", "fifo", "lfu", "random"}
    assert "bytes_per_token" not in set(one["metric"])  # kept as totals only
    assert of(one, "loads_per_token", "on_demand", "rotary")["verdict"] == "worse"
    assert of(one, "hit_rate", "random", "lfu")["value"] < 0


def test_warm_orders_and_one_policy_against_all() -> None:
    at = CONTEXT.at(scope="layer", reset="none", slots=4, capacity_share=0.5)
    rng = np.random.default_rng(1)
    tokens = np.full((20, 10), 10.0)
    parts = [
        at.ratio("loads_per_token", rng.integers(10, 20, (20, 10)) + step, tokens, unit="loads/token", policy=p)
        for p, step in (("lru", 0), ("fifo", 30), ("mine", 60))
    ]
    rows = pair_rows(frame(pa.concat_tables(parts)), against="mine", experiment="comparison").to_pandas()
    assert set(zip(rows["policy"], rows["baseline"], strict=True)) == {("mine", "fifo"), ("mine", "lru")}
    assert set(rows["verdict"]) == {"worse"} and set(rows["count"]) == {10}
