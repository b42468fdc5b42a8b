"""`rgpu reproduce`: record, train, sweep every policy, prove a live run, draw the figures, write the report."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from rgpu.errors import InputError
from rgpu.experiments.inputs import policy_named
from rgpu.experiments.loading import load_model
from rgpu.experiments.plot import render
from rgpu.experiments.prompts import read_prompts
from rgpu.experiments.record import record
from rgpu.experiments.report import build_report
from rgpu.experiments.study import counting, forecasting, proof, replaying
from rgpu.experiments.study.stages import Stages
from rgpu.experiments.sweep import Point, sweep
from rgpu.policies.policy import Policy
from rgpu.results.derive import CEILINGS, derive, kinds_of
from rgpu.results.provenance import config_hash, manifest, stamp, write_manifest
from rgpu.results.rows import Context, append, read
from rgpu.traces.split import origins, sharing, split
from rgpu.traces.storage import load_trace
from rgpu.traces.trace import Trace

SHARED_TRACE = "traces/gpt-oss-20b_decode_mixedqa_w.npz"
PICTURED = ("ring", "lru", "rotary")  # policies in the picture of the rotation


class Study:
    """What every stage needs: settings, policies, provenance, where things go."""

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg, self.size = cfg, cfg.brief if cfg.quick else cfg.full
        self.out = Path(cfg.out)
        self.config = OmegaConf.to_container(cfg, resolve=True)
        self.facts = manifest(self.config)
        self.stamp = stamp(self.config, seed=cfg.seed)
        self.policies: dict[str, Policy] = {name: policy_named(name) for name in cfg.policy}
        files = [f for folder in (cfg.model, cfg.traces, cfg.heldout) for f in sorted(Path(folder).iterdir())]
        inputs = {f.name: (f.stat().st_size, f.stat().st_mtime_ns) for f in files if f.is_file()}
        identity = config_hash({"config": self.config, "inputs": inputs, "commit": self.facts["commit"]})
        self.stages = Stages(self.out, identity)
        self.settings = OmegaConf.create({"reset": "sequence", "touch_order": "rank", "staging": 1})

    def fresh(self) -> Trace:
        """A trace recorded now, live, with hidden states."""
        path, size = self.stages.folder / "fresh.safetensors", self.size
        if not path.exists():
            model, tokenizer = load_model(self.cfg.model)
            torch.set_num_threads(1)  # small matrices: a second thread costs more than it gives
            prompts = read_prompts(self.cfg.heldout, tokenizer, size.prompt_tokens, size.prompts)
            path.parent.mkdir(parents=True, exist_ok=True)
            record(
                model,
                tokenizer,
                prompts,
                path,
                max_new_tokens=size.max_new_tokens,
                temperature=0.8,
                seed=self.cfg.seed + 2,
                hidden=True,
            )
        return load_trace(path)

    def shipped(self, name: str) -> Trace:
        return load_trace(Path(self.cfg.traces) / f"{name}.safetensors")

    def context(self, trace: Trace, name: str, source: str) -> Context:
        return Context(
            experiment="capacity_sweep", model=trace.header.model, trace=name, source=source, trace_tokens=trace.tokens,
            provenance=self.stamp,
        )  # fmt: skip

    def trace_rows(self, name: str, trace: Trace, source: str, sequences: int | None = None) -> Any:
        """Popularity and reuse of a whole trace; sweep, layers and residency on its scored half."""
        parts = split(trace)
        scored, calibration = trace.select(parts.scored[:sequences]), trace.select(parts.calibration[:sequences])
        whole = self.context(trace, name, source)
        reads = "hidden states" if trace.hidden is not None else "the routing vector"
        half = whole.at(trace_tokens=scored.tokens, source=f"{source}; rotary reads {reads}")
        slots = max(2, round(self.cfg.share * trace.header.num_experts))
        points = [Point(p, "layer", s, self.cfg.seed) for s in self.size.slots for p in self.policies]
        chosen = list(self.policies.values())
        pictured = [self.policies[p] for p in PICTURED if p in self.policies]
        one = scored.select(np.array([int(np.diff(scored.seq_offsets).argmax())]))
        parts_of = self.stages.folder / f"sweep-{name}"

        def make() -> list[Any]:
            tables = counting.popularity(whole, trace) + counting.reuse(whole, trace)
            tables += sweep(half, scored, calibration, self.policies, points, self.settings, parts_of, self.cfg.workers)
            tables += replaying.layer_hits(half, scored, calibration, chosen, slots)
            tables += replaying.residency(
                half.at(trace_tokens=one.tokens), one, calibration, pictured, slots, trace.layers // 2, 160
            )
            return tables

        return self.stages.rows(name, make)

    def switch_rows(self, calibrating: Trace) -> Any:
        """Topic switches; what calibrates is disjoint from their documents."""
        trace = self.shipped("reference_switch")
        free = np.flatnonzero(~sharing(calibrating, origins(trace)))
        source = "rgpu reference model reading held-out text token by token (not on-policy)"
        context = self.context(trace, "reference", source)
        slots = max(2, round(self.cfg.share * trace.header.num_experts))
        chosen = list(self.policies.values())
        calibration = calibrating.select(free)
        return self.stages.rows("switch", lambda: replaying.topic_switches(context, trace, calibration, chosen, slots))


def run(cfg: DictConfig) -> dict[str, Any]:
    began = time.perf_counter()
    for needed in (cfg.model, cfg.traces, cfg.heldout):
        if not Path(needed).is_dir():
            raise InputError(
                f"reproduce: got no folder {needed}; expected the shipped assets; run from the repository's root"
            )
    study = Study(cfg)
    shipped = study.shipped("reference")
    slots = max(2, round(cfg.share * shipped.header.num_experts))
    cases = proof.CASES[:2] if cfg.quick else proof.CASES
    hidden = str(Path(cfg.traces) / "reference_hidden.safetensors")
    beside = ThreadPoolExecutor(1)  # the live proof runs in processes of its own, beside everything else
    proved = beside.submit(
        study.stages.document,
        "proof",
        lambda: proof.prove(cfg.model, hidden, slots, study.size.live_tokens, cases),
    )
    beside.shutdown(wait=False)
    fresh = study.fresh()
    source = "rgpu reference model, sampled continuations of held-out prompts"
    tables = [
        study.trace_rows("reference", shipped, source),
        study.switch_rows(shipped),
        study.stages.rows("prediction", lambda: forecasting.forecasts(
            study.context(fresh, "fresh", f"{source}, recorded by this run with hidden states"), fresh, Path(cfg.model),
            study.out / "predictors")),
    ]  # fmt: skip
    if not cfg.quick:  # the quick form only predicts on it
        tables.append(study.trace_rows("fresh", fresh, f"{source}, recorded by this run with hidden states"))
    shared = Path(cfg.shared) / SHARED_TRACE
    limits = []
    if shared.exists():
        trace = load_trace(shared)
        if study.size.sequences:
            few = np.random.default_rng(cfg.seed).permutation(trace.sequences)[: 2 * study.size.sequences]
            trace = trace.select(np.sort(few))
        tables.append(study.trace_rows("gpt-oss-20b", trace, "openai/gpt-oss-20b decode on mixed QA, no prefill recorded "
                                       "(AmanPriyanshu/GPT-OSS-MoE-ExpertFingerprinting, Apache-2.0)"))  # fmt: skip
    else:
        limits.append("The gpt-oss-20b trace was not there, so only the reference model was measured.")
    checks = proved.result()
    rows_path = study.out / "rows.parquet"
    rows_path.unlink(missing_ok=True)
    append(rows_path, tables)
    append(rows_path, derive(read(rows_path)))
    rows = read(rows_path)
    held, detail = replaying.bounds_hold(rows)
    checks.append({"name": "bounds hold: bypass everywhere, forced where events fit", "passed": held, "detail": detail})
    if cfg.quick:
        limits.append("Quick form: few prompts and capacities. Run without quick=true for figures worth quoting.")
    write_manifest(study.out / "manifest.json", study.facts)
    index = render(rows, study.out / "figures")
    report = build_report(
        rows_path, study.out / "figures", study.facts, checks, study.out / "report.html", limits=limits
    )
    for file in study.stages.folder.glob("fresh*.safetensors"):  # what the predictions were scored on stays
        os.replace(file, study.out / file.name)
    study.stages.clear()
    failed = [c["name"] for c in checks if not c["passed"]]
    seconds = round(time.perf_counter() - began, 1)
    return {
        "report": str(report), "rows": str(rows_path), "row_count": len(rows), "figures": len(index["figures"]),
        "checks": {c["name"]: c["passed"] for c in checks}, "failed": failed, "seconds": seconds,
        "headline": headline(rows, slots),
    }  # fmt: skip


def headline(rows: Any, slots: int) -> dict[str, dict[str, float]]:
    """Hit rate of every policy that could run, at the pictured capacity, by trace."""
    whole = rows[(rows["experiment"] == "capacity_sweep") & (rows["metric"] == "hit_rate") & rows["sequence"].isna()]
    kinds = kinds_of(whole["policy"], whole["kind"])
    could_run = [p for p, kind in kinds.items() if kind not in CEILINGS]
    whole = whole[(whole["slots"] == slots) & whole["policy"].isin(could_run)]
    return {t: dict(zip(p["policy"], p["value"].round(4), strict=True)) for t, p in whole.groupby("trace")}
