"""The RAM cache below the pool sees exactly the loads, in order, and says which of them read the disk."""

from typing import Any

import numpy as np
import pytest

from rgpu.errors import InputError
from rgpu.policies.belady import Belady
from rgpu.policies.lru import Lru
from rgpu.policies.rotary import Rotary
from rgpu.replay.engine import replay
from rgpu.replay.log import AFTER, KEY, DecisionLog
from rgpu.replay.log import POOL as IN
from rgpu.replay.pool import PoolConfig
from rgpu.replay.timing.memory_tier import disk_loads, load_stream
from tests.support import ALL, routed_trace

SIZE = 10


def log_under(policy: Any, scope: str = "layer") -> DecisionLog:
    trace = routed_trace(7, tokens=40, sizes=(SIZE, SIZE))
    log = replay(
        trace, policy, PoolConfig(scope, slots=4), calibration=trace, reset="sequence", decisions=True
    ).decisions
    assert log is not None
    return log


def groups(log: DecisionLog) -> list[list[tuple[int, int, int]]]:
    """The slow way: loads of each event as (kind, row, expert of the model), fills first, proactive ones last."""
    events, per_pool, out = log.events, log.layout.keys, []
    for e in range(len(events.pool)):
        rows = np.flatnonzero(log.fills[:, AFTER] == e)
        out.append([(0, int(i), int(log.fills[i, IN] * per_pool + log.fills[i, KEY])) for i in rows])
        span = range(events.offs[e], events.offs[e + 1])
        out.append([(1, a, int(events.pool[e]) * per_pool + int(events.keys[a])) for a in span if not log.hit[a]])
        rows = np.flatnonzero(log.proactive[:, AFTER] == e)
        out.append([(2, int(i), int(log.proactive[i, IN] * per_pool + log.proactive[i, KEY])) for i in rows])
    return [group for group in out if group]


@pytest.mark.parametrize("policy", ALL, ids=lambda p: p.name)
@pytest.mark.parametrize("slots", [1, 3, 9, 16])
def test_lru_memory_by_the_words(policy: Any, slots: int) -> None:
    log = log_under(policy)
    found = disk_loads(log, Lru(), slots * SIZE + 3, np.array([SIZE, SIZE]))
    wanted = (np.zeros_like(found.fills), np.zeros_like(found.accesses), np.zeros_like(found.proactive))
    recent: list[int] = []
    for group in groups(log):
        present = [key for _, _, key in group if key in recent]
        wave = set(present)
        for kind, row, key in group:
            if key in present:
                continue
            wanted[kind][row] = 1
            if len(recent) == slots:
                if wave >= set(recent):
                    wave = set()
                recent.remove(next(k for k in recent if k not in wave))
            recent.append(key)
            wave.add(key)
        for _, _, key in group:
            if key in recent:
                recent.remove(key)
                recent.append(key)
    for got, want in zip((found.fills, found.accesses, found.proactive), wanted, strict=True):
        assert np.array_equal(got, want)


def test_memory_for_everything_reads_each_expert_once() -> None:
    log = log_under(Lru(), "global")
    found = disk_loads(log, Lru(), 1000 * SIZE, np.array([SIZE, SIZE]))
    stream = load_stream(log, SIZE)
    assert int(found.accesses.sum()) == len(np.unique(stream.trace.expert_ids))
    assert stream.trace.tokens == int((~log.hit).sum())


def test_a_better_policy_reads_the_disk_less() -> None:
    log = log_under(Lru())
    size = np.array([SIZE, SIZE])
    lru, belady = (int(disk_loads(log, p, 9 * SIZE, size).accesses.sum()) for p in (Lru(), Belady()))
    assert belady < lru


def test_mistakes() -> None:
    log = log_under(Lru())
    for policy, size, sizes, line in (
        (Lru(), 5, [SIZE, SIZE], "ram.bytes: got 5; expected room for at least 1"),
        (Lru(), 50, [SIZE, 9], "ram: got experts of unequal size"),
        (Rotary(), 50, [SIZE, SIZE], "ram.policy: got rotary, which needs"),
    ):
        with pytest.raises(InputError, match=f"^{line}"):
            disk_loads(log, policy, size, np.array(sizes))
