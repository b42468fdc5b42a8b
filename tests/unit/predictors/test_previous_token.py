from dataclasses import replace

import numpy as np

from rgpu.predictors.popularity import popularity
from rgpu.predictors.previous_token import PreviousToken, membership, reuse_rate
from rgpu.traces.stats import reuse
from rgpu.types import RoutingEvent
from tests.predicting import EXPERTS, LAYERS, TOP_K, learnable_trace


def event(layer: int, number: int, *experts: int) -> RoutingEvent:
    return RoutingEvent(layer, number, np.array([experts], np.int16), phase_T=np.ones(1, np.uint8))


def top(probs_E: np.ndarray) -> set[int]:
    return set(np.argsort(-probs_E, kind="stable")[:TOP_K].tolist())


def test_names_what_was_last_routed() -> None:
    trace = learnable_trace()
    predictor = PreviousToken(horizon=1).fit(trace)
    predictor.observe(event(0, 0, 5, 2))
    forecast = predictor.predict()
    assert np.array_equal(forecast.probs_HE[0], popularity(trace)[1])  # layer 1 not seen yet
    assert top(forecast.probs_HE[1]) == {5, 2}
    predictor.observe(event(1, 0, 0, 7))
    predictor.observe(event(0, 1, 1, 3))
    forecast = predictor.predict()
    assert (top(forecast.probs_HE[0]), top(forecast.probs_HE[1])) == ({0, 7}, {1, 3})


def test_reuse_is_that_of_the_statistics() -> None:
    trace = learnable_trace()
    assert np.allclose(reuse_rate(trace), reuse(trace, [1])[0])


def test_a_popular_outsider_never_passes_a_member() -> None:
    trace = learnable_trace()
    ids = trace.expert_ids.copy()
    ids[::2, :, 0], ids[::2, :, 1], ids[1::2, :, 0], ids[1::2, :, 1] = 0, 1, 2, 3  # no reuse at all
    predictor = PreviousToken().fit(replace(trace, expert_ids=ids))
    predictor.observe(event(0, 0, 6, 7))
    assert top(predictor.predict().probs_HE[-1]) == {6, 7}


def test_decode_rows_of_a_batch_are_averaged() -> None:
    predictor = PreviousToken().fit(learnable_trace())
    both = np.array([[0, 1], [4, 5], [6, 7]], np.int16)
    predictor.observe(RoutingEvent(LAYERS - 1, 0, both, phase_T=np.array([1, 1, 2], np.uint8)))
    batch_E = predictor.predict().probs_HE[0]
    rows = []
    for experts in both[:2]:
        predictor.observe(event(LAYERS - 1, 0, *experts))
        rows.append(predictor.predict().probs_HE[0])
    assert np.array_equal(batch_E, (rows[0] + rows[1]) / np.float32(2))


def test_membership_ignores_ids_that_are_not_experts() -> None:
    found = membership(np.array([[1, 255], [-1, 0]], np.int16), EXPERTS)
    assert [np.flatnonzero(row).tolist() for row in found] == [[1], [0]]
