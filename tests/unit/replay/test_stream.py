"""Events say where sequences begin, and a predictor forgets there, live and in replay alike."""

import numpy as np

from rgpu.planning.top_k import TopK
from rgpu.policies.lru import Lru
from rgpu.predictors.popularity_prefix import PopularityPrefix
from rgpu.replay.controller import Controller, replay_events
from rgpu.replay.pool import PoolConfig
from rgpu.replay.stream import routing_events
from tests.predicting import learnable_trace


def test_the_first_event_of_every_sequence_is_fresh() -> None:
    trace = learnable_trace(sequences=4, tokens=10)
    fresh = [(e.pass_id, e.layer) for e in routing_events(trace) if e.fresh]
    assert len(fresh) == trace.sequences and {layer for _, layer in fresh} == {0}
    assert len({number for number, _ in fresh}) == trace.sequences


def test_what_was_seen_of_one_sequence_is_not_kept_for_the_next() -> None:
    trace = learnable_trace(sequences=4, tokens=10)
    predictor = PopularityPrefix(horizon=1).fit(trace)

    def forecasts(sequences: list[int]) -> np.ndarray:
        controller = Controller(Lru(), trace.shape, PoolConfig("layer", 4), predictor=predictor, planner=TopK(2))
        replay_events(controller, routing_events(trace.select(np.array(sequences))))
        return predictor.predict().probs_HE

    predictor.reset()
    alone = forecasts([2])
    assert np.array_equal(forecasts([0, 1, 2]), alone)
    assert not np.array_equal(forecasts([1]), alone)
