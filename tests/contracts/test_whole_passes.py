"""A pass whose experts are all resident may be decided in one call: every policy then stands where single events take it."""

from typing import Any

import numpy as np
import pytest

from rgpu.policies.lru import Lru
from rgpu.replay.controller import Controller
from rgpu.replay.pool import PoolConfig
from rgpu.types import RoutingEvent
from tests.contracts.test_policies import NAMES, load
from tests.support import routed_trace

PLAIN = [name for name in NAMES if not (load(name).traits.needs_future or load(name).traits.feature)]


def full(policy: Any, **options: Any) -> Controller:
    trace = routed_trace(1, layers=3, experts=8, top_k=2)
    controller = Controller(policy, trace.shape, PoolConfig("layer", 9), calibration=trace, **options)
    controller.start()
    for layer in range(3):  # loads what the policy keeps
        for first in range(0, 8, 2):
            controller.observe(event(layer, np.array([[first, first + 1]]), np.ones((1, 2))))
            controller.ahead()
    return controller


def event(layer: int, ids_TK: np.ndarray, weights_TK: np.ndarray) -> RoutingEvent:
    return RoutingEvent(layer, 7, ids_TK.astype(np.int16), weights_TK.astype(np.float32))


def passes(tokens: int) -> Any:
    draw = np.random.default_rng(tokens)
    for _ in range(12):
        ids = np.stack([[draw.permutation(8)[:2] for _ in range(tokens)] for _ in range(3)])
        yield ids, draw.random(ids.shape).astype(np.float32)


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("name", PLAIN)
def test_one_call_as_many(name: str, tokens: int) -> None:
    once, singly = full(load(name)), full(load(name))
    if not once.can_batch():
        return
    for ids_LTK, weights_LTK in passes(tokens):
        assert once.can_batch()
        once.observe_hits(ids_LTK, weights_LTK, 7)
        for layer in range(3):
            singly.observe(event(layer, ids_LTK[layer], weights_LTK[layer]))
            assert not singly.ahead()
    assert once.log == singly.log and once.accesses == singly.accesses and once.hits == singly.hits
    np.testing.assert_array_equal(once._m, singly._m)
    np.testing.assert_array_equal(once._f, singly._f)
    np.testing.assert_array_equal(once.counts, singly.counts)


def test_most_policies_can() -> None:
    able = {name for name in PLAIN if full(load(name)).can_batch()}
    assert {"lru", "lfu", "arc", "sieve", "random"} <= able and not able & {"joint_forecast", "ring"}
    assert not full(Lru(), touch_order="reverse_rank").can_batch()


def test_an_expert_named_twice_goes_the_usual_way() -> None:
    once, singly = full(Lru()), full(Lru())
    ids_LTK, weights_LTK = np.array([[[3, 3]], [[1, 2]], [[0, 5]]]), np.ones((3, 1, 2), np.float32)
    once.observe_hits(ids_LTK, weights_LTK, 7)
    for layer in range(3):
        singly.observe(event(layer, ids_LTK[layer], weights_LTK[layer]))
    assert once.log == singly.log
