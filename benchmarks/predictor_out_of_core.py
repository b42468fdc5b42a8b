"""Training on a trace larger than the memory it may use; appends dated rows to benchmarks/results/predictor_training.jsonl.

    python benchmarks/predictor_out_of_core.py [--gigabytes 2.5] [--limit-mb 1024] [--predictors linear mlp]

A trace of that many bytes of hidden states is made block by block and written in shards. Then `rgpu train predictor=NAME` runs
in a process of its own whose private memory (code and libraries left aside) is limited by RLIMIT_DATA: an allocation past the
limit ends the run. Pages of mapped shards are the system's, which takes them back when it wants; they are not counted by the
limit. Reported: seconds, the peak of anonymous memory, and of all resident pages.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from predictor_training import DOCUMENTS, MODEL, RESULTS, TOP_K, made_trace

from rgpu.predictors.checkpoint_parts import read_routers
from rgpu.results.provenance import stamp
from rgpu.traces.storage import TraceWriter
from rgpu.traces.trace import TraceHeader

BLOCK = 200_000  # events made at a time


def write_large(path: Path, size: float) -> tuple[int, int]:
    """A sharded trace of about `size` bytes of hidden states: (events, bytes of hidden states)."""
    layers, experts, hidden = read_routers(MODEL)[0].shape
    blocks = max(1, round(size / (2 * hidden * BLOCK)))
    metas: list[dict[str, Any]] = [{"domain": "made", "document": f"d{s}"} for s in range(blocks * DOCUMENTS)]
    header = TraceHeader("reference", experts, TOP_K, list(range(layers)), on_policy=False, sequences=metas)
    tokens = 0
    with TraceWriter(path, header) as writer:
        for block in range(blocks):
            made = made_trace(BLOCK, seed=block)
            owner_N = np.repeat(np.arange(DOCUMENTS), np.diff(made.seq_offsets)) + block * DOCUMENTS
            writer.append(
                owner_N, made.expert_ids, made.positions, made.passes + tokens, phase=made.phase, hidden=made.hidden
            )
            tokens += made.tokens
    return tokens * layers, tokens * layers * hidden * 2


def limited(limit: int, words: list[str]) -> None:
    """`rgpu train` with `words` under a limit of private memory; the last line says what it took."""
    peak = {"RssAnon": 0, "VmRSS": 0, "VmData": 0}
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            for line in Path("/proc/self/status").read_text().splitlines():
                name, _, rest = line.partition(":")
                if name in peak:
                    peak[name] = max(peak[name], int(rest.split()[0]) * 1024)

    from rgpu.experiments.train import run

    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    threading.Thread(target=watch, daemon=True).start()
    began, used = time.perf_counter(), time.process_time()
    sys.argv = ["train", *words]
    run.main()
    over.set()
    spent = {"seconds": time.perf_counter() - began, "cpu_s": time.process_time() - used}
    print(json.dumps(spent | {"peak": peak}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=2.5)
    parser.add_argument("--limit-mb", type=int, default=1024)
    parser.add_argument("--predictors", nargs="*", default=["linear", "mlp"])
    parser.add_argument("--limited", nargs="*", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    limit = asked.limit_mb << 20
    if asked.limited is not None:
        return limited(limit, asked.limited)
    facts = stamp({"benchmark": "predictor_out_of_core", "gigabytes": asked.gigabytes, "limit_mb": asked.limit_mb})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "made.safetensors"
        events, size = write_large(path, asked.gigabytes * 1e9)
        print(f"{events} events, {size / 1e9:.2f} GB of hidden states, limit {limit / 1e9:.2f} GB", flush=True)
        for name in asked.predictors:
            words = [f"predictor={name}", f"trace.path={path}", f"out={folder}/{name}"]
            words += ["predictor.kept_gib=0.25"] if name == "linear" else []
            call = [sys.executable, __file__, "--limit-mb", str(asked.limit_mb), "--limited", *words]
            paths = os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])
            done = subprocess.run(
                call, check=False, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths}
            )
            if done.returncode:
                print(done.stdout[-500:], done.stderr[-1500:], file=sys.stderr)
                raise SystemExit(f"{name}: did not train within {asked.limit_mb} MB")
            *_, said, took = done.stdout.strip().splitlines()
            found, spent = json.loads(said), json.loads(took)
            row = {
                "benchmark": "predictor_out_of_core", "metric": "peak_bytes", "unit": "bytes", "predictor": name,
                "value": spent["peak"]["RssAnon"], "resident_bytes": spent["peak"]["VmRSS"], "limit_bytes": limit,
                "data_bytes": spent["peak"]["VmData"], "trace_bytes": size, "events": events, "train_s": spent["seconds"],
                "cpu_s": spent["cpu_s"], "epochs": found["epochs"], "recall_next_layer": found["recall_at_k"],
                "threads": int(os.environ.get("OMP_NUM_THREADS", "0")) or None,
            }  # fmt: skip
            with RESULTS.open("a") as out:
                out.write(json.dumps(row | facts) + "\n")
            print(
                f"{name:12s} {spent['seconds']:7.1f} s, {spent['cpu_s']:7.1f} CPU s, {found['epochs']} epochs, anonymous "
                f"{row['value'] / 1e6:.0f} MB, private {row['data_bytes'] / 1e6:.0f} MB, recall {found['recall_at_k']:.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
