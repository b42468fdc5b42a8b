"""The LP bound against exhaustive search, against bypass-Belady at equal sizes, and in windows."""

import itertools
import sys
from functools import cache
from typing import Any

import numpy as np
import pytest

from rgpu.errors import InputError
from rgpu.policies.belady_bypass import BeladyBypass
from rgpu.policies.gdsf import Gdsf
from rgpu.policies.lru import Lru
from rgpu.replay.engine import replay
from rgpu.replay.events import build_events
from rgpu.replay.flow_bound import bound_of, flow_bound
from rgpu.replay.pool import PoolConfig
from tests.support import routed_trace, trace_of


def fewest_bytes(events: list[tuple[int, ...]], sizes: list[int], capacity: int) -> int:
    """Fewest bytes over every choice of what to keep after each event, by exhaustive search."""
    sets = [frozenset(e) for e in events]

    @cache
    def best(i: int, resident: frozenset[int]) -> int:
        if i == len(sets):
            return 0
        cost, have = sum(sizes[k] for k in sets[i] - resident), sorted(resident | sets[i])
        keeps = (frozenset(c) for n in range(len(have) + 1) for c in itertools.combinations(have, n))
        return cost + min(best(i + 1, k) for k in keeps if sum(sizes[e] for e in k) <= capacity)

    return best(0, frozenset())


def bound(events: list[tuple[int, ...]], sizes: list[int], capacity: int, **options: Any) -> float:
    trace = trace_of(events, len(sizes))
    bytes_PK, bounds = np.array([sizes], float), np.array([0, len(events)])
    return bound_of(build_events(trace), bytes_PK, bytes_PK, np.array([float(capacity)]), bounds, **options).bytes


def tiny(seed: int) -> tuple[list[tuple[int, ...]], list[int]]:
    rng = np.random.default_rng(seed)
    events = [tuple(int(e) for e in rng.choice(5, rng.integers(1, 4), replace=False)) for _ in range(8)]
    return events, [int(s) for s in rng.integers(1, 6, 5)]


def test_never_above_the_best_schedule_and_close_to_it() -> None:
    gaps = []
    for seed in range(120):
        events, sizes = tiny(seed)
        for capacity in (3, 6, 9):
            best, found = fewest_bytes(events, sizes, capacity), bound(events, sizes, capacity)
            assert found <= best + 1e-6, (seed, capacity)
            gaps.append((best - found) / best)
    assert np.mean(gaps) < 0.05


def test_windows_only_loosen_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rgpu.replay.flow_bound.MARGIN", 1)
    for seed in range(60):
        events, sizes = tiny(seed)
        whole = bound(events, sizes, 6)
        for window in (1, 2, 4):
            assert bound(events, sizes, 6, window=window) <= whole + 1e-6


@pytest.mark.parametrize("reset", ["none", "sequence"])
def test_equal_sizes_give_bypass_belady(reset: str) -> None:
    for seed in range(4):
        trace = routed_trace(seed, tokens=60, sizes=(10, 10))
        for slots in (1, 2, 3, 5, 8):
            best = replay(trace, BeladyBypass(), PoolConfig(slots=slots), reset=reset).bytes_loaded
            assert flow_bound(trace, slots=slots, reset=reset).bytes == pytest.approx(best)
            assert flow_bound(trace, budget=20 * slots, reset=reset).bytes == pytest.approx(best)


@pytest.mark.parametrize("policy", [Lru(), Gdsf(), BeladyBypass()], ids=lambda p: p.name)
def test_no_policy_loads_less_under_a_byte_budget(policy: Any) -> None:
    for seed in range(4):
        trace = routed_trace(seed, tokens=60, layers=3, sizes=(4, 9, 25))
        for budget in (60, 90, 150):
            loaded = replay(trace, policy, PoolConfig("global", bytes=budget)).bytes_loaded
            assert loaded is not None
            assert flow_bound(trace, scope="global", budget=budget).bytes <= loaded + 1e-6


def test_slots_and_unequal_sizes_are_exact_per_layer() -> None:
    trace = routed_trace(2, tokens=60, layers=3, sizes=(4, 9, 25))
    best = replay(trace, BeladyBypass(), PoolConfig(slots=3)).bytes_loaded
    found = flow_bound(trace, slots=3)
    assert found.bytes == pytest.approx(best) and not found.windowed
    assert found.uses > found.bytes


def test_mistakes_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="expert_bytes"):
        flow_bound(routed_trace(0), slots=2)
    trace = routed_trace(0, sizes=(3, 4))
    with pytest.raises(InputError, match="exactly one"):
        flow_bound(trace)
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(InputError, match="pip install scipy"):
        flow_bound(trace, slots=2)
