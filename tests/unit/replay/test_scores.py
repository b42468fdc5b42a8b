"""Every metric of a forecast by hand, against scikit-learn, and what must hold whatever the chances are."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import f1_score, hamming_loss, log_loss, precision_score, recall_score

from rgpu.replay.scores import BINS, EPS, Tally, Target, calibration_error, calibration_statistic, over_layers, ties
from rgpu.results.statistics import interval_of

EXPERTS, TOP_K, SEQUENCES = 6, 2, 3


def target(ids: Any, cluster: Any = None, share: Any = None, logits: Any = None) -> Target:
    ids_PK = np.asarray(ids, np.int64)
    cluster_P = np.zeros(len(ids_PK), np.int64) if cluster is None else np.asarray(cluster)
    share_PK = None if share is None else np.asarray(share, float)
    logits_PE = None if logits is None else np.asarray(logits, np.float16)
    return Target(ids_PK, share_PK, logits_PE, cluster_P, np.zeros_like(cluster_P))


def rows_of(probs: Any, wanted: Target, widths: tuple[int, ...] = (2, 3), size: int = 10) -> dict[Any, dict[str, Any]]:
    tally = Tally(widths, EXPERTS, TOP_K, SEQUENCES)
    tally.add(np.asarray(probs, np.float32), wanted)
    found = tally.rows(1, 1, wanted.share_PK is not None, wanted.logits_PE is not None, size)
    return {(r["metric"], r["width"]): r for r in found}


def test_two_forecasts_by_hand() -> None:
    probs = [[0.9, 0.6, 0.25, 0.05, 0.05, 0.05], [0.1, 0.1, 0.8, 0.7, 0.1, 0.1]]
    rows = rows_of(probs, target([[0, 2], [3, 2]], [0, 2], [[0.75, 0.25], [0.5, 0.5]]))
    value = {key: row["value"] for key, row in rows.items()}
    assert value["recall", 2] == 3 / 4  # 0 of (0, 1); then both
    assert value["recall", 3] == 1
    assert value["precision", 2] == 3 / 4 and value["precision", 3] == 4 / 6
    assert value["f1_micro", 3] == pytest.approx(2 * (4 / 6) / (1 + 4 / 6))
    assert value["exact", 2] == 1 / 2 and value["exact", 3] == 1
    assert value["mass", 2] == pytest.approx((0.75 + 1) / 2)
    assert value["accuracy", 2] == 10 / 12  # one named wrongly, one not named
    assert value["accuracy", 3] == 10 / 12
    assert value["top1", 1] == 1 / 2  # 0 and 0; 2, where the router ranks 3 first
    assert value["miss_bytes", 2] == 10 / 2
    chances = [0.9, 0.4, 0.25, 0.95, 0.95, 0.95, 0.9, 0.9, 0.8, 0.7, 0.9, 0.9]
    assert value["log_loss", None] == pytest.approx(-np.log(chances).mean(), rel=1e-6)
    gaps = [abs(p - y) for p, y in ((0.9, 1), (0.6, 0), (0.25, 1), (0.8, 1), (0.7, 1))]
    assert value["ece", None] == pytest.approx((sum(gaps) + 3 * 0.05 + 4 * 0.1) / 12, rel=1e-6)
    assert rows["recall", 2]["numerators"].tolist() == [1, 0, 2]
    assert rows["recall", 2]["denominators"].tolist() == [2, 0, 2]


def test_naming_nothing_is_accurate_and_useless() -> None:
    """What the field warns of: with 6 of 64 routed, "none" is right for 90.6 % of the experts, six wrong names for 81 %."""
    tally = Tally([6], 64, 6, 1)
    probs = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (2, 1))
    tally.add(probs, target([np.arange(6), np.arange(6)]))
    rows = {r["metric"]: r["value"] for r in tally.rows(0, 1, False, False)}
    assert rows["recall"] == rows["f1_micro"] == 0
    assert rows["accuracy"] == 52 / 64  # six more are wrong, the named ones
    assert "miss_bytes" not in rows and "ceiling" not in rows


def test_ties_by_hand() -> None:
    logits = np.array([[4, 3, 3, 1, 0, 0], [5, 5, 1, 1, 1, 1], [2, 2, 2, 2, 2, 2]], np.float16)
    routed = np.zeros((3, 6), bool)
    routed[[0, 0, 1, 1, 2, 2], [0, 2, 0, 1, 3, 4]] = True
    tied, reach = ties(logits, routed)
    assert tied.tolist() == [1, 0, 2]  # 3 = 3; 5 = 5 both routed; six alike
    assert reach.tolist() == pytest.approx([1 + 1 / 2, 2, 2 * 2 / 6])


def test_half_precision_makes_the_tie() -> None:
    near = np.array([[1.0, 0.30000001, 0.3, 0, 0, 0]], np.float32)
    rows = rows_of(near, target([[0, 1]], logits=near))
    assert rows["tied", None]["value"] == 1 / 2
    assert rows["ceiling", None]["value"] == 3 / 4


def made(seed: int, passes: int) -> tuple[np.ndarray, Target, np.ndarray]:
    rng = np.random.default_rng(seed)
    probs = rng.random((passes, EXPERTS), np.float32).round(int(rng.integers(1, 6)))
    ids = np.argsort(rng.random((passes, EXPERTS)), 1)[:, :TOP_K]
    share = rng.dirichlet([1] * TOP_K, passes)
    logits = rng.normal(size=(passes, EXPERTS)).round(int(rng.integers(0, 3)))
    wanted = target(ids, rng.integers(0, SEQUENCES, passes), share, logits)
    true = np.zeros((passes, EXPERTS), bool)
    np.put_along_axis(true, ids, True, 1)
    return probs, wanted, true


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("width", [TOP_K, 4])
def test_against_scikit_learn(seed: int, width: int) -> None:
    probs, wanted, true = made(seed, 40)
    rows = rows_of(probs, wanted, (TOP_K, width) if width > TOP_K else (TOP_K,))
    named = np.zeros_like(true)
    np.put_along_axis(named, np.argsort(-probs, 1, kind="stable")[:, :width], True, 1)
    assert rows["recall", width]["value"] == pytest.approx(recall_score(true, named, average="micro"))
    assert rows["precision", width]["value"] == pytest.approx(precision_score(true, named, average="micro"))
    assert rows["f1_micro", width]["value"] == pytest.approx(f1_score(true, named, average="micro"))
    assert rows["accuracy", width]["value"] == pytest.approx(1 - hamming_loss(true, named))
    clipped = np.clip(probs.ravel().astype(np.float64), EPS, 1 - EPS)
    assert rows["log_loss", None]["value"] == pytest.approx(log_loss(true.ravel(), clipped, labels=[0, 1]))
    if width == TOP_K:
        expected = f1_score(true, named, average="macro", zero_division=0)
        assert rows["f1", TOP_K]["value"] == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(3))
def test_reliability_bins_against_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    probs, wanted, true = made(seed, 60)
    probs = rng.random(probs.shape, np.float32)
    count, chances, routed = rows_of(probs, wanted)["ece", None]["bins"].sum(2)
    seen = count > 0
    expected, named = calibration_curve(true.ravel(), probs.ravel(), n_bins=BINS)
    assert routed[seen] / count[seen] == pytest.approx(expected)
    assert chances[seen] / count[seen] == pytest.approx(named, rel=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12))
def test_what_always_holds(seed: int, passes: int) -> None:
    probs, wanted, true = made(seed, passes)
    rows = rows_of(probs, wanted, tuple(range(1, EXPERTS + 1)))
    value = {key: row["value"] for key, row in rows.items()}
    for metric in ("recall", "exact", "mass"):
        own = [value[metric, w] for w in range(1, EXPERTS + 1)]
        assert np.all(np.diff(own) >= -1e-12) and own[-1] == pytest.approx(1)
    for w in range(1, EXPERTS + 1):
        assert value["exact", w] <= value["recall", w] + 1e-12
        assert value["precision", w] * w == pytest.approx(value["recall", w] * TOP_K)
        assert value["miss_bytes", w] == pytest.approx(10 * TOP_K * (1 - value["recall", w]))
        assert value["accuracy", w] >= 1 - (w + TOP_K) / EXPERTS - 1e-12
    assert 0 <= value["ece", None] <= 1 and value["log_loss", None] >= 0
    assert value["ceiling", None] >= 1 - value["tied", None] - 1e-12
    assert value["ceiling", None] <= 1 + 1e-12
    certain = rows_of(true, wanted)
    assert certain["recall", TOP_K]["value"] == 1 and certain["ece", None]["value"] == 0
    assert certain["log_loss", None]["value"] < 1e-6


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_chunks_and_sequences_add_up(seed: int) -> None:
    probs, wanted, _ = made(seed, 9)
    whole = rows_of(probs, wanted)
    tally = Tally((2, 3), EXPERTS, TOP_K, SEQUENCES)
    for part in (slice(0, 4), slice(4, 9)):
        assert wanted.share_PK is not None and wanted.logits_PE is not None
        share, logits = wanted.share_PK[part], wanted.logits_PE[part]
        tally.add(probs[part], target(wanted.ids_PK[part], wanted.cluster_P[part], share, logits))
    for row in tally.rows(1, 1, True, True, 10):
        assert row["value"] == pytest.approx(whole[row["metric"], row["width"]]["value"], abs=1e-12)


def test_layers_pool() -> None:
    probs, wanted, _ = made(5, 20)
    first, second = Tally((2,), EXPERTS, TOP_K, SEQUENCES), Tally((2,), EXPERTS, TOP_K, SEQUENCES)
    first.add(probs, wanted)
    second.add(1 - probs, wanted)
    rows = [*first.rows(1, 1, True, True, 10), *second.rows(2, 1, True, True, 30)]
    pooled = {r["metric"]: r for r in over_layers(rows)}
    value = {(r["layer"], r["metric"]): r["value"] for r in rows}
    assert pooled["recall"]["value"] == pytest.approx((value[1, "recall"] + value[2, "recall"]) / 2)
    assert pooled["miss_bytes"]["value"] == pytest.approx(value[1, "miss_bytes"] + value[2, "miss_bytes"])
    assert pooled["ece"]["value"] <= (value[1, "ece"] + value[2, "ece"]) / 2 + 1e-12
    assert all(r["layer"] is None for r in pooled.values())


def test_error_of_calibration_has_an_interval() -> None:
    probs, wanted, _ = made(3, 60)
    bins = rows_of(probs, wanted)["ece", None]["bins"]
    statistic, values = calibration_statistic(bins)
    found, _ = interval_of(statistic, values, samples=200)
    assert found.estimate == pytest.approx(float(calibration_error(bins.sum(2))))
    assert found.lo <= found.estimate <= found.hi or found.lo <= found.hi
    assert np.isnan(calibration_error(np.zeros((3, BINS))))
