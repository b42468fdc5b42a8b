"""How fast the virtual clock is, on the real gpt-oss-20b trace; appends dated rows to benchmarks/results/timing_speed.jsonl.

    python benchmarks/timing_speed.py [--grid [CAPACITIES]]

Events (one layer of one pass) per second of the thread's CPU time, so that a busy machine changes it little; wall time is
given beside it. `quick` clocks each kind of event once (logs without background copies), `whole` every event. `--grid` also
times `rgpu sweep` over 12 policies x 12 capacities (or fewer) x 7 machines, whole trace, decisions included: 1,008 points.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from rgpu.policies.lru import Lru
from rgpu.policies.on_demand import OnDemand
from rgpu.policies.ring import Ring
from rgpu.replay.engine import replay
from rgpu.replay.pool import PoolConfig
from rgpu.replay.timing.classes import classify
from rgpu.replay.timing.cost import experts_only
from rgpu.replay.timing.facts import pass_facts
from rgpu.replay.timing.machine import Machine
from rgpu.replay.timing.simulate import simulate
from rgpu.results.provenance import stamp
from rgpu.traces.storage import load_trace

RESULTS = Path(__file__).parent / "results" / "timing_speed.jsonl"
REPEATS = 5
THERE = Machine(
    name="rtx4090-like", bytes_per_s=950e9, launch_s=62e-6, link_bytes_per_s=25e9, link_latency_s=1e-5,
    link_chunk_bytes=2**20, zero_copy_bytes_per_s=25e9, sync_s=2e-5, cpu_bytes_per_s=75e9, cpu_call_s=1e-5,
    host_bytes_per_s=82e9,
)  # fmt: skip
POLICIES = (
    "lru",
    "fifo",
    "lfu",
    "random",
    "on_demand",
    "ring",
    "clock",
    "sieve",
    "slru",
    "s3_fifo",
    "static_hot",
    "belady",
)
MACHINES = ("rtx4060_laptop", "rtx3060", "rtx4090", "rtx5060ti", "rtx5090", "h200", "laptop_nvme")
SLOTS = (2, 4, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32)


def row(metric: str, unit: str, x: Any, values: list[float], **extra: Any) -> dict[str, Any]:
    p20, p50, p80 = (float(v) for v in np.percentile(values, [20, 50, 80]))
    return {
        "benchmark": "timing_speed",
        "metric": metric,
        "unit": unit,
        "x": x,
        "p50": p50,
        "p20": p20,
        "p80": p80,
        **extra,
    }


def speeds(path: str) -> list[dict[str, Any]]:
    """Rows of events per second, by log, handler and clock."""
    trace = load_trace(path, hidden=False)
    facts = pass_facts(trace, 128)
    cost = experts_only(trace.layers, trace.shape.expert_bytes)
    rows = []
    cases = (
        (Lru(), ("quick fetch", "quick zero_copy", "whole fetch", "whole cpu", "whole split")),
        (OnDemand(), ("quick fetch", "quick cpu", "quick split")),
        (Ring(), ("whole fetch",)),
    )
    for policy, kinds in cases:
        log = replay(trace, policy, PoolConfig(slots=8), decisions=True).decisions
        assert log is not None
        events, classes = len(log.events.pool), classify(log, facts)
        if classes is not None:
            rows += timed("classify", policy.name, events, lambda log=log: classify(log, facts))  # type: ignore[misc]
        for kind in kinds:
            clock, miss = kind.split()

            def once(log: Any = log, clock: str = clock, miss: str = miss, classes: Any = classes) -> object:
                return simulate(
                    log, facts, THERE, cost, trace.header.top_k, miss=miss, classes=classes, quick=clock == "quick"
                )

            rows += timed(kind, policy.name, events, once)
    return rows


def timed(kind: str, policy: str, events: int, once: Any) -> list[dict[str, Any]]:
    """The rates of `REPEATS` calls after one that compiles."""
    cpu, wall = [], []
    for repeat in range(REPEATS + 1):
        began_cpu, began = time.thread_time(), time.perf_counter()
        once()
        if repeat:
            cpu.append(events / (time.thread_time() - began_cpu))
            wall.append(events / (time.perf_counter() - began))
    about = {"kind": kind, "policy": policy, "events": events}
    return [row("events_per_cpu_s", "1/s", 8, cpu, **about), row("events_per_wall_s", "1/s", 8, wall, **about)]


def grid(path: str, workers: int, capacities: int) -> list[dict[str, Any]]:
    """Wall and CPU seconds of the sweep command, everything included."""
    slots = ",".join(map(str, SLOTS[:: len(SLOTS) // capacities]))
    with tempfile.TemporaryDirectory() as folder:
        words = [
            f"trace.path={path}", f"grid.policy=[{','.join(POLICIES)}]",
            f"grid.slots=[{slots}]",
            f"grid.hardware=[{','.join(MACHINES)}]", "grid.miss=[fetch]", "replay.reset=none", f"workers={workers}",
            f"out={folder}/rows.parquet",
        ]  # fmt: skip
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "rgpu.cli", "sweep", *words], check=True, capture_output=True, text=True
        )
        wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    made = json.loads(done.stdout.splitlines()[-1])
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    about = {"kind": "sweep", "policy": " ".join(POLICIES), "workers": workers, "rows": made["row_count"]}
    about["load_average"] = os.getloadavg()[0]
    points = made["timings"]
    return [row("grid_wall_s", "s", points, [wall], **about), row("grid_cpu_s", "s", points, [cpu], **about)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trace", default="../shared/traces/gpt-oss-20b_decode_mixedqa.npz")
    parser.add_argument("--grid", type=int, nargs="?", const=len(SLOTS), help="also time a grid of so many capacities")
    parser.add_argument("--only-grid", action="store_true")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    rows = [] if arguments.only_grid else speeds(arguments.trace)
    if arguments.grid:
        rows += grid(arguments.trace, arguments.workers, arguments.grid)
    facts = stamp({"benchmark": "timing_speed", "repeats": REPEATS})
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a") as out:
        for r in rows:
            out.write(json.dumps(r | {"trace": Path(arguments.trace).name} | facts) + "\n")
            print(f"{r['metric']:20s} {r['kind']:16s} {r['policy'][:24]:24s} x={r['x']:<6} p50={r['p50']:.4g}")


if __name__ == "__main__":
    main()
