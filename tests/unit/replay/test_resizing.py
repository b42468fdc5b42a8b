"""Pools that change their size between events: the loop's state stays whole, every policy goes on, a replay does the same."""

from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rgpu.contracts import Forecast
from rgpu.errors import InputError, TraceError
from rgpu.planning.expected_value import ExpectedValue
from rgpu.policies.admission import Capped, admitted
from rgpu.policies.arc import Arc
from rgpu.policies.lfu import Lfu
from rgpu.policies.lru import Lru
from rgpu.policies.policy import Traits
from rgpu.policies.slru import Slru
from rgpu.replay.controller import Controller, replay_events
from rgpu.replay.pool import PoolConfig
from rgpu.replay.resizing import Resizes
from rgpu.replay.stream import routing_events
from rgpu.types import RoutingEvent
from tests.resized import run
from tests.support import routed_trace

CHANGES = st.lists(st.tuples(st.integers(0, 29), st.integers(0, 1), st.integers(1, 8)), max_size=12).map(sorted)


@given(
    changes=CHANGES, slots=st.integers(1, 8), seed=st.integers(0, 9),
    policy=st.sampled_from([Lru(), Arc(), Slru(), admitted(Lru(), Capped(1))]),
)  # fmt: skip
@settings(max_examples=30, deadline=None)
def test_state_stays_whole_whatever_comes(
    changes: list[tuple[int, int, int]], slots: int, seed: int, policy: Any
) -> None:
    pool = PoolConfig(slots=slots + policy.traits.staging)
    run(policy, routed_trace(seed, tokens=30), pool, changes)


@given(changes=CHANGES, seed=st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_victims_of_lru_are_the_least_recent(changes: list[tuple[int, int, int]], seed: int) -> None:
    trace = routed_trace(seed, tokens=30, top_k=1, layers=2)
    controller = run(Lru(), trace, PoolConfig(slots=4), changes)
    held: list[OrderedDict[int, None]] = [OrderedDict(), OrderedDict()]
    room, left, log, hits = [4, 4], list(changes), iter(controller.log), 0
    for event in routing_events(trace):
        while event.layer == 0 and left and left[0][0] <= event.pass_id:
            _, pool, slots = left.pop(0)
            gone = [held[pool].popitem(last=False)[0] for _ in range(max(0, len(held[pool]) - slots))]
            if slots != room[pool]:
                assert [victim for victim in next(log)[5] if victim >= 0] == gone
            room[pool] = slots
        expert, mine = int(event.experts_TK[0, 0]), held[event.layer]
        hits += expert in mine
        victim = mine.popitem(last=False)[0] if expert not in mine and len(mine) == room[event.layer] else -1
        mine[expert] = None
        mine.move_to_end(expert)
        assert next(log)[5] == (victim,)
    assert controller.hits == hits


def test_a_heap_serves_a_pool_that_has_become_small() -> None:
    trace = routed_trace(3, tokens=60, layers=1, experts=200, top_k=4)
    for policy in (Lru(), Lfu()):
        small = run(policy, trace, PoolConfig(slots=150), [(0, 0, 10)])
        fixed = replay_events(Controller(policy, trace.shape, PoolConfig(slots=10)), routing_events(trace))
        assert small.hits == fixed.hits, policy


def test_what_cannot_be_is_refused_and_nothing_changes() -> None:
    class Rigid(Lru):
        traits = Traits(rows=1, resizes=False)

    trace = routed_trace(1)
    controller = run(Lru(), trace, PoolConfig(slots=4), [])
    before = controller._m.copy()
    for slots in (0, -1, 9):
        with pytest.raises(InputError, match="expected 1 to 8"):
            controller.resize(0, slots, 0)
    rigid = Controller(Rigid(), trace.shape, PoolConfig(slots=4))
    with pytest.raises(InputError, match="policy lru: .* such as lru"):
        rigid.resize(0, 2, 0)
    sized = routed_trace(1, sizes=[10, 20])
    uneven = Controller(Lru(), sized.shape, PoolConfig("global", bytes=90))
    with pytest.raises(InputError, match="unequal sizes"):
        uneven.resize(0, 2, 0)
    assert (controller._m == before).all()
    for pool in (-1, len(controller.slots), 99):
        with pytest.raises(InputError, match=f"pool: got {pool}; expected 0 to "):
            controller.resize(pool, 2, 0)
    for odd in ([[1, 2]], 5, None, "x", [[0, 1, "2"]]):
        sized.header.provenance["resizes"] = odd
        with pytest.raises(TraceError, match="provenance.resizes"):
            Resizes.of(sized)
    assert not Resizes.of(trace)


def test_a_planner_is_told() -> None:
    class Zero:
        name = "zero"

        def reset(self) -> None: ...

        def observe(self, event: RoutingEvent) -> None: ...

        def predict(self) -> Forecast:
            return Forecast(np.zeros(0, np.int16), np.zeros(0, np.int16), np.zeros((0, 8), np.float32))

    trace, planner = routed_trace(1), ExpectedValue()
    controller = run(Lru(), trace, PoolConfig(slots=4), [(5, 1, 2)], predictor=Zero(), planner=planner)
    assert list(planner._slots) == [4, 2] == controller.slots


@pytest.mark.parametrize(("target", "slots", "left"), [(6.0, 3, 3.0), (2.0, 3, 2.0), (6.0, 7, 6.0)])
def test_what_arc_gives_to_recent_experts_fits_the_pool(target: float, slots: int, left: float) -> None:
    controller = Controller(Arc(), routed_trace(0, tokens=4).shape, PoolConfig(slots=8))
    controller._f[0][0, 0] = target
    controller.resize(0, slots, 0)
    assert controller._f[0][0, 0] == left
