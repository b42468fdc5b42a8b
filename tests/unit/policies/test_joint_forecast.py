"""Eviction by the prefetcher's own forecast: one predictor, one forecast an event, serves both."""

from typing import Any

import numpy as np
import pytest

from rgpu.contracts import Forecast
from rgpu.errors import InputError
from rgpu.planning.top_k import TopK
from rgpu.policies import joint_forecast as joint
from rgpu.policies.joint_forecast import JointForecast
from rgpu.policies.loop import CAP, CLOCK, EVENT, HITS, KEY_OF, PIN, REG, WAVE, make_state
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
    needs: tuple[str, ...] = ()

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


def test_a_forecast_made_later_evicts_for_its_loads_and_the_events_to_come() -> None:
    after = [
        {1: [0.9, 0.1, 0.0, 0.0], 0: [0.5, 0.0, 0.0, 0.0]},
        {1: [0.2, 0.7, 0.0, 0.0]},
        {1: [0.7, 0.0, 0.9, 0.0], 0: [0.0, 0.5, 0.0, 0.0]},
        {1: [0.0, 0.0, 0.0, 0.0]},
    ]
    predictor = Scripted(after)
    predictor.needs = ("pre_attention",)
    pool, made = PoolConfig("global", 3), []
    controller = Controller(
        JointForecast(recency=0.0), MoEShape(2, 4, 1), pool, predictor=predictor, planner=TopK(1, horizon=1)
    )
    controller.start()
    for number, (layer, expert) in enumerate(((0, 0), (1, 1), (0, 1), (1, 3))):
        victims = controller.observe(event(layer, expert)).victims.tolist()
        assert predictor.asked == number and controller.wishes() == []
        loads = controller.later(np.zeros((1, 2), np.float32))
        assert predictor.asked == number + 1
        made.append((victims, [(d.layers.tolist(), d.experts.tolist(), d.victims.tolist()) for d in loads]))
    assert made[:2] == [([-1], [([1], [0], [-1])]), ([-1], [])]
    # expert 0 had a chance of 0.5, but in an event that is past; then key 5 has less than the older key 4
    assert made[2] == ([0], [([1], [2], [5])])
    assert made[3][0] == [4]


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
    both = replay_prefetch(trace, JointForecast(), pool, predictor, lambda: TopK(2))
    assert len(made) == len(both.decisions.events.pool)
    apart = replay_prefetch(trace, Lru(), pool, predictor, lambda: TopK(2))
    assert both.counts[:, HITS].sum() > apart.counts[:, HITS].sum()


def test_a_forecast_improves_eviction_alone(tmp_path: Any) -> None:
    trace = learnable_trace()
    predictor = make("linear", tmp_path).fit(trace)
    alone = replay_prefetch(trace, JointForecast(), PoolConfig(slots=4), predictor, NoPrefetch)
    assert alone.counts[:, HITS].sum() > replay(trace, Lru(), PoolConfig(slots=4), reset="sequence").hits


@pytest.mark.parametrize("seed", range(60))
def test_the_victim_has_the_least_chance_with_its_recency_then_the_oldest_use(seed: int) -> None:
    rng, keys, slots = np.random.default_rng(seed), 12, 8
    state, floats = make_state(1, keys, [slots], rows=2, frows=2)
    m, f = state[0], floats[0]
    held = rng.permutation(keys)[: slots - seed % 3]
    m[KEY_OF, : len(held)] = held
    m[REG, [EVENT, WAVE, joint.LAYERS]] = 40, 4, 1 + seed % 4
    m[joint.LAST, :keys], m[joint.TURN, :keys] = rng.integers(20, 41, keys), rng.integers(0, 3, keys)
    m[PIN, :keys] = rng.choice([3, 4], keys, p=(0.8, 0.2))
    f[joint.CHANCE, :keys] = rng.choice([0.0, 0.25, 0.5], keys)
    f[joint.WEIGHT, :] = 9.0
    f[joint.WEIGHT, 0] = recency = float(rng.choice([0.0, 0.25, 0.5]))
    order = [
        (f[joint.CHANCE, key] + recency / (1 + (40 - m[joint.LAST, key]) // (1 + seed % 4)), m[joint.TURN, key], slot)
        for slot, key in enumerate(held.tolist()) if m[PIN, key] != 4
    ]  # fmt: skip
    assert joint.victim.py_func(m, f) == (min(order)[2] if order else -1)
    assert m[REG, CAP] == slots
    m[PIN, :keys] = 4
    assert joint.victim.py_func(m, f) == -1


def test_the_last_pass_adds_recency_whole_and_earlier_ones_a_share() -> None:
    state, floats = make_state(1, 2, [2], rows=2, frows=2)
    m, f = state[0], floats[0]
    m[KEY_OF, :2], m[REG, [EVENT, WAVE, joint.LAYERS]] = (0, 1), (9, 4, 1)
    m[joint.LAST, :2], m[joint.TURN, :2] = (9, 0), 0
    f[joint.CHANCE, :2], f[joint.WEIGHT, 0] = (0.0, 0.25), 0.3
    assert joint.victim.py_func(m, f) == 1  # 0.3 and 0.25 + 0.03


def test_a_use_leaves_its_event_and_its_turn_and_a_pool_knows_its_layers() -> None:
    state, floats = make_state(1, 5, [3], rows=2, frows=2)
    m, f = state[0], floats[0]
    m[joint.LAST], m[joint.TURN], m[REG, [EVENT, CLOCK]] = -9, -9, (7, 11)
    joint.touch.py_func(m, f, 2, True)
    assert m[joint.LAST, :5].tolist() == [-9, -9, 7, -9, -9] and m[joint.TURN, :5].tolist() == [-9, -9, 11, -9, -9]
    for pool, layers in ((PoolConfig(slots=2), 1), (PoolConfig("global", 4), 3)):
        controller = Controller(
            JointForecast(recency=0.25), MoEShape(3, 4, 1), pool, predictor=Scripted([]), planner=TopK(1)
        )
        assert (controller._m[:, REG, joint.LAYERS] == layers).all()
        assert (controller._f[:, joint.WEIGHT, 0] == 0.25).all() and not controller._f[:, joint.WEIGHT, 1:].any()


def test_bad_recency() -> None:
    with pytest.raises(InputError, match=r"policy\.recency"):
        JointForecast(recency=-1.0)
    with pytest.raises(InputError, match=r"policy\.recency"):
        JointForecast(recency=float("inf"))
