"""A recorded run as a Perfetto timeline (Chrome trace event JSON): tracks for device, link, CPU and disk.

Open the file at https://ui.perfetto.dev. Written piece by piece beside its place and renamed when whole.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rgpu.errors import InputError
from rgpu.replay.log import DecisionLog
from rgpu.replay.timing.link import AHEAD, COPY, CPU_EXPERT, DENSE, EXPERTS, READ, SYNC
from rgpu.replay.timing.result import TimingResult
from rgpu.replay.timing.simulate import key_layers

TRACKS = ("device", "link", "cpu", "disk")
NAMES = {
    int(DENSE): "attention and router", int(SYNC): "router read-back", int(EXPERTS): "experts", int(COPY): "copy",
    int(AHEAD): "copy ahead", int(READ): "disk read", int(CPU_EXPERT): "expert on CPU",
}  # fmt: skip


def timeline_events(result: TimingResult, log: DecisionLog) -> Iterator[dict[str, Any]]:
    """Trace events of a result that was simulated with `record`: microseconds, one complete slice each."""
    if result.slices is None:
        raise InputError("timeline: got a run that was not recorded; expected simulate(..., record=Window(...))")
    layout, layers = log.layout, len(log.layout.pool_of)
    of, span = key_layers(log), layout.keys * layout.pools // layers
    slots = max(1, *layout.main)
    name = {"process_name": f"{result.machine} (simulated), {log.policy}, miss={result.miss}"}
    yield {"ph": "M", "pid": 1, "tid": 0, "name": "process_name", "args": {"name": name["process_name"]}}
    for track, title in enumerate(TRACKS):
        yield {"ph": "M", "pid": 1, "tid": track, "name": "thread_name", "args": {"name": title}}
        yield {"ph": "M", "pid": 1, "tid": track, "name": "thread_sort_index", "args": {"sort_index": track}}
    for track, what, begin, end, event, slot, key, nbytes in result.slices.tolist():
        args: dict[str, Any] = {}
        if event >= 0:
            args |= {"layer": event % layers, "pass": int(log.events.pass_id[event])}
        pool = int(log.events.pool[event]) if event >= 0 else slot // slots
        if key >= 0:
            args |= {"layer": int(of[pool, key]), "expert": key % span, "bytes": nbytes}
        elif what == EXPERTS and event >= 0:
            members = log.events.keys[log.events.offs[event] : log.events.offs[event + 1]]
            args |= {"experts": [int(k) % span for k in members]}
        title = NAMES[what] + (f" {args['layer']}.{args['expert']}" if key >= 0 else "")
        yield {
            "ph": "X", "pid": 1, "tid": track, "name": title, "cat": NAMES[what], "ts": begin / 1e6, "dur": (end - begin) / 1e6,
            "args": args,
        }  # fmt: skip


def write_timeline(path: str | Path, result: TimingResult, log: DecisionLog) -> int:
    """Write the timeline whole or not at all; -> number of trace events. A full disk: `InputError`, nothing left."""
    return write_events(path, timeline_events(result, log), simulated=True)


def write_events(path: str | Path, events: Iterator[dict[str, Any]], simulated: bool) -> int:
    """Write trace events whole or not at all; -> how many. A full disk: `InputError`, nothing left."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    count = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w") as out:
            about = json.dumps({"simulated": simulated})
            out.write(f'{{"displayTimeUnit": "ms", "otherData": {about}, "traceEvents": [\n')
            for event in events:
                out.write((",\n" if count else "") + json.dumps(event))
                count += 1
            out.write("\n]}\n")
            out.flush()
            os.fsync(out.fileno())
        temporary.replace(path)
    except OSError as error:
        reason = f"cannot write {path.name}: got '{error.strerror}', expected a writable folder with space"
        raise InputError(f"{reason}; free some or choose another") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return count
