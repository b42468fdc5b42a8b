"""How long one forecast takes: microseconds for one decode event, on one core of this machine.

    python benchmarks/predictor_speed.py [--rounds 40] [--dry]

Appends dated rows to benchmarks/results/predictor_speed.jsonl. A sample is one event: `observe` and `predict` together, and
`predict` alone, in wall time; events of all layers follow one another, as in a model, so that a layer's map has left the
first-level caches when its turn comes again. A whole round is not counted. Maps are drawn at random, which costs what
trained ones do; `low_rank` and `mlp` (32 and 64 units) have a checkpoint's routers beside what they learn. Forecasts have a
row for each of `horizon` layers, as many as are left, and the next token's. `pre_attention` scales its inputs beside what
`linear` does, whose rows come right before it.

Shapes: 24 layers of 64 experts at hidden size 256, top-8; and that of assets/reference. Providers: `numpy`, the
predictors' own, and `kernel`, the compiled map that live runs and `rgpu train` inject (the same bits).
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rgpu.kernels.linear_forecast import linear_forecast
from rgpu.predictors.gate_lookahead import GateLookahead
from rgpu.predictors.hidden import HiddenPredictor
from rgpu.predictors.linear import Linear
from rgpu.predictors.low_rank import LowRank
from rgpu.predictors.mlp import Mlp
from rgpu.predictors.pre_attention import PreAttention
from rgpu.predictors.probe import Probe
from rgpu.predictors.schema import Schema
from rgpu.results.provenance import stamp
from rgpu.traces.trace import DECODE, Trace, TraceHeader
from rgpu.types import RoutingEvent

RESULTS = Path(__file__).parent / "results" / "predictor_speed.jsonl"
HORIZONS = (1, 4)


def shapes() -> dict[str, tuple[int, int, int, int]]:
    """(layers, experts, top-k, hidden) by name."""
    own = GateLookahead().fit().schema_
    return {"24x64x256": (24, 64, 8, 256), "reference": (own.layers, own.experts, own.top_k, own.hidden)}


def fitted(kind: type[HiddenPredictor], horizon: int, shape: tuple[int, int, int, int]) -> HiddenPredictor:
    """A predictor of `shape` with random maps; those with parts to learn as they are with a checkpoint's routers."""
    layers, experts, top_k, hidden = shape
    rng = np.random.default_rng(0)
    predictor = kind(horizon=horizon)
    sizes = {"router_LED": (layers, experts, hidden), "bias_LE": (layers, experts)}
    if isinstance(predictor, Probe):
        predictor.schedule = replace(predictor.schedule, epochs=1)
        predictor.fit(noise(shape))
        predictor.model = "random"
        sizes = {
            "router_LED": (layers, experts, hidden),
            "router_bias_LE": (layers, experts),
            "gain_LH": (layers, horizon + 1),
        }
    else:
        predictor.schema_ = Schema("random", "", layers, experts, top_k, hidden)
        predictor.tensors_ = {}
    if isinstance(predictor, Linear):
        sizes = {"weight_LHDE": (layers, horizon + 1, hidden, experts), "bias_LHE": (layers, horizon + 1, experts)}
    predictor.tensors_ |= {name: rng.normal(size=size).astype(np.float32) for name, size in sizes.items()}
    predictor.reset()
    return predictor


def noise(shape: tuple[int, int, int, int]) -> Trace:
    """A trace of four short documents in which nothing can be learnt."""
    layers, experts, top_k, hidden = shape
    tokens, rng = 48, np.random.default_rng(2)
    documents: list[dict[str, Any]] = [{"domain": "noise", "document": f"d{s}"} for s in range(4)]
    header = TraceHeader("random", experts, top_k, list(range(layers)), expert_bytes=[1] * layers, sequences=documents)
    return Trace(
        header, np.argsort(rng.random((tokens, layers, experts)))[..., :top_k].astype(np.uint8),
        np.arange(0, tokens + 1, 12), np.arange(tokens, dtype=np.int32) % 12, np.arange(tokens, dtype=np.int32),
        phase=np.full(tokens, DECODE, np.uint8), hidden=rng.normal(size=(tokens, layers, hidden)).astype(np.float16),
    )  # fmt: skip


def samples(predictor: HiddenPredictor, rounds: int) -> dict[str, np.ndarray]:
    """Microseconds of every event whose forecast has all its rows."""
    own, rng = predictor.schema_, np.random.default_rng(1)
    ids_TK, phase_T = np.arange(own.top_k, dtype=np.int16)[None], np.full(1, DECODE, np.uint8)
    state = "pre_attention_TD" if "pre_attention" in predictor.needs else "hidden_TD"
    events = [
        RoutingEvent(layer, 0, ids_TK, phase_T=phase_T, **{state: rng.normal(size=(1, own.hidden)).astype(np.float32)})
        for layer in range(own.layers)
    ]
    full = max(1, own.layers - predictor.horizon)
    both, alone = [], []
    for number in range(rounds + 1):
        for event in events:
            began = time.perf_counter_ns()
            predictor.observe(event)
            observed = time.perf_counter_ns()
            predictor.predict()
            ended = time.perf_counter_ns()
            if number and event.layer < full:
                both.append(ended - began)
                alone.append(ended - observed)
    return {"observe_and_predict": np.array(both) / 1e3, "predict": np.array(alone) / 1e3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--dry", action="store_true", help="print, write nothing")
    arguments = parser.parse_args()
    facts = stamp({"benchmark": "predictor_speed", "rounds": arguments.rounds})
    rows: list[dict[str, Any]] = []
    for shape, numbers in shapes().items():
        for kind in (Linear, PreAttention, GateLookahead, LowRank, Mlp):
            for horizon in HORIZONS:
                for provider in ("numpy", "kernel"):
                    predictor = fitted(kind, horizon, numbers)
                    if provider == "kernel":
                        predictor.use(linear_forecast)
                    for metric, found in samples(predictor, arguments.rounds).items():
                        p20, p50, p80 = (float(v) for v in np.percentile(found, [20, 50, 80]))
                        print(f"{shape:10s} {kind.name:15s} horizon {horizon} {provider:7s} {metric:20s} {p50:7.2f} us "
                              f"[{p20:.2f}, {p80:.2f}]", flush=True)  # fmt: skip
                        layers, experts, top_k, hidden = numbers
                        rows.append({
                            "benchmark": "predictor_speed", "metric": metric, "unit": "us", "predictor": kind.name,
                            "provider": provider, "horizon": horizon, "shape": shape, "layers": layers, "experts": experts,
                            "top_k": top_k, "hidden": hidden, "p20": p20, "p50": p50, "p80": p80, "n": len(found),
                        })  # fmt: skip
    if not arguments.dry:
        with RESULTS.open("a") as out:
            for row in rows:
                out.write(json.dumps(row | facts) + "\n")


if __name__ == "__main__":
    main()
