"""Calibrated synthetic traces: they meet what they were calibrated to, say what they are, and repeat bit for bit."""

import numpy as np
import pytest

from rgpu.errors import InputError
from rgpu.traces import stats
from rgpu.traces.synthetic import LABEL, Targets, calibrated, draw, inclusion_weights, overlap
from rgpu.traces.validate import validate

LAYERS, EXPERTS, K = 4, 32, 4
COUNTS = np.random.default_rng(3).gamma(0.7, 100, (LAYERS, EXPERTS)).astype(int)
TARGETS = Targets(0.5, 0.4, "made up for this test")


@pytest.fixture(scope="module")
def made():  # type: ignore[no-untyped-def]
    return calibrated("toy", COUNTS, K, TARGETS, sequences=40, tokens=60, seed=1, expert_bytes=100)


def test_reuse_and_popularity_meet_their_targets(made) -> None:  # type: ignore[no-untyped-def]
    trace, fit = made
    near, far = stats.reuse(trace, (1, 8)).mean(1)
    assert (fit.near, fit.far) == (near, far)
    assert near == pytest.approx(TARGETS.near, abs=0.03)
    assert far == pytest.approx(TARGETS.far, abs=0.03)
    share = (COUNTS + 0.5) / (COUNTS + 0.5).sum(1, keepdims=True)
    assert np.corrcoef(stats.popularity(trace).ravel(), share.ravel())[0, 1] == fit.popularity_correlation > 0.95


def test_it_is_a_valid_trace_that_says_what_it_is(made) -> None:  # type: ignore[no-untyped-def]
    trace, fit = made
    validate(trace)
    assert trace.expert_ids.dtype == np.uint8
    assert (np.sort(trace.expert_ids, 2)[:, :, 1:] != np.sort(trace.expert_ids, 2)[:, :, :-1]).all()
    assert LABEL in trace.header.model
    assert not trace.header.on_policy
    assert trace.header.expert_bytes == [100] * LAYERS
    assert trace.header.provenance["targets"]["source"] == TARGETS.source
    assert trace.header.provenance["fit"]["stickiness"] == fit.stickiness


def test_equal_arguments_give_an_equal_trace(made) -> None:  # type: ignore[no-untyped-def]
    again, _ = calibrated("toy", COUNTS, K, TARGETS, sequences=40, tokens=60, seed=1, expert_bytes=100)
    other, _ = calibrated("toy", COUNTS, K, TARGETS, sequences=40, tokens=60, seed=2, expert_bytes=100)
    assert again.checksum() == made[0].checksum() != other.checksum()


def test_without_stickiness_lags_do_not_matter_and_with_it_only_the_first_ones_do() -> None:
    taste = np.full((3, 24), 1 / 24)
    plain = draw(taste, 3, 100.0, 0.0, 20, 200, np.random.default_rng(0))
    sticky = draw(taste, 3, 100.0, 0.5, 20, 200, np.random.default_rng(0))
    assert overlap(plain, 1) == pytest.approx(overlap(plain, 8), abs=0.01)
    assert overlap(plain, 1) == pytest.approx(3 / 24, abs=0.02)
    assert overlap(sticky, 1) == pytest.approx(0.5 + 0.5 * 3 / 24, abs=0.03)
    assert overlap(sticky, 8) == pytest.approx(overlap(plain, 8), abs=0.02)


def test_draws_use_experts_as_often_as_asked() -> None:
    share = np.array([[0.2, 0.2, 0.15, 0.15, 0.1, 0.1, 0.05, 0.05]])
    weights = inclusion_weights(share, 3)
    ids = draw(weights, 3, 1e6, 0.0, 50, 400, np.random.default_rng(0))
    found = np.bincount(ids.ravel(), minlength=8) / ids.size
    assert found == pytest.approx(share[0], abs=0.012)


def test_a_taste_of_few_experts_still_fills_every_token() -> None:
    taste = np.array([[1.0 - 7e-9, *[1e-9] * 7]])
    ids = draw(taste, 4, 1e9, 0.3, 2, 30, np.random.default_rng(0))
    assert (np.sort(ids, 3)[..., 1:] != np.sort(ids, 3)[..., :-1]).all()


@pytest.mark.parametrize(
    ("targets", "top_k", "said"),
    [
        ((0.5, 0.1), K, "independent draws"),
        ((0.4, 0.5), K, "not above the first"),
        ((0.5, 0.4), EXPERTS, "fewer than all"),
    ],
)
def test_what_cannot_be_met_is_refused(targets: tuple[float, float], top_k: int, said: str) -> None:
    with pytest.raises(InputError, match=said):
        calibrated("toy", COUNTS, top_k, Targets(*targets, "x"), sequences=2, tokens=10)
