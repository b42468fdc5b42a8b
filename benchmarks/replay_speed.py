"""How fast the decision loop is, on the real gpt-oss-20b trace; appends dated rows to benchmarks/results/replay_speed.jsonl.

    python benchmarks/replay_speed.py [--grid 1000]

Loop speed is per core: accesses over the thread's CPU time, so that a busy machine does not change it much; wall time
is given beside it. libcachesim (test extra) replays the very same ids in the same run. The grid is timed by the wall.
"""

import argparse
import itertools
import json
import struct
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from rgpu.policies.fifo import Fifo
from rgpu.policies.lfu import Lfu
from rgpu.policies.loop import COUNTS, HITS
from rgpu.policies.lru import Lru
from rgpu.policies.on_demand import OnDemand
from rgpu.policies.random import Random
from rgpu.replay.engine import SharedEvents, replay
from rgpu.replay.events import Events, build_events
from rgpu.replay.mattson import lru_curve_of
from rgpu.replay.pool import PoolConfig, initial_state, lay_out
from rgpu.results.provenance import stamp
from rgpu.traces.storage import load_trace
from rgpu.traces.trace import Trace

RESULTS = Path(__file__).parent / "results" / "replay_speed.jsonl"
REPEATS = 5


def loop_speed(trace: Trace, events: Events, policy: Any, slots: int) -> tuple[int, list[float], list[float]]:
    """(hits, accesses per CPU second, accesses per wall second) of the bare loop, `REPEATS` times after a warm-up."""
    cpu, wall, hits = [], [], 0
    none, touch = np.zeros(0, np.int64), np.zeros(0, np.int32)
    for repeat in range(REPEATS + 1):
        m, f, _ = initial_state(
            lay_out(PoolConfig(slots=slots), policy, trace.shape), policy, trace.shape, "", 0, None, 0
        )
        codes, victims = np.empty(len(events.keys), np.int32), np.empty(len(events.keys), np.int32)
        codes.fill(0), victims.fill(0)
        counts = np.zeros(COUNTS, np.int64)
        began_cpu, began = time.thread_time(), time.perf_counter()
        policy.run(
            m, f, events.pool, events.kind, events.offs, events.keys, events.weights, none, touch,
            np.zeros((1, 0), np.float32), codes, victims, counts, np.zeros((0, 4), np.int64),
        )  # fmt: skip
        if repeat:
            cpu.append(len(events.keys) / (time.thread_time() - began_cpu))
            wall.append(len(events.keys) / (time.perf_counter() - began))
        hits = int(counts[HITS])
    return hits, cpu, wall


def libcachesim_speed(trace: Trace, layers: range, slots: int) -> list[float]:
    """Requests per CPU second of libcachesim's LRU over the same layers' ids, one request an id, summed over layers."""
    import libcachesim

    speeds = []
    with tempfile.TemporaryDirectory() as folder:
        readers = []
        for layer in layers:
            ids = trace.expert_ids[:, layer].ravel()
            path = Path(folder) / f"{layer}.oracleGeneral"
            path.write_bytes(b"".join(struct.pack("<IQIq", i, int(e) + 1, 1, -1) for i, e in enumerate(ids)))
            readers.append(str(path))
        for repeat in range(REPEATS + 1):
            spent = 0.0
            for path in readers:
                reader = libcachesim.TraceReader(path, trace_type=libcachesim.TraceType.ORACLE_GENERAL_TRACE)
                cache = libcachesim.LRU(cache_size=slots)
                began = time.thread_time()
                cache.process_trace(reader)
                spent += time.thread_time() - began
            if repeat:
                speeds.append(len(layers) * trace.tokens * trace.header.top_k / spent)
    return speeds


def row(metric: str, unit: str, x: Any, values: list[float], **extra: Any) -> dict[str, Any]:
    p20, p50, p80 = np.percentile(values, [20, 50, 80])
    return {
        "benchmark": "replay_speed",
        "metric": metric,
        "unit": unit,
        "x": x,
        "p50": p50,
        "p20": p20,
        "p80": p80,
        **extra,
    }


def grid_seconds(trace: Trace, points: int, workers: int) -> float:
    """Wall seconds of `points` whole-trace replays on `workers` threads (events are built once)."""
    policies = (Lru(), Fifo(), Lfu(), Random(), OnDemand())
    cells = list(itertools.islice(itertools.cycle(itertools.product(policies, range(1, 33))), points))
    shared = SharedEvents(trace)
    began = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        list(
            pool.map(
                lambda c: replay(trace, c[1][0], PoolConfig(slots=c[1][1]), seed=c[0], shared=shared).hits,
                enumerate(cells),
            )
        )
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trace", default="../shared/traces/gpt-oss-20b_decode_mixedqa.npz")
    parser.add_argument("--grid", type=int, default=0, help="also time a grid of so many whole-trace replays")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    trace = load_trace(arguments.trace)
    events = build_events(trace, by_layer=True)
    rows = []
    for policy, slots in itertools.product((Lru(), Fifo(), Lfu(), Random()), (8, 16)):
        hits, cpu, wall = loop_speed(trace, events, policy, slots)
        about = {"provider": "rgpu", "policy": policy.name, "hits": hits, "accesses": len(events.keys)}
        rows.append(row("accesses_per_cpu_s", "1/s", slots, cpu, **about))
        rows.append(row("accesses_per_wall_s", "1/s", slots, wall, **about))
    layers = range(4)
    theirs = libcachesim_speed(trace, layers, 16)
    rows.append(row("accesses_per_cpu_s", "1/s", 16, theirs, provider="libcachesim", policy="lru", layers=len(layers)))
    ours = next(r["p50"] for r in rows if r["policy"] == "lru" and r["x"] == 16 and r["metric"] == "accesses_per_cpu_s")
    rows.append(row("speed_ratio_rgpu_over_libcachesim", "ratio", 16, [ours / float(np.median(theirs))], policy="lru"))
    lru_curve_of(events, trace.layers, trace.header.num_experts)
    began = time.thread_time()
    lru_curve_of(events, trace.layers, trace.header.num_experts)
    rows.append(row("lru_curve_all_capacities_s", "s", 32, [time.thread_time() - began], provider="rgpu", policy="lru"))
    if arguments.grid:
        seconds = grid_seconds(trace, arguments.grid, arguments.workers)
        rows.append(
            row(
                "grid_wall_s",
                "s",
                arguments.grid,
                [seconds],
                provider="rgpu",
                policy="lru fifo lfu random on_demand",
                workers=arguments.workers,
            )
        )
    facts = stamp({"benchmark": "replay_speed", "repeats": REPEATS})
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a") as out:
        for r in rows:
            out.write(json.dumps(r | {"trace": Path(arguments.trace).name} | facts) + "\n")
            print(f"{r['metric']:36s} {r.get('provider', ''):12s} {r['policy']:10s} x={r['x']:<5} p50={r['p50']:.4g}")


if __name__ == "__main__":
    main()
