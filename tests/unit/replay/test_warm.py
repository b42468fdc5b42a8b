"""Warm runs over shared random orders: the same work, counted by sequence."""

from typing import Any

import numpy as np
import pytest

from rgpu.errors import InputError
from rgpu.policies.loop import DEMAND_LOADS, HITS
from rgpu.policies.lru import Lru
from rgpu.replay.engine import replay
from rgpu.replay.pool import PoolConfig
from rgpu.replay.warm import ORDERS, counts_by_sequence, orders_of, sequence_orders
from tests.support import routed_trace


def test_orders_are_shared_permutations() -> None:
    orders_OS = sequence_orders(7, 20)
    assert orders_OS.shape == (20, 7) and np.array_equal(orders_OS, sequence_orders(7, 20))
    assert (np.sort(orders_OS, axis=1) == np.arange(7)).all()
    assert len({tuple(o) for o in orders_OS}) == 20
    assert not np.array_equal(orders_OS, sequence_orders(7, 20, seed=1))


def test_counts_go_to_the_sequence_they_belong_to() -> None:
    trace = routed_trace(3, tokens=50, sequences=5)
    order_S = np.array([3, 0, 4, 2, 1])
    moved = trace.select(order_S)
    result = replay(moved, Lru(), PoolConfig(slots=3), by_sequence=True)
    counts_SC = counts_by_sequence(result, order_S)
    assert counts_SC[:, HITS].sum() == replay(moved, Lru(), PoolConfig(slots=3)).hits
    first = replay(trace.select(order_S[:1]), Lru(), PoolConfig(slots=3))
    assert counts_SC[3, HITS] == first.hits  # the first of the order starts from an empty pool
    accesses = [replay(trace.select(np.array([s])), Lru(), PoolConfig(slots=3)).accesses for s in range(5)]
    assert (counts_SC[:, [HITS, DEMAND_LOADS]].sum(1) == accesses).all()


def test_how_many_orders() -> None:
    trace, alone = routed_trace(1, sequences=3), routed_trace(1, sequences=1)
    assert orders_of(trace, "auto", "none") == ORDERS == 20
    assert orders_of(trace, "auto", "sequence") == orders_of(alone, "auto", "none") == 0
    assert orders_of(trace, 25, "none") == 25


@pytest.mark.parametrize(
    ("asked", "reset", "match"), [(5, "sequence", "reset=none"), (-1, "none", "whole"), (True, "none", "whole")]
)
def test_what_cannot_be_ordered_is_told(asked: Any, reset: str, match: str) -> None:
    with pytest.raises(InputError, match=match):
        orders_of(routed_trace(1, sequences=3), asked, reset)


def test_mixed_passes_are_told() -> None:
    trace = routed_trace(1, sequences=2)
    trace.passes[:] = 0
    with pytest.raises(InputError, match="orders=0"):
        orders_of(trace, 20, "none")
