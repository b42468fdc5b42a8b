"""Eviction by the prefetcher's own forecast: one predictor, one forecast an event, serves both."""

from typing import Any

import numpy as np
import pytest

from rgpu.contracts import Forecast
from rgpu.errors import InputError
from rgpu.planning.top_k import TopK
from rgpu.policies.joint_forecast import JointForecast
from rgpu.policies.loop import HITS
from rgpu.policies.lru import Lru
from rgpu.replay.controller import Controller
from rgpu.replay.engine import replay
from rgpu.replay.pool import PoolConfig
from rgpu.replay.prefetching import NoPrefetch, replay_prefetch
from rgpu.types import MoEShape, RoutingEvent
from tests.predicting import learnable_trace, make
from tests.support import routed_trace


class Scripted:
    """Forecasts that are written down, and how often they were asked for."""

    name = "scripted"

    def __init__(self, rows: list[dict[int, list[float]]]) -> None:
        self.rows, self.asked, self.seen = rows, 0, 0

    def reset(self) -> None: ...

    def observe(self, event: RoutingEvent) -> None:
        self.seen, self.layer = self.seen + 1, event.layer

    def predict(self) -> Forecast:
        self.asked += 1
        rows = self.rows[self.seen - 1]
        ahead = np.array([int(layer == self.layer) for layer in rows])
        return Forecast(np.array(list(rows)), ahead, np.array(list(rows.values()), np.float32))


def event(layer: int, *experts: int) -> RoutingEvent:
    return RoutingEvent(layer, 0, np.array([experts], np.int16))


def test_the_least_likely_goes_and_prefetch_reads_the_same_forecast() -> None:
    after = [
        {1: [0.9, 0.0, 0.0, 0.0], 0: [0.9, 0.1, 0.0, 0.0]},
        {1: [0.9, 0.1, 0.0, 0.0]},
        {1: [0.9, 0.8, 0.0, 0.0], 0: [0.1, 0.6, 0.2, 0.0]},
        {0: [0.6, 0.1, 0.2, 0.0]},  # made once expert 2 is known, of the pass after it: 0 is likelier than 1
    ]
    predictor = Scripted(after)
    shape, pool = MoEShape(2, 4, 1), PoolConfig(slots=2)
    controller = Controller(JointForecast(recency=0.0), shape, pool, predictor=predictor, planner=TopK(1))
    controller.start()
    controller.observe(event(0, 0))
    assert [(d.layers.tolist(), d.experts.tolist()) for d in controller.ahead()] == [([1], [0])]
    for layer, expert in ((1, 1), (0, 1)):
        controller.observe(event(layer, expert))
        controller.ahead()
    assert controller.observe(event(0, 2)).victims.tolist() == [1]  # LRU would have evicted 0
    assert predictor.asked == predictor.seen == 4


def test_without_a_predictor_it_is_lru() -> None:
    trace = routed_trace(3, tokens=60)
    for pool in (PoolConfig(slots=3), PoolConfig("global", 7)):
        mine, lru = (replay(trace, p, pool, log=True) for p in (JointForecast(recency=0.0), Lru()))
        assert mine.log == lru.log


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_one_forecast_an_event_for_eviction_and_prefetch(tmp_path: Any, scope: str) -> None:
    trace = learnable_trace()
    predictor = make("gate_lookahead", tmp_path).fit(trace)
    made: list[int] = []
    predict = predictor.predict
    predictor.predict = lambda: made.append(0) or predict()
    pool = PoolConfig(slots=3) if scope == "layer" else PoolConfig("global", 12)
    joint = replay_prefetch(trace, JointForecast(), pool, predictor, lambda: TopK(2))
    assert len(made) == len(joint.decisions.events.pool)
    apart = replay_prefetch(trace, Lru(), pool, predictor, lambda: TopK(2))
    assert joint.counts[:, HITS].sum() > apart.counts[:, HITS].sum()


def test_a_forecast_improves_eviction_alone(tmp_path: Any) -> None:
    trace = learnable_trace()
    predictor = make("linear", tmp_path).fit(trace)
    joint = replay_prefetch(trace, JointForecast(), PoolConfig(slots=4), predictor, NoPrefetch)
    assert joint.counts[:, HITS].sum() > replay(trace, Lru(), PoolConfig(slots=4), reset="sequence").hits


def test_bad_recency() -> None:
    with pytest.raises(InputError, match=r"policy\.recency"):
        JointForecast(recency=-1.0)
