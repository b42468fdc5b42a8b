"""Splits of a budget over layers: nothing lost, proportions as said, the marginal split against exhaustive search."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rgpu.errors import InputError
from rgpu.policies.lru import Lru
from rgpu.replay.allocate import Entropy, Marginal, Uniform, allocate, concave_hull
from rgpu.replay.engine import replay
from rgpu.replay.pool import PoolConfig
from rgpu.traces.trace import Trace
from tests.support import routed_trace


def uneven(seed: int = 0) -> Trace:
    """Layer 0 always routes to the same two experts, the others to any."""
    trace = routed_trace(seed, tokens=80, layers=3)
    trace.expert_ids[:, 0] = [0, 1]
    return trace


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 999),
    sizes=st.lists(st.integers(1, 9), min_size=3, max_size=3),
    least=st.integers(1, 3),
    extra=st.integers(0, 250),
    which=st.sampled_from([Uniform(), Entropy(), Entropy(2.0), Marginal()]),
)
def test_budget_is_kept_and_used_up(seed: int, sizes: list[int], least: int, extra: int, which: object) -> None:
    trace = routed_trace(seed, tokens=30, layers=3)
    budget = least * sum(sizes) + extra
    slots: np.ndarray = np.array(allocate(which, trace, budget, np.array(sizes), least))
    used = int((slots * sizes).sum())
    assert used <= budget and slots.min() >= least and slots.max() <= trace.header.num_experts
    short = [s for s, n in zip(sizes, slots, strict=True) if n < trace.header.num_experts]
    assert not short or budget - used < min(short)


def test_a_layer_that_needs_less_gets_less() -> None:
    trace, ones = uneven(), np.ones(3)
    assert allocate(Uniform(), trace, 12, ones) == (4, 4, 4)
    for which in (Entropy(), Marginal()):
        slots = allocate(which, trace, 12, ones)
        assert slots[0] <= 2 and sum(slots) == 12
    assert allocate(Entropy(0.0), trace, 12, ones) == (4, 4, 4)


def test_marginal_is_the_best_split_of_the_hull_and_helps() -> None:
    trace = uneven(3)
    hits = {
        split: replay(trace, Lru(), PoolConfig(slots=split)).hits
        for split in itertools.product(range(2, 9), repeat=3)
        if sum(split) == 12
    }
    chosen = allocate(Marginal(), trace, 12, np.ones(3), least=2)
    assert hits[chosen] >= 0.97 * max(hits.values())  # the curves are nearly concave
    assert hits[chosen] > hits[(4, 4, 4)]


@given(st.lists(st.integers(0, 50), min_size=2, max_size=12))
def test_hull_is_concave_above_and_touches(gains: list[int]) -> None:
    curve = np.cumsum([0.0, *gains])
    hull = concave_hull(curve)
    assert (hull >= curve - 1e-9).all() and (np.diff(hull, 2) <= 1e-9).all()
    assert hull[0] == curve[0] and hull[-1] == curve[-1]


def test_too_small_a_budget_says_what_fits() -> None:
    with pytest.raises(InputError, match="at least 6"):
        allocate(Uniform(), routed_trace(0, layers=3), 5, np.ones(3), least=2)
    with pytest.raises(InputError, match="power"):
        Entropy(-1.0)
