"""The traces whose counts the definitions fix."""

from typing import Any

import pytest

from rgpu.policies.lru import Lru
from rgpu.replay.engine import replay
from rgpu.replay.pool import PoolConfig
from tests.support import ALL, trace_of

PAIRS = [(0, 1), (0, 2), (0, 1), (0, 3), (0, 1)]


def test_three_layers_two_slots() -> None:
    result = replay(trace_of(PAIRS, 4, layers=3), Lru(), PoolConfig(slots=2))
    assert (result.hits, result.misses, result.loads) == (12, 18, 18)


def test_events_are_atomic() -> None:
    result = replay(trace_of([(2,), (1,), (0, 2)], 3), Lru(), PoolConfig(slots=2))
    assert (result.hits, result.misses) == (1, 3)
    one_at_a_time = replay(trace_of([(2,), (1,), (0,), (2,)], 3), Lru(), PoolConfig(slots=2))
    assert (one_at_a_time.hits, one_at_a_time.misses) == (0, 4)


def test_touching_every_member_in_rank_order_keeps_inclusion() -> None:
    x, a, b, c, y, z, p, q = range(8)
    trace = trace_of([(x,), (a, b, c), (y, z, x), (p,), (q,), (x,)], 8)
    three = replay(trace, Lru(), PoolConfig(slots=3))
    four = replay(trace, Lru(), PoolConfig(slots=4))
    assert three.hits_event.tolist()[-1] == 1
    assert four.hits_event.tolist()[-1] == 1
    assert (four.hits_event >= three.hits_event).all()


def test_oversized_event_is_served_in_waves_and_hits_are_not_loaded_again() -> None:
    result = replay(trace_of([(0, 1), (0, 1, 2, 3)], 4), Lru(), PoolConfig(slots=2), log=True)
    assert (result.hits, result.misses, result.loads, result.oversized_events) == (2, 4, 4, 1)
    assert result.log[1][4][:2] == (-1, -1)


@pytest.mark.parametrize("policy", ALL, ids=lambda p: p.name)
def test_first_use_is_a_cold_miss_only_where_nothing_was_loaded_ahead(policy: Any) -> None:
    trace = trace_of(PAIRS, 4)
    result = replay(trace, policy, PoolConfig(slots=2), calibration=trace)
    assert result.cold_misses <= 4
    if policy.traits.demand:
        assert result.cold_misses == 4
