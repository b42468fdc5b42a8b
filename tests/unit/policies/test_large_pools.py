"""Pools large enough for a heap (128 slots and more): both Beladys against the plainest form of themselves."""

import numpy as np
import pytest

from rgpu.policies.belady import Belady
from rgpu.policies.belady_bypass import BeladyBypass
from rgpu.policies.heap import HEAP_FROM
from rgpu.replay.engine import replay
from rgpu.replay.pool import PoolConfig
from rgpu.traces.trace import Trace, TraceHeader

EXPERTS, TOP_K, PASSES, SLOTS = 200, 8, 140, HEAP_FROM + 2
NEVER = 10**9


def stream(seed: int) -> Trace:
    """One token a pass in one layer; a slowly moving taste, so that what was evicted comes back."""
    rng = np.random.default_rng(seed)
    ids = []
    for step in range(PASSES):
        weights = np.exp(-0.02 * ((np.arange(EXPERTS) - 2 * step) % EXPERTS)) + 0.2
        ids.append(rng.choice(EXPERTS, TOP_K, replace=False, p=weights / weights.sum()))
    header = TraceHeader("made up", EXPERTS, TOP_K, [0])
    steps = np.arange(PASSES, dtype=np.int32)
    return Trace(header, np.asarray(ids, np.uint8)[:, None], np.array([0, PASSES]), steps, steps)


def next_use(events: list[list[int]], now: int, key: int) -> int:
    return next((e for e in range(now + 1, len(events)) if key in events[e]), NEVER)


def plainest(events: list[list[int]], bypass: bool) -> int:
    """Loads of farthest next use; `bypass`: the new expert itself may be the farthest, and nothing is pinned."""
    resident: set[int] = set()
    loads = 0
    for now, keys in enumerate(events):
        for key in [k for k in keys if k not in resident]:
            loads += 1
            if len(resident) == SLOTS:
                free = resident if bypass else resident - set(keys)
                far = max(free, key=lambda k: next_use(events, now, k))
                if bypass and next_use(events, now, far) <= next_use(events, now, key):
                    continue
                resident.remove(far)
            resident.add(key)
    return loads


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("policy", [Belady(), BeladyBypass()], ids=lambda p: p.name)
def test_a_heap_of_next_uses_loads_as_little_as_a_look_at_all(policy: Belady | BeladyBypass, seed: int) -> None:
    trace = stream(seed)
    events = [list(map(int, row)) for row in trace.expert_ids[:, 0]]
    found = replay(trace, policy, PoolConfig(slots=SLOTS))
    assert found.misses > EXPERTS, "too little pressure for a test of victims"
    assert found.misses == plainest(events, bypass=policy.name == "belady_bypass")
