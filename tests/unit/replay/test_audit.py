"""The audit passes what the loop does, names each kind of lie, and its regrets add up to the load."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rgpu.errors import InputError
from rgpu.policies.belady import Belady
from rgpu.policies.belady_bypass import BeladyBypass
from rgpu.policies.fifo import Fifo
from rgpu.policies.lru import Lru
from rgpu.policies.on_demand import OnDemand
from rgpu.replay.audit import RULES, audit, decided_by, divergence
from rgpu.replay.engine import replay
from rgpu.replay.log_file import LogFile, load_log
from rgpu.replay.pool import PoolConfig
from rgpu.replay.regret import regret
from tests.support import ALL, FORCED, routed_trace
from tests.unit.replay.test_log_file import HEADER, jsonl

FLAT = HEADER | {"layers": 1, "slots": 2}


def logged(trace: Any, policy: Any, scope: str = "layer", slots: int = 4, **options: Any) -> tuple[Any, LogFile]:
    result = replay(trace, policy, PoolConfig(scope, slots=slots), calibration=trace, decisions=True, **options)
    assert result.decisions is not None
    return result, LogFile(result.decisions, trace.header.num_experts)


@pytest.mark.parametrize("policy", ALL, ids=lambda p: p.name)
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_every_policy_of_rgpu_is_legal_and_counted_alike(policy: Any, scope: str) -> None:
    for group, reset in ((1, "none"), (3, "sequence")):
        trace = routed_trace(5, tokens=40, group=group, sizes=(10, 20))
        result, file = logged(trace, policy, scope, reset=reset)
        found = audit(file, pins=not policy.traits.bound)
        assert found.problem is None
        assert (found.hits, found.prefetch_hits, found.demand_loads) == (
            result.hits, result.prefetch_hits, result.demand_loads)  # fmt: skip
        assert (found.proactive_loads, found.fill_loads) == (result.proactive_loads, result.fill_loads)
        assert found.bytes_loaded == result.bytes_loaded


def audited(tmp_path: Path, *events: Any, header: Any = FLAT) -> str:
    problem = audit(load_log(jsonl(tmp_path / "log.jsonl", header, *events))).problem
    assert problem is not None
    return problem


def event(*experts: int, **fields: Any) -> dict[str, Any]:
    return {"layer": 0, "experts": list(experts), **fields}


FILLED = event(0, 1, loads=[[0, 0, None], [1, 1, None]])


@pytest.mark.parametrize(
    ("rule", "lie"),
    [
        (1, event(2, hits=[2])),
        (2, event(0, loads=[[0, 0, 0]])),
        (2, event(0, staged=[0])),
        (3, event(2, loads=[[2, 2, 0]])),
        (4, event(2, loads=[[2, 0, None]])),
        (5, event(2, loads=[[2, 0, 1]])),
        (5, event(2, loads=[[2, 0, 7]])),
        (6, event(0, 2, hits=[0], loads=[[2, 0, 0]])),
        (7, event(2, staged=[2])),
        (8, event(0, hits=[0], prefetches=[[1, 0, 0]])),
        (9, event(0, hits=[0], prefetches=[[3, 0, 1]])),
    ],
)
def test_each_lie_is_named_with_its_place(rule: int, lie: Any, tmp_path: Path) -> None:
    problem = audited(tmp_path, FILLED, lie)
    assert problem.endswith(": " + RULES[rule]) and problem.startswith("event 1 (pass 1, layer 0)")
    assert "\n" not in problem


def test_waves_of_an_oversized_event_are_legal(tmp_path: Path) -> None:
    served = event(0, 1, 2, 3, hits=[0, 1], loads=[[2, 0, 0], [3, 1, 1]])
    found = audit(load_log(jsonl(tmp_path / "log.jsonl", FLAT, FILLED, served)))
    assert found.problem is None and found.waves_beyond_first == 1
    twice = event(0, 2, 3, hits=[0], loads=[[2, 1, 1], [3, 1, 2]])
    assert RULES[6] in (
        audit(load_log(jsonl(tmp_path / "log.jsonl", FLAT | {"slots": 3}, FILLED, twice))).problem or ""
    )


def test_claims_are_checked(tmp_path: Path) -> None:
    assert (
        audited(tmp_path, FILLED, {"claims": {"loads": 3}}) == "claims: loads is given as 3, the decisions add up to 2"
    )
    assert "bytes_loaded" in audited(tmp_path, FILLED, {"claims": {"bytes_loaded": 21}})
    with pytest.raises(InputError, match="claim 'wins'"):
        audited(tmp_path, FILLED, {"claims": {"wins": 1}})


def test_staging_and_the_cpu_serve_without_keeping(tmp_path: Path) -> None:
    for extra, header in (({}, FLAT | {"staging": 1}), ({"handler": "cpu"}, FLAT)):
        path = jsonl(tmp_path / "log.jsonl", header, FILLED, event(2, staged=[2], **extra))
        found = audit(load_log(path))
        assert found.problem is None and found.bytes_loaded == (20 if extra else 30)


@pytest.mark.parametrize("policy", [*FORCED, OnDemand(), Belady(), BeladyBypass()], ids=lambda p: p.name)
def test_a_policy_agrees_with_itself_and_another_is_named(policy: Any) -> None:
    trace = routed_trace(7, tokens=50)
    _, file = logged(trace, policy, "global", 5, reset="sequence", seed=3)
    assert divergence(file, decided_by(file, policy, seed=3)) is None
    other = Fifo() if policy.name != "fifo" else Lru()
    line = divergence(file, decided_by(file, other))
    assert line is not None and other.name in line and "; the log " in line and line.startswith("event ")


def test_slots_are_only_names() -> None:
    _, file = logged(routed_trace(7), Lru())
    file.log.codes = np.where(file.log.codes >= 0, 3 - file.log.codes, file.log.codes).astype(np.int32)
    assert audit(file).problem is None and divergence(file, decided_by(file, Lru())) is None


def test_one_changed_victim_is_found() -> None:
    _, file = logged(routed_trace(7), Lru())
    a = int(np.flatnonzero(file.log.victims >= 0)[3])
    file.log.victims[a] = (file.log.victims[a] + 1) % 8
    line = divergence(file, decided_by(file, Lru()))
    assert line is not None and "lru evicts expert" in line
    assert audit(file).problem is not None


def test_what_a_log_cannot_decide_is_told() -> None:
    from rgpu.policies.rotary import Rotary

    _, file = logged(routed_trace(7), Lru())
    with pytest.raises(InputError, match="expected a demand policy"):
        decided_by(file, Rotary())
    trace = routed_trace(7, layers=2, sizes=(3, 4))
    result = replay(trace, Lru(), PoolConfig("global", bytes=20), decisions=True)
    assert result.decisions is not None
    with pytest.raises(InputError, match="byte budget"):
        audit(LogFile(result.decisions, 8))


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("reset", ["none", "sequence"])
def test_regrets_add_up_to_the_loads_beyond_belady(scope: str, reset: str) -> None:
    for seed in range(4):
        for group in (1, 3):
            trace = routed_trace(seed, tokens=60, group=group, sizes=(10, 10))
            for slots in (2, 4, 6):
                best = replay(trace, Belady(), PoolConfig(scope, slots=slots), reset=reset)
                if best.oversized_events:
                    continue
                for policy in (*FORCED, Belady()):
                    result, file = logged(trace, policy, scope, slots, reset=reset)
                    found = regret(file, link_bytes_per_s=100.0, latency_s=0.5)
                    assert found.extra_loads == result.loads - best.loads, (policy.name, seed, group, slots)
                    assert found.extra_bytes == 10 * found.extra_loads and found.unresolved == 0
                    assert found.stall_s == pytest.approx(0.6 * found.extra_loads)
                    assert found.evictions == (file.log.victims >= 0).sum()
                    assert (found.loads_each[found.optimal] == 0).all() and (found.loads_each >= 0).all()
                    assert (found.share_optimal == 1.0) == bool(found.optimal.all())


def test_belady_has_no_regret_and_a_short_horizon_says_so() -> None:
    trace = routed_trace(2, tokens=60)
    assert regret(logged(trace, Belady())[1]).share_optimal == 1.0
    poor = logged(trace, Fifo())[1]
    whole, cut = regret(poor), regret(poor, horizon=1)
    assert whole.unresolved == 0 < cut.unresolved
    assert whole.extra_bytes is None and whole.stall_s is None and 0 < whole.share_optimal < 1 < whole.sooner_mean
