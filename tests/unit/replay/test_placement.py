"""Scopes: what lives where, and that pools of several layers count what separate simulators count."""

import numpy as np
import pytest

from rgpu.errors import InputError
from rgpu.policies.lru import Lru
from rgpu.policies.static_hot import StaticHot
from rgpu.replay.controller import Controller, replay_events
from rgpu.replay.engine import replay
from rgpu.replay.mattson import lru_curve
from rgpu.replay.placement import place_layers
from rgpu.replay.pool import PoolConfig, lay_out
from rgpu.replay.stream import routing_events
from rgpu.traces.trace import Trace
from tests.support import routed_trace, simulate, unions


def interleaved_unions(trace: Trace, layers: range) -> list[list[int]]:
    """Unions of some layers pass by pass, keys as a pool of those layers names them."""
    each = [unions(trace, layer) for layer in layers]
    experts = trace.header.num_experts
    return [
        [i * experts + e for e in each[i][p]] for p in range(len(each[0])) for i in range(len(layers))
    ]  # fmt: skip


def test_groups_are_consecutive_layers_of_equal_size() -> None:
    placed = place_layers("group2", 6, 10)
    assert placed.pool_of.tolist() == [0, 0, 0, 1, 1, 1] and placed.base.tolist() == [0, 10, 20, 0, 10, 20]
    assert (placed.pools, placed.keys) == (2, 30)
    with pytest.raises(InputError, match="choose group2, group3"):
        place_layers("group4", 6, 10)
    with pytest.raises(InputError, match="pool.scope"):
        place_layers("groups", 6, 10)


@pytest.mark.parametrize("scope", ["layer", "group2", "global"])
def test_lru_counts_what_a_simulator_of_each_pool_counts(scope: str) -> None:
    trace = routed_trace(5, tokens=60, layers=4)
    placed = place_layers(scope, 4, trace.header.num_experts)
    slots = tuple(3 + p for p in range(placed.pools))
    result = replay(trace, Lru(), PoolConfig(scope, slots), log=True)
    expected = [
        simulate(interleaved_unions(trace, range(p * placed.span, (p + 1) * placed.span)), slots[p], "lru")[0]
        for p in range(placed.pools)
    ]
    assert result.hits == sum(expected)
    live = Controller(Lru(), trace.shape, PoolConfig(scope, slots))
    assert replay_events(live, routing_events(trace)).log == result.log
    curve, exact = lru_curve(trace, scope=scope)
    assert [int(curve[p, s]) for p, s in enumerate(slots) if s >= exact] == expected[max(0, exact - 3) :]


def test_a_group_keeps_its_own_byte_budget() -> None:
    shape = routed_trace(5, layers=4, sizes=(3, 4, 5, 5)).shape
    layout = lay_out(PoolConfig("group2", bytes=40), Lru(), shape)
    assert layout.main == [6, 4] and layout.byte_cap.tolist() == [20, 0]
    with pytest.raises(InputError, match="one for each of 2 pools"):
        lay_out(PoolConfig("group2", (1, 2, 3)), Lru(), shape)


def test_staging_may_be_none_where_misses_are_computed_in_place() -> None:
    trace = routed_trace(5)
    with pytest.raises(InputError, match="staging"):
        replay(trace, StaticHot(), PoolConfig(slots=4, staging=0), calibration=trace)
    result = replay(trace, StaticHot(), PoolConfig(slots=4, staging=0, miss="cpu"), calibration=trace)
    assert result.fill_loads == 4 * trace.layers
    assert np.all(result.pieces >= 0)
