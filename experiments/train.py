"""Train a predictor on part of a trace's sequences and score it on the others."""

from pathlib import Path
from time import perf_counter
from typing import Any

from omegaconf import DictConfig

from rgpu.errors import InputError
from rgpu.experiments.built import built
from rgpu.experiments.command import command
from rgpu.experiments.injected import with_kernel
from rgpu.replay.prediction import evaluate, over_layers
from rgpu.traces.split import Split, split
from rgpu.traces.storage import load_trace
from rgpu.traces.trace import Trace


def train(
    predictor: Any, trace: Trace, parts: Split, out: Path, horizons: int = 4
) -> tuple[Path, list[dict[str, Any]]]:
    """Fit on the calibration sequences, save at `out`, score the others: (file of tensors, rows of `evaluate`)."""
    if not len(parts.calibration) or not len(parts.scored):
        raise InputError(
            f"cannot train: got {trace.sequences} sequences of one document; expected two documents or more; "
            "record more prompts"
        )
    checkpoint = Path(f"{out}.training.safetensors")  # left by a killed run, which the next one continues
    saved = with_kernel(predictor).fit(trace, parts, checkpoint).save(out)
    checkpoint.unlink(missing_ok=True)
    return saved, evaluate(predictor, trace.select(parts.scored), horizons=horizons)


@command("train")
def run(cfg: DictConfig) -> dict[str, Any]:
    begin = perf_counter()
    predictor = built(cfg.predictor, "predictor")
    trace = load_trace(cfg.trace.path, hidden="hidden" in getattr(predictor, "needs", ("hidden",)))
    parts = split(trace, cfg.split.calibration, cfg.split.seed)
    out = Path(cfg.out or f"outputs/predictors/{predictor.name}")
    saved, rows = train(predictor, trace, parts, out, predictor.horizon)
    pooled = over_layers(rows)
    top_k = trace.header.top_k
    best = [r for r in pooled if r["width"] == top_k or r["metric"] == "top1"]
    ahead = {(r["metric"], r["horizon"]): r["value"] for r in best}
    layers = [r for r in rows if r["metric"] == "recall" and r["width"] == top_k]
    by_layer: dict[str, dict[int, float]] = {}
    for row in layers:
        by_layer.setdefault(_name(row["horizon"]), {})[row["layer"]] = round(row["value"], 4)
    return {
        "predictor": predictor.name,
        "recall_at_k": ahead.get(("recall", 1)),
        "k": top_k,
        "exact_at_k": ahead.get(("exact", 1)),
        "mass_recall_at_k": ahead.get(("mass", 1)),
        "f1_at_k": ahead.get(("f1", 1)),
        "top1": ahead.get(("top1", 1)),
        "recall_by_horizon": {_name(h): v for (m, h), v in sorted(ahead.items()) if m == "recall"},
        "recall_by_width": {r["width"]: r["value"] for r in pooled if r["metric"] == "recall" and r["horizon"] == 1},
        "recall_by_layer": by_layer,
        "calibration_sequences": len(parts.calibration),
        "scored_sequences": len(parts.scored),
        "split_digest": parts.digest,
        "trace": str(cfg.trace.path),
        "path": str(saved),
        "seconds": round(perf_counter() - begin, 2),
    }


def _name(horizon: int) -> str:
    return f"{horizon}" if horizon else "next_token"


if __name__ == "__main__":
    run.main()
