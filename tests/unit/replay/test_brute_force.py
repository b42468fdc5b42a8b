"""Hundreds of tiny traces against simulators written from the words, and against exhaustive search."""

import numpy as np
import pytest

from rgpu.policies.belady import Belady
from rgpu.policies.belady_bypass import BeladyBypass
from rgpu.policies.fifo import Fifo
from rgpu.policies.lfu import Lfu
from rgpu.policies.lru import Lru
from rgpu.replay.engine import replay
from rgpu.replay.pool import PoolConfig
from tests.support import fewest_loads, simulate, trace_of

BY_NAME = {"lru": Lru(), "fifo": Fifo(), "lfu": Lfu()}


def tiny(seed: int, widest: int, experts: int, length: int) -> list[tuple[int, ...]]:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, widest + 1, length)
    return [tuple(int(e) for e in rng.choice(experts, n, replace=False)) for n in sizes]


@pytest.mark.parametrize("name", BY_NAME)
def test_demand_policies_match_the_words(name: str) -> None:
    for seed in range(200):
        events = tiny(seed, 4, 7, 14)
        for slots in (1, 2, 3, 5):  # unions larger than the pool are served in waves
            result = replay(trace_of(events, 7), BY_NAME[name], PoolConfig(slots=slots))
            assert (result.hits, result.loads) == simulate(events, slots, name), (seed, slots)


def test_belady_is_the_optimum_with_forced_admission() -> None:
    for seed in range(150):
        events = tiny(seed, 2, 5, 9)
        for slots in (2, 3):
            result = replay(trace_of(events, 5), Belady(), PoolConfig(slots=slots))
            assert result.loads == fewest_loads(events, slots, forced=True), (seed, slots)


def test_belady_bypass_is_the_fewest_loads_of_all() -> None:
    for seed in range(150):
        events = tiny(seed, 3, 5, 9)
        for slots in (1, 2, 3):
            result = replay(trace_of(events, 5), BeladyBypass(), PoolConfig(slots=slots))
            assert result.loads == fewest_loads(events, slots, forced=False), (seed, slots)
