"""Slices of a run as trace events: tracks and numbers of the simulator's timelines, whole files or none."""

import json
from pathlib import Path

import pytest

from rgpu.errors import InputError
from rgpu.replay.timing.timeline import NAMES, TRACKS
from rgpu.runtime.live_timeline import live_events, write_live_timeline
from rgpu.runtime.telemetry import DEVICE, LINK, Slice

SLICES = [
    Slice(DEVICE, "experts", 12.0, 12.5, {"layer": 0}),
    Slice(LINK, "copy", 11.0, 11.25, {"layer": 0, "expert": 3, "bytes": 64, "slot": 1}),
    Slice(DEVICE, "attention and router", 11.0, 12.0, {"layer": 0}),
]


def test_events_begin_at_zero_and_lie_on_the_simulators_tracks() -> None:
    events = list(live_events(SLICES, "a run"))
    assert events[0]["args"] == {"name": "a run"}
    named = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert named == dict(enumerate(TRACKS))
    slices = [e for e in events if e["ph"] == "X"]
    assert [(e["name"], e["cat"], TRACKS[e["tid"]], e["ts"], e["dur"]) for e in slices] == [
        ("copy 0.3", "copy", "link", 0.0, 250_000.0),
        ("attention and router", "attention and router", "device", 0.0, 1e6),
        ("experts", "experts", "device", 1e6, 500_000.0),
    ]
    assert slices[0]["args"] == SLICES[1].args
    assert {e["cat"] for e in slices} <= set(NAMES.values())


def test_nothing_to_show() -> None:
    assert {e["ph"] for e in live_events([], "empty")} == {"M"}


def test_the_file_is_marked_as_measured(tmp_path: Path) -> None:
    path = tmp_path / "new" / "run.json"
    count = write_live_timeline(path, SLICES, "a run")
    made = json.loads(path.read_text())
    assert made["otherData"] == {"simulated": False}
    assert len(made["traceEvents"]) == count == 1 + 2 * len(TRACKS) + len(SLICES)


def test_no_half_files(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write run.json") as raised:
        write_live_timeline(tmp_path / "file" / "run.json", SLICES, "a run")
    assert "\n" not in str(raised.value)
    with pytest.raises(TypeError):
        write_live_timeline(tmp_path / "run.json", [Slice(DEVICE, "experts", 0.0, 1.0, {"layer": object()})], "a run")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
