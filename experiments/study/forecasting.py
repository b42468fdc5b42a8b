"""Rows of trained predictors: recall, exact match, gate mass, F1 by width, horizon and layer, on held-out sequences."""

from pathlib import Path

import pyarrow as pa
from hydra import compose
from hydra.utils import instantiate
from tqdm import tqdm

from rgpu.experiments.study.predictor_metrics import result_rows
from rgpu.experiments.train import train
from rgpu.replay.scores import over_layers
from rgpu.results.rows import Context
from rgpu.traces.split import split
from rgpu.traces.trace import Trace

PREDICTORS = ("popularity", "previous_token", "gate_lookahead", "linear")
SHOWN = ("recall", "exact", "mass", "top1", "f1")  # the whole set is suite=predictors'


def forecasts(
    context: Context, trace: Trace, model: Path, out: Path, names: tuple[str, ...] = PREDICTORS
) -> list[pa.Table]:
    """Train each predictor on the calibration half of the trace's documents and score the other half."""
    parts = split(trace)
    scored = int(sum(trace.seq_offsets[s + 1] - trace.seq_offsets[s] for s in parts.scored))
    at = context.at(experiment="prediction", method="trained", trace_tokens=scored)
    tables: list[pa.Table] = []
    for name in tqdm(names, desc="predictors", disable=None):
        chosen = compose(overrides=[f"+predictor={name}"]).predictor
        predictor = instantiate(chosen, **({"model": model} if "model" in chosen else {}))
        _, rows = train(predictor, trace, parts, out / name)
        chosen_rows = [r for r in rows if r["metric"] in SHOWN]
        for row in over_layers(chosen_rows) + [r for r in chosen_rows if r["width"] == trace.header.top_k]:
            tables.append(result_rows(at.at(predictor=name), row))
    top_k, experts = trace.header.top_k, trace.header.num_experts
    for width in sorted({r for r in (top_k, top_k + 2, 2 * top_k, 3 * top_k, 4 * top_k) if r <= experts}):
        tables.append(at.rows("recall_chance", "share", width / experts, width=width))
    return tables
