"""Prefetching on a trace of the user's own that need hold routed ids alone (`predicting.trace=PATH`): what forecasts without
hidden states are worth in simulated time, against LRU and a perfect forecast. No model is read, and no default is judged."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from omegaconf import DictConfig, OmegaConf

from rgpu.errors import InputError
from rgpu.experiments.study.prefetch_time import BASELINE, COST, FEW, ORACLE, SHARE, Arm, Court, rows, slots_of
from rgpu.experiments.study.stages import Stages
from rgpu.experiments.suites.predicting.fitting import Bench
from rgpu.experiments.suites.predicting.material import Material, window
from rgpu.experiments.suites.published.subjects import halves
from rgpu.results.provenance import config_hash, manifest, stamp, write_atomic
from rgpu.results.rows import append, frame
from rgpu.traces.split import held_apart
from rgpu.traces.storage import load_trace
from rgpu.traces.trace import Trace

NAME = "trace"
SEQUENCES, QUICK_SEQUENCES = 40, 8  # of each half, at most
TOKENS, QUICK_TOKENS = 320, 72  # of each sequence
TIMED_SEQUENCES, TIMED_TOKENS = 12, 96  # of the scored half: minutes of work
WAYS = (("top_k", "lru"), ("expected_value", "lru"), ("expected_value", "joint_forecast"))  # planner, policy
LIMIT = (
    f"predicting.trace: its routing is timed with the layers of {COST} whatever model it is of; one with larger experts or "
    "whose layers take longer saves another share"
)
ABSENT = "predicting.trace: none given, so no trace of routed ids alone was judged; set predicting.trace=PATH"


def material_of(path: Path, quick: bool, seed: int) -> Material:
    """Both halves of the trace at `path`, some sequences of each, without hidden states."""
    trace = load_trace(path, hidden=False, setting="predicting.trace")
    few = np.sort(
        np.random.default_rng(seed).permutation(trace.sequences)[: 2 * (QUICK_SEQUENCES if quick else SEQUENCES)]
    )
    part = window(trace.select(few), 0, QUICK_TOKENS if quick else TOKENS)
    return Material(halves(path.stem, f"{trace.header.model}, {path.name}: routed ids alone", part))


def arms_of(predictors: list[str]) -> list[Arm]:
    """LRU, then every predictor and the perfect forecast in each of `WAYS`."""
    return [BASELINE, *(Arm(name, planner, policy) for name in [*predictors, ORACLE] for planner, policy in WAYS)]


def traced(bench: Bench, path: Path, seed: int, stages: Stages) -> tuple[list[pa.Table], dict[str, Any]]:
    """(rows of `prefetch_time`, document) of the trace at `path`; kept where a run was killed after it."""
    material = material_of(path, bench.quick, seed)
    subject = material.subject
    held_apart(subject.calibration, subject.scored, "predicting.trace")
    usable = bench.usable(material)  # refuses what needs hidden states, and says so
    if not usable:
        name, why = next(iter(bench.refused[subject.name].items()))
        raise InputError(
            f"predicting.families: got none that {path.name} is enough for ({name}: {why}); expected one that needs routed ids "
            "alone and two documents to fit it; add popularity or record more prompts"
        )
    scored = window(subject.scored.select(np.arange(min(TIMED_SEQUENCES, subject.scored.sequences))), 0, TIMED_TOKENS)

    def make() -> list[pa.Table]:
        fitted = {name: bench.fitted(name, material, subject.calibration, "calibration") for name in usable}
        court = Court(scored, fitted)
        context = bench.context(material, "prefetch_time").at(method="replay", trace_tokens=scored.tokens)
        return rows(court, context, arms_of(usable), (SHARE,), FEW)

    made = stages.rows(f"traced-{path.stem}", make)
    return [made], document(frame(made), material, scored)


def document(found: Any, material: Material, scored: Trace) -> dict[str, Any]:
    """Time saved against LRU by machine, predictor, planner and policy, most saved first, with the verdict of each."""
    gains, tpot = (found[found["metric"] == name] for name in ("tpot_saved", "tpot"))
    base = {str(r.machine): float(r.value) for r in tpot[tpot["predictor"] == BASELINE.predictor].itertuples()}
    cells = [
        {
            "machine": str(r.machine), "predictor": str(r.predictor), "planner": str(r.case), "policy": str(r.policy),
            "recall": None if r.x != r.x else round(float(r.x), 4), "verdict": str(r.verdict),
            **{name: float(getattr(r, at)) / base[str(r.machine)] for name, at in
               (("saved", "value"), ("lo", "lo"), ("hi", "hi"))},
        }
        for r in gains.itertuples()
    ]  # fmt: skip
    return {
        "simulated": True, "trace": material.subject.name, "timed_as": COST, "slots": slots_of(scored, SHARE),
        "experts": scored.header.num_experts, "sequences": scored.sequences, "lru_tpot_s": base,
        "predicting_counted": False, "arms": sorted(cells, key=lambda c: (c["machine"], -c["saved"])),
    }  # fmt: skip


def run(cfg: DictConfig, families: list[str]) -> dict[str, Any]:
    """That part alone: rows and the document, without the reference model."""
    began, asked, out = time.perf_counter(), cfg.predicting, Path(cfg.out)
    config = OmegaConf.to_container(cfg, resolve=True)
    stages = Stages(out, config_hash({"config": config, "commit": manifest(config)["commit"], "part": NAME}))
    bench = Bench(stages.folder / "fitted", bool(cfg.quick), families, stamp(config, seed=cfg.seed))
    tables, found = traced(bench, Path(asked.trace), cfg.seed, stages)
    path, report = out / "trace_rows.parquet", out / "trace.json"
    path.unlink(missing_ok=True)
    append(path, tables)
    result = {
        "suite": "predictors", "part": NAME, "traced": found, "refused": bench.refused, "limits": [LIMIT], "rows": str(path),
        "report": str(report), "seconds": round(time.perf_counter() - began, 1),
    }  # fmt: skip
    write_atomic(report, (json.dumps(result, indent=1) + "\n").encode())
    stages.clear()
    return result
