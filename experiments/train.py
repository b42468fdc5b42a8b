"""Train a predictor on part of a trace's sequences and score it on the others, or on another trace."""

import json
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from omegaconf import DictConfig

from rgpu.errors import InputError
from rgpu.experiments.built import built
from rgpu.experiments.command import command, to_plain
from rgpu.experiments.injected import with_kernel
from rgpu.experiments.learning_curve import write_curve
from rgpu.experiments.study import predictor_metrics as metrics
from rgpu.experiments.study.predictor_cost import cost_of
from rgpu.predictors.schema import Schema
from rgpu.replay.prediction import evaluate, speaking_passes
from rgpu.replay.scores import over_layers
from rgpu.results.provenance import write_atomic
from rgpu.traces.split import Split, held_apart, origins, sharing, split
from rgpu.traces.storage import load_trace
from rgpu.traces.trace import SHARDED, Trace


def train(
    predictor: Any,
    trace: Trace,
    parts: Split,
    out: Path,
    horizons: int = 4,
    scored: Trace | None = None,
    width: int | None = None,
) -> tuple[Path, list[dict[str, Any]]]:
    """Fit on the calibration sequences, save at `out` with its learning curve, score the others or all of `scored`:
    (file of tensors, rows of `evaluate`). `width`: one more number of experts named, beside the usual ones."""
    k, experts = trace.header.top_k, trace.header.num_experts
    if width is not None and not 1 <= width <= experts:
        raise InputError(f"cannot score a forecast: got width {width}; expected 1 to {experts}; change width")
    if not len(parts.calibration) or not len(parts.scored):
        raise InputError(
            f"cannot train: got {trace.sequences} sequences of one document; expected two documents or more; "
            "record more prompts"
        )
    held = trace.select(parts.scored) if scored is None else scored
    held_apart(trace.select(parts.calibration), held, "train")
    checkpoint = Path(f"{out}.training.safetensors")  # left by a killed run, which the next one continues
    saved: Path = with_kernel(predictor).fit(trace, parts, checkpoint).save(out)
    write_curve(list(getattr(predictor, "curve_", [])), predictor.name, Path(out))
    checkpoint.unlink(missing_ok=True)
    widths = {k, k + 2, 2 * k, 3 * k, 4 * k, width or k}
    return saved, evaluate(predictor, held, sorted(widths), horizons)


def unseen(trace: Trace, parts: Split, other: Trace, path: str) -> Trace:
    """Sequences of `other` that share no document or content with what calibrates in `trace`; `InputError` without any."""
    kept = np.flatnonzero(~sharing(other, origins(trace.select(parts.calibration))))
    if not len(kept):
        raise InputError(
            f"cannot score on {path}: got only documents that were trained on; expected others; "
            "record other prompts or change split.seed"
        )
    return other.select(kept)


def switching(predictor: Any, trace: Trace, parts: Split, path: str) -> Trace:
    """The trace `switches`; `InputError` where `predictor`, fitted on the calibration sequences, could not be scored on it."""
    other = load_trace(path, setting="switches", **states_for(predictor))
    _same_model(trace, other, "switches")
    for array in getattr(predictor, "needs", ()):
        other.require(array, f"switches={path}: predictor {predictor.name}")
    part, _, _ = metrics.unseen_switches(other, trace.select(parts.calibration))
    speaking_passes(part)
    return other


def states_for(predictor: Any) -> dict[str, Any]:
    """Which states `load_trace` is to open: those that the predictor reads, or the routers' inputs where it does not say."""
    needs = getattr(predictor, "needs", ("hidden",))
    return {name: name in needs for name in SHARDED}


def regime(trace: Trace) -> str:
    """Whether the model wrote the text of a trace or read it."""
    return "on-policy" if trace.header.on_policy else "teacher-forced"


@command("train")
def run(cfg: DictConfig) -> dict[str, Any]:
    begin = perf_counter()
    predictor = built(cfg.predictor, "predictor")
    states = states_for(predictor)
    trace = load_trace(cfg.trace.path, stream=True, **states)
    parts = split(trace, cfg.split.calibration, cfg.split.seed)
    other, topics = None, None
    if cfg.score.path:
        whole = load_trace(cfg.score.path, stream=True, setting="score.path", **states)
        _same_model(trace, whole, "score.path")
        other = unseen(trace, parts, whole, str(cfg.score.path))
    if cfg.switches is not None:
        topics = switching(predictor, trace, parts, str(cfg.switches))  # before an hour of training, not after it
    out = Path(cfg.out or f"outputs/predictors/{predictor.name}")
    saved, rows = train(predictor, trace, parts, out, predictor.horizon, other, cfg.width)
    held = trace.select(parts.scored) if other is None else other
    width = cfg.width or trace.header.top_k
    told = metrics.details(rows, held, width)
    told["by_distance"] = _by_distance(predictor, topics, trace.select(parts.calibration), width)
    details = Path(f"{out}.metrics.json")
    write_atomic(details, (json.dumps(to_plain(told), indent=1) + "\n").encode())
    return summary(rows, trace.header.top_k) | {
        "width": width,
        "metrics": {h: {k: v for k, v in said.items() if k != "reliability"} for h, said in told["all"].items()},
        "cost": cost_of(predictor, held).to_json(),
        "details": str(details),
        "predictor": predictor.name,
        "clairvoyant": bool(getattr(predictor, "clairvoyant", False)),
        "calibration_sequences": len(parts.calibration),
        "scored_sequences": len(parts.scored) if other is None else other.sequences,
        "split_digest": parts.digest,
        "trace": str(cfg.trace.path),
        "trained_on": regime(trace),
        "scored_on": regime(other or trace),
        "path": str(saved),
        "epochs": max((row["epoch"] for row in getattr(predictor, "curve_", [])), default=0),
        "seconds": round(perf_counter() - begin, 2),
    }


def summary(rows: list[dict[str, Any]], top_k: int) -> dict[str, Any]:
    """The figures of a run from the rows of `evaluate`."""
    pooled = over_layers(rows)
    best = [r for r in pooled if r["width"] == top_k or r["metric"] == "top1"]
    ahead = {(r["metric"], r["horizon"]): r["value"] for r in best}
    by_layer: dict[str, dict[int, float]] = {}
    for row in rows:
        if row["metric"] == "recall" and row["width"] == top_k:
            by_layer.setdefault(_name(row["horizon"]), {})[row["layer"]] = round(row["value"], 4)
    return {
        "recall_at_k": ahead.get(("recall", 1)),
        "k": top_k,
        "exact_at_k": ahead.get(("exact", 1)),
        "mass_recall_at_k": ahead.get(("mass", 1)),
        "f1_at_k": ahead.get(("f1", 1)),
        "top1": ahead.get(("top1", 1)),
        "recall_by_horizon": {_name(h): v for (m, h), v in sorted(ahead.items()) if m == "recall"},
        "recall_by_width": {r["width"]: r["value"] for r in pooled if r["metric"] == "recall" and r["horizon"] == 1},
        "recall_by_layer": by_layer,
    }


def _same_model(trace: Trace, other: Trace, setting: str) -> None:
    wrong = Schema.of(trace, trace.select(np.zeros(0, np.int64)), hidden=True).differs(other)
    if wrong:
        raise InputError(
            f"{setting}: got a trace of another model ({', '.join(wrong)}); expected the same; change {setting}"
        )


def _by_distance(predictor: Any, trace: Trace | None, calibrating: Trace, width: int) -> dict[str, Any] | None:
    """Every metric by tokens from a topic switch, in the trace `switches`; None without one."""
    if trace is None:
        return None
    rows, left = metrics.around_switches(predictor, trace, calibrating, predictor.horizon, [width])
    said: dict[str, Any] = {"left_out": left}
    for cell in sorted({r["cell"] for r in rows}):
        own = metrics.pick(rows, cell=cell)
        said[metrics.cell_name(cell)] = metrics.summary(own, width, trace.header.num_experts, trace.header.top_k)
    return said


def _name(horizon: int) -> str:
    return f"{horizon}" if horizon else "next_token"


if __name__ == "__main__":
    run.main()
