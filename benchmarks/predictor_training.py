"""How fast predictors train on a large trace; appends dated rows to benchmarks/results/predictor_training.jsonl.

    python benchmarks/predictor_training.py [--events 1000000] [--predictors linear mlp] [--threads 2]

The trace is made: router inputs that drift from token to token and layer to layer, routed by the routers of
assets/reference (8 layers of 32 experts, 256 features), written to disk in shards and streamed from there. An event is one
MoE layer of one token. Timed is `fit`: whitening, the start in closed form, every epoch and the temperature.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_module

from rgpu.experiments.built import built
from rgpu.predictors.checkpoint_parts import read_routers
from rgpu.replay.prediction import evaluate
from rgpu.replay.scores import over_layers
from rgpu.results.provenance import stamp
from rgpu.traces.split import split
from rgpu.traces.storage import load_trace, save_trace
from rgpu.traces.trace import Trace, TraceHeader

RESULTS = Path(__file__).parent / "results" / "predictor_training.jsonl"
MODEL = "assets/reference"
DOCUMENTS, TOP_K = 64, 4


def made_trace(events: int, seed: int = 0) -> Trace:
    """A trace of about `events` events whose hidden states tell the routing of later layers and tokens in part."""
    router_LED, _ = read_routers(MODEL)
    layers, experts, size = router_LED.shape
    rng = np.random.default_rng(seed)
    length = -(-events // layers // DOCUMENTS)
    now_SD = rng.standard_normal((DOCUMENTS, size), np.float32)
    hidden_STLD = np.empty((DOCUMENTS, length, layers, size), np.float16)
    for t in range(length):
        now_SD = 0.8 * now_SD + 0.6 * rng.standard_normal(now_SD.shape, np.float32)
        at_SD = now_SD
        for layer in range(layers):
            at_SD = 0.95 * at_SD + 0.3 * rng.standard_normal(at_SD.shape, np.float32)
            hidden_STLD[:, t, layer] = at_SD
    hidden_NLD = hidden_STLD.reshape(-1, layers, size)
    ids_NLK = np.empty((len(hidden_NLD), layers, TOP_K), np.uint8)
    for layer in range(layers):
        logits_NE = torch.from_numpy(hidden_NLD[:, layer]).float() @ torch.from_numpy(router_LED[layer].T)
        ids_NLK[:, layer] = logits_NE.topk(TOP_K).indices.numpy()
    count = len(hidden_NLD)
    metas: list[dict[str, Any]] = [{"domain": "made", "document": f"d{s}"} for s in range(DOCUMENTS)]
    header = TraceHeader("reference", experts, TOP_K, list(range(layers)), on_policy=False, sequences=metas)
    return Trace(
        header, ids_NLK, np.arange(DOCUMENTS + 1, dtype=np.int64) * length,
        np.tile(np.arange(length, dtype=np.int32), DOCUMENTS), np.arange(count, dtype=np.int32),
        phase=np.ones(count, np.uint8), hidden=hidden_NLD,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--predictors", nargs="*", default=["linear"])
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    facts = stamp({"benchmark": "predictor_training", "events": asked.events, "threads": asked.threads})
    with tempfile.TemporaryDirectory() as folder:
        held = asked.events // 20
        path = save_trace(made_trace(asked.events), Path(folder) / "made.safetensors")
        other = save_trace(made_trace(held, seed=1), Path(folder) / "other.safetensors")
        for name in asked.predictors:
            with initialize_config_module("rgpu.conf", version_base="1.3"):
                predictor = built(compose("train", overrides=[f"predictor={name}"]).predictor, "predictor")
            trace = load_trace(path, stream=True)
            began, used = time.perf_counter(), time.process_time()
            predictor.fit(trace)
            seconds, spent = time.perf_counter() - began, time.process_time() - used
            scored = load_trace(other, stream=True)
            rows = over_layers(evaluate(predictor, scored.select(split(scored).scored)))
            recall = next(r["value"] for r in rows if (r["metric"], r["horizon"], r["width"]) == ("recall", 1, TOP_K))
            row = {
                "benchmark": "predictor_training",
                "metric": "fit_s",
                "unit": "s",
                "predictor": name,
                "value": seconds,
            }
            row |= {"events": trace.tokens * trace.layers, "epochs": len(predictor.curve_) - 1, "cpu_s": spent}
            row |= {
                "recall_next_layer": recall,
                "trace_bytes": int(np.prod(trace.hidden.shape)) * 2,
                "threads": asked.threads,
            }
            with RESULTS.open("a") as out:
                out.write(json.dumps(row | facts) + "\n")
            print(
                f"{name:12s} {seconds:7.1f} s, {spent:7.1f} CPU s, {row['epochs']} epochs, recall {recall:.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
