"""The decision log holds what the replay counted, and replaying it by hand gives the same residents."""

from typing import Any

import numpy as np
import pytest

from rgpu.replay.engine import replay
from rgpu.replay.log import AFTER, KEY, SLOT, VICTIM
from rgpu.replay.log import POOL as IN
from rgpu.replay.pool import PoolConfig
from tests.support import ALL, routed_trace


@pytest.mark.parametrize("policy", ALL, ids=lambda p: f"{p.name}")
@pytest.mark.parametrize("reset", ["none", "sequence"])
def test_log_is_the_whole_story(policy: Any, reset: str) -> None:
    trace = routed_trace(3, tokens=40)
    result = replay(trace, policy, PoolConfig(slots=4), calibration=trace, reset=reset, decisions=True, chunk=7)
    log = result.decisions
    assert log is not None
    assert int(log.hit.sum()) == result.hits and len(log.proactive) == result.proactive_loads
    assert int((log.kept | log.staged).sum()) == result.demand_loads and len(log.fills) == result.fill_loads
    resident: list[dict[int, int]] = []
    for e in range(len(log.events.pool)):
        if e in log.stretches[:-1]:
            resident = [{} for _ in range(log.layout.pools)]
            for row in log.fills[log.fills[:, AFTER] == e]:
                resident[row[IN]][int(row[KEY])] = int(row[SLOT])
        at = slice(log.events.offs[e], log.events.offs[e + 1])
        here = resident[log.events.pool[e]]
        keys = log.events.keys[at].tolist()
        assert [k in here for k in keys] == log.hit[at].tolist()
        for key, code, victim in zip(keys, log.codes[at].tolist(), log.victims[at].tolist(), strict=True):
            if code >= 0:
                assert victim < 0 or here.pop(victim) == code
                here[key] = code
        for row in log.proactive[log.proactive[:, AFTER] == e]:
            mine = resident[row[IN]]
            assert row[VICTIM] < 0 or mine.pop(int(row[VICTIM])) == row[SLOT]
            mine[int(row[KEY])] = int(row[SLOT])
        assert all(len(r) <= 4 and len(set(r.values())) == len(r) for r in resident)
    assert np.array_equal(log.stretches, np.unique(log.stretches))
