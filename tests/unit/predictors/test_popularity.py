from dataclasses import replace

import numpy as np

from rgpu.predictors.popularity import Popularity, popularity
from rgpu.traces.trace import PADDING
from rgpu.types import RoutingEvent
from tests.predicting import EXPERTS, LAYERS, TOP_K, learnable_trace


def test_share_of_tokens() -> None:
    trace = learnable_trace()
    share_LE = popularity(trace)
    assert np.allclose(share_LE.sum(1), TOP_K)
    assert share_LE[1, 3] == np.float32((trace.expert_ids[:, 1] == 3).any(1).mean())


def test_padding_and_unrecorded_ids_do_not_count() -> None:
    trace = learnable_trace()
    assert trace.phase is not None
    phase, ids = trace.phase.copy(), trace.expert_ids.copy()
    phase[:10], ids[20:30, 2] = PADDING, trace.missing
    share_LE = popularity(replace(trace, phase=phase, expert_ids=ids))
    kept = np.r_[10:20, 30 : trace.tokens]
    assert np.allclose(share_LE[2], popularity(replace(trace, phase=None, expert_ids=trace.expert_ids[kept]))[2])


def test_forecast_is_the_same_after_every_event() -> None:
    trace = learnable_trace()
    predictor = Popularity(horizon=1).fit(trace)
    for layer in range(LAYERS):
        predictor.observe(RoutingEvent(layer, 0, np.array([[0, 1]], np.int16)))
        forecast = predictor.predict()
        assert np.array_equal(forecast.probs_HE, predictor.tensors_["popularity_LE"][forecast.layers])


def test_event_of_padding_only_forecasts_nothing() -> None:
    predictor = Popularity().fit(learnable_trace())
    predictor.observe(RoutingEvent(0, 0, np.zeros((3, TOP_K), np.int16), phase_T=np.full(3, PADDING, np.uint8)))
    assert predictor.predict().probs_HE.shape == (LAYERS, EXPERTS)
    assert not predictor.predict().probs_HE.any()
