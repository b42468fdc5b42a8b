"""Budgets in slots and bytes, staging, and what cannot be laid out."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rgpu.errors import InputError, TraceError
from rgpu.policies.belady_bypass import BeladyBypass
from rgpu.policies.lru import Lru
from rgpu.policies.on_demand import OnDemand
from rgpu.policies.static_hot import StaticHot
from rgpu.replay.controller import Controller
from rgpu.replay.engine import replay
from rgpu.replay.pool import PoolConfig, lay_out
from rgpu.replay.stream import routing_events
from tests.support import LIVE, routed_trace

SIZES = (30, 50)


def test_bytes_are_split_evenly_over_layers_and_sizes_come_from_the_header() -> None:
    shape = routed_trace(0, sizes=SIZES).shape
    layout = lay_out(PoolConfig(bytes=300), Lru(), shape)
    assert layout.main == [5, 3]
    assert lay_out(PoolConfig(bytes=300, staging=2), OnDemand(), shape).main == [3, 1]


def test_bytes_and_slots_agree_where_sizes_are_equal() -> None:
    trace = routed_trace(0, sizes=(10, 10))
    for scope, slots, budget in (("layer", 3, 60), ("global", 6, 60)):
        by_slots = replay(trace, Lru(), PoolConfig(scope=scope, slots=slots))
        by_bytes = replay(trace, Lru(), PoolConfig(scope=scope, bytes=budget))
        assert by_slots.hits == by_bytes.hits
        assert by_bytes.bytes_loaded == 10 * by_bytes.loads


@given(seed=st.integers(0, 1000), budget=st.integers(100, 400), which=st.integers(0, len(LIVE) - 1))
@settings(max_examples=25, deadline=None)
def test_a_global_pool_never_holds_more_bytes_than_its_budget(seed: int, budget: int, which: int) -> None:
    trace, policy = routed_trace(seed, sizes=SIZES), LIVE[which]
    pool = PoolConfig(scope="global", bytes=budget)
    controller: Any = Controller(policy, trace.shape, pool, calibration=trace)
    staged = max(SIZES) * controller.staging
    controller.start()
    for event in routing_events(trace):
        controller.observe(event)
        controller.ahead()
        held = controller.resident_LE().sum(1) @ np.array(SIZES)
        assert held + staged <= budget
    bulk = replay(trace, policy, pool, calibration=trace)
    assert bulk.hits == controller.hits


def test_staging_comes_out_of_the_budget() -> None:
    trace = routed_trace(1)
    result = replay(trace, StaticHot(), PoolConfig(slots=4, staging=3), calibration=trace)
    assert result.fill_loads == trace.layers
    assert replay(trace, OnDemand(), PoolConfig(slots=1)).loads == result.accesses


@pytest.mark.parametrize(
    ("pool", "policy", "words"),
    [
        (PoolConfig(slots=4, scope="row"), Lru(), "pool.scope"),
        (PoolConfig(), Lru(), "exactly one"),
        (PoolConfig(slots=4, bytes=100), Lru(), "exactly one"),
        (PoolConfig(slots=1, staging=2), OnDemand(), "at least 2"),
        (PoolConfig(slots=4, staging=0), OnDemand(), "pool.staging"),
        (PoolConfig(bytes=20), Lru(), "room for 0 slots"),
        (PoolConfig(scope="global", bytes=40), Lru(), "largest expert"),
    ],
)
def test_what_cannot_be_laid_out_says_so(pool: PoolConfig, policy: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        replay(routed_trace(0, sizes=SIZES), policy, pool)


def test_bytes_without_sizes_say_so() -> None:
    with pytest.raises(InputError, match="expert_bytes"):
        replay(routed_trace(0), Lru(), PoolConfig(bytes=100))


def test_resets() -> None:
    mixed = routed_trace(0, sequences=2, tokens=40)
    mixed.passes = np.tile(np.arange(20, dtype=np.int32), 2)  # a batch of two sequences
    with pytest.raises(TraceError, match="reset=batch"):
        replay(mixed, Lru(), PoolConfig(slots=4), reset="sequence")
    assert replay(mixed, Lru(), PoolConfig(slots=4), reset="batch").hits > 0
    with pytest.raises(InputError, match="replay.reset"):
        replay(mixed, Lru(), PoolConfig(slots=4), reset="daily")


def test_bound_needs_no_staging() -> None:
    assert lay_out(PoolConfig(slots=4), BeladyBypass(), routed_trace(0).shape).staging == 0
