"""A real run as a Perfetto timeline (Chrome trace event JSON), with the tracks of the simulator's."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rgpu.replay.timing.timeline import TRACKS, write_events
from rgpu.runtime.telemetry import Slice


def live_events(slices: Sequence[Slice], title: str) -> Iterator[dict[str, Any]]:
    """Trace events: microseconds from the first slice on, one complete slice each."""
    yield {"ph": "M", "pid": 1, "tid": 0, "name": "process_name", "args": {"name": title}}
    for track, name in enumerate(TRACKS):
        yield {"ph": "M", "pid": 1, "tid": track, "name": "thread_name", "args": {"name": name}}
        yield {"ph": "M", "pid": 1, "tid": track, "name": "thread_sort_index", "args": {"sort_index": track}}
    start_s = min((s.begin_s for s in slices), default=0.0)
    for s in sorted(slices, key=lambda s: s.begin_s):
        where = f" {s.args['layer']}.{s.args['expert']}" if "expert" in s.args else ""
        yield {
            "ph": "X", "pid": 1, "tid": TRACKS.index(s.track), "name": s.name + where, "cat": s.name,
            "ts": 1e6 * (s.begin_s - start_s), "dur": 1e6 * (s.end_s - s.begin_s), "args": s.args,
        }  # fmt: skip


def write_live_timeline(path: str | Path, slices: Sequence[Slice], title: str) -> int:
    """Write it whole or not at all; -> number of trace events. A full disk: `InputError`, nothing left."""
    return write_events(path, live_events(slices, title), simulated=False)
