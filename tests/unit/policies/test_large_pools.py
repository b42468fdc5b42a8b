"""Pools large enough for a heap (128 slots and more): both Beladys against the plainest form of themselves."""

from typing import Any

import numpy as np
import pytest

from rgpu.policies.admission import SecondHit, admitted
from rgpu.policies.belady import Belady
from rgpu.policies.belady_bypass import BeladyBypass
from rgpu.policies.heap import HEAP_FROM
from rgpu.policies.lfu_decayed import LfuDecayed
from rgpu.policies.lfu_perfect import LfuPerfect
from rgpu.policies.loop import BYPASS
from rgpu.replay.engine import replay
from rgpu.replay.pool import PoolConfig
from rgpu.traces.trace import Trace, TraceHeader

EXPERTS, TOP_K, PASSES = 200, 8, 140
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


def plainest(events: list[list[int]], slots: int, bypass: bool) -> int:
    """Loads of farthest next use; `bypass`: the new expert itself may be the farthest, and nothing is pinned."""
    resident: set[int] = set()
    loads = 0
    for now, keys in enumerate(events):
        for key in [k for k in keys if k not in resident]:
            loads += 1
            if len(resident) == slots:
                free = resident if bypass else resident - set(keys)
                far = max(free, key=lambda k: next_use(events, now, k))
                if bypass and next_use(events, now, far) <= next_use(events, now, key):
                    continue
                resident.remove(far)
            resident.add(key)
    return loads


@pytest.mark.parametrize(("seed", "slots"), [(0, HEAP_FROM), (1, HEAP_FROM), (2, HEAP_FROM + 2)])
@pytest.mark.parametrize("policy", [Belady(), BeladyBypass()], ids=lambda p: p.name)
def test_a_heap_of_next_uses_loads_as_little_as_a_look_at_all(
    policy: Belady | BeladyBypass, seed: int, slots: int
) -> None:
    trace = stream(seed)
    events = [list(map(int, row)) for row in trace.expert_ids[:, 0]]
    found = replay(trace, policy, PoolConfig(slots=slots))
    assert found.misses > EXPERTS, "too little pressure for a test of victims"
    assert found.misses == plainest(events, slots, bypass=policy.name == "belady_bypass")


@pytest.mark.parametrize("policy", [LfuPerfect(), LfuDecayed(half_life=20)], ids=lambda p: p.name)
def test_who_was_turned_away_is_no_victim(policy: Any) -> None:
    found = replay(stream(3), admitted(policy, SecondHit(20)), PoolConfig(slots=HEAP_FROM + TOP_K), log=True)
    resident: set[int] = set()
    turned_away = evicted = 0
    for _, _, _, keys, codes, victims in found.log:
        for key, code, gone in zip(keys, codes, victims, strict=True):
            turned_away += code == BYPASS
            if gone >= 0:
                resident.remove(gone)
                evicted += 1
            if code >= 0:
                resident.add(key)
            assert (key in resident) == (code != BYPASS)
    assert turned_away > 50 and evicted > 50
