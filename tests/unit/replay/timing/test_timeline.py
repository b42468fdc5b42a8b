"""The timeline is valid JSON, shows each track without overlaps, and adds up to what the result says."""

import json
from collections import defaultdict
from pathlib import Path

import pytest

from rgpu.errors import InputError
from rgpu.policies.ring import Ring
from rgpu.replay.engine import replay
from rgpu.replay.log import DecisionLog
from rgpu.replay.pool import PoolConfig
from rgpu.replay.timing.facts import PassFacts, pass_facts
from rgpu.replay.timing.simulate import MISSES, OVERLAPS, Window, simulate
from rgpu.replay.timing.timeline import write_timeline
from tests.clocks import cost_of_layers, machine
from tests.support import routed_trace

THERE = machine(
    bytes_per_s=1e6, link_bytes_per_s=5e5, link_chunk_bytes=100.0, link_latency_s=1e-4, cpu_bytes_per_s=1e6,
    zero_copy_bytes_per_s=5e5, sync_s=1e-4,
)  # fmt: skip
COST = cost_of_layers(2, dense_bytes=700.0, size=1000)


@pytest.fixture
def decided() -> tuple[DecisionLog, PassFacts]:
    trace = routed_trace(11, tokens=30, sizes=(1000, 1000))
    log = replay(trace, Ring(), PoolConfig(slots=4), decisions=True).decisions
    assert log is not None
    return log, pass_facts(trace)


@pytest.mark.parametrize("overlap", OVERLAPS)
@pytest.mark.parametrize("miss", MISSES)
def test_slices_add_up(decided: tuple[DecisionLog, PassFacts], tmp_path: Path, miss: str, overlap: str) -> None:
    log, facts = decided
    found = simulate(log, facts, THERE, COST, 2, miss=miss, overlap=overlap, record=Window(0, facts.passes))
    plain = simulate(log, facts, THERE, COST, 2, miss=miss, overlap=overlap)
    assert (found.parts == plain.parts).all()
    path = tmp_path / "t.json"
    count = write_timeline(path, found, log)
    document = json.loads(path.read_text())
    assert document["otherData"] == {"simulated": True} and len(document["traceEvents"]) == count
    tracks = defaultdict(list)
    for event in document["traceEvents"]:
        if event["ph"] == "X":
            tracks[event["tid"]].append((event["ts"], event["dur"], event["name"]))
    for track, slices in tracks.items():
        slices.sort()
        if track != 0 or overlap != "stream":  # streamed experts are drawn by when they end
            assert all(a[0] + a[1] <= b[0] + 1e-6 for a, b in zip(slices, slices[1:], strict=False)), track
    device = sum(dur for _, dur, name in tracks[0] if name != "router read-back")
    assert device == pytest.approx(found.parts[:, 1].sum() / 1e6, rel=1e-9)
    link = sum(dur for _, dur, _ in tracks[1])
    assert link - 201 <= found.link_busy_ps / 1e6 <= link + 1e-6  # drawn to its chunk border where an eviction ends it
    assert {p.name for p in tmp_path.iterdir()} == {"t.json"}


def test_a_window_of_passes_and_a_limit(decided: tuple[DecisionLog, PassFacts], tmp_path: Path) -> None:
    log, facts = decided
    found = simulate(log, facts, THERE, COST, 2, record=Window(5, 7))
    assert found.slices is not None and len(found.slices) > 0
    assert set(found.slices[found.slices[:, 4] >= 0, 4] // 2) == {5, 6}
    few = simulate(log, facts, THERE, COST, 2, record=Window(0, 30, room=10))
    assert few.slices is not None and len(few.slices) == 10


def test_mistakes(decided: tuple[DecisionLog, PassFacts], tmp_path: Path) -> None:
    log, facts = decided
    with pytest.raises(InputError, match="^timeline: got a run that was not recorded"):
        write_timeline(tmp_path / "t.json", simulate(log, facts, THERE, COST, 2), log)
    (tmp_path / "file").write_text("")
    recorded = simulate(log, facts, THERE, COST, 2, record=Window(0, 2))
    with pytest.raises(InputError, match="^cannot write t.json"):
        write_timeline(tmp_path / "file" / "t.json", recorded, log)
