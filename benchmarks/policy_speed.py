"""How fast every policy replays, on the real gpt-oss-20b trace; appends dated rows to benchmarks/results/policy_speed.jsonl.

    python benchmarks/policy_speed.py [--policies lru lfu] [--repeats 3] [--sequences 0]

The unit is accesses per CPU second of one core, so that a busy machine does not change it much: a whole `replay` of the
scored half of the trace (the other half fits what fits), with what is built once a grid (events, calibration) left out.
Pools: 8 and 16 of 32 experts a layer, and one global pool of a quarter of all experts, where a scan over the slots would
show. libcachesim (a test extra) replays the ids of four layers, one request an id, beside the policies it has.
"""

import argparse
import importlib
import json
import struct
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from hydra import initialize_config_module

from rgpu.errors import InputError
from rgpu.experiments.compare import choices
from rgpu.experiments.inputs import policy_named, scored_parts
from rgpu.replay.engine import SharedEvents, replay
from rgpu.replay.pool import PoolConfig
from rgpu.results.provenance import stamp
from rgpu.traces.storage import load_trace

RESULTS = Path(__file__).parent / "results" / "policy_speed.jsonl"
THEIRS = {
    "lru": "LRU", "fifo": "FIFO", "clock": "Clock", "lfu": "LFU", "slru": "SLRU", "lru_k": "LRUK", "two_q": "TwoQ",
    "arc": "ARC", "lirs": "LIRS", "s3_fifo": "S3FIFO", "sieve": "Sieve", "gdsf": "GDSF", "random": "Random",
}  # fmt: skip
LAYERS = 4  # of libcachesim's runs, which are slow


def ours(policy: Any, scored: Any, calibration: Any, pool: PoolConfig, shared: SharedEvents, repeats: int) -> Any:
    """(the result, accesses per CPU second of each repeat after a first that compiles and fits)."""
    speeds, result = [], None
    for repeat in range(repeats + 1):
        began = time.thread_time()
        result = replay(scored, policy, pool, calibration=calibration, shared=shared)
        if repeat:
            speeds.append(result.accesses / (time.thread_time() - began))
    return result, speeds


def theirs(algorithm: str, scored: Any, slots: int, repeats: int) -> list[float]:
    """Requests per CPU second of libcachesim over the ids of the first layers, a cache a layer."""
    libcachesim = importlib.import_module("libcachesim")
    speeds = []
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for layer in range(LAYERS):
            ids = scored.expert_ids[:, layer].ravel()
            path = Path(folder) / f"{layer}.oracleGeneral"
            path.write_bytes(b"".join(struct.pack("<IQIq", i, int(e) + 1, 1, -1) for i, e in enumerate(ids)))
            paths.append(str(path))
        for _ in range(repeats):
            spent = 0.0
            for name in paths:
                reader = libcachesim.TraceReader(name, trace_type=libcachesim.TraceType.ORACLE_GENERAL_TRACE)
                cache = getattr(libcachesim, algorithm)(cache_size=slots)
                began = time.thread_time()
                cache.process_trace(reader)
                spent += time.thread_time() - began
            speeds.append(LAYERS * scored.tokens * scored.header.top_k / spent)
    return speeds


def row(policy: str, provider: str, pool: PoolConfig, speeds: list[float], **extra: Any) -> dict[str, Any]:
    p20, p50, p80 = np.percentile(speeds, [20, 50, 80])
    about = {"benchmark": "policy_speed", "metric": "accesses_per_cpu_s", "unit": "1/s", "policy": policy}
    return about | {
        "provider": provider, "scope": pool.scope, "slots": pool.slots, "p50": p50, "p20": p20, "p80": p80, **extra
    }  # fmt: skip


def main() -> None:
    with initialize_config_module("rgpu.conf", version_base="1.3"):
        measure()


def measure() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trace", default="../shared/traces/gpt-oss-20b_decode_mixedqa.npz")
    parser.add_argument("--policies", nargs="*", default=sorted(set(choices("policy")) - {"plain"}))
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    trace = load_trace(arguments.trace)
    calibration, scored, _ = scored_parts(trace, 0.5, True)
    quarter = trace.layers * trace.header.num_experts // 4
    pools = [PoolConfig(slots=8), PoolConfig(slots=16), PoolConfig("global", quarter)]
    shared = SharedEvents(scored)
    facts = stamp({"benchmark": "policy_speed", "repeats": arguments.repeats})
    RESULTS.parent.mkdir(exist_ok=True)
    for name in arguments.policies:
        rows = []
        for pool in pools:
            try:
                policy = policy_named(name)
                result, speeds = ours(policy, scored, calibration, pool, shared, arguments.repeats)
            except InputError as error:
                print(f"{name:20s} {pool.scope:6s} left out: {error}")
                continue
            rows.append(row(name, "rgpu", pool, speeds, hits=result.hits, accesses=result.accesses))
        if name in THEIRS:
            rows.append(row(name, "libcachesim", pools[1], theirs(THEIRS[name], scored, 16, 1), layers=LAYERS))
        with RESULTS.open("a") as out:
            for r in rows:
                out.write(json.dumps(r | {"trace": Path(arguments.trace).name} | facts) + "\n")
                print(
                    f"{name:20s} {r['provider']:12s} {r['scope']:6s} {r['slots']:4d} {r['p50'] / 1e6:8.2f} M/s",
                    flush=True,
                )


if __name__ == "__main__":
    main()
