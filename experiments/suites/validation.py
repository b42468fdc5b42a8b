"""`rgpu reproduce suite=validation`: the simulator against live runs of the engine on this machine's CPU.

A profile is calibrated on runs that are not validated; each validated run's own trace is replayed (its decisions must agree)
and timed with that profile; the time per output token is held against the measured one.
"""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from rgpu.errors import InputError
from rgpu.experiments.benching.calibrating import POLICIES, Calibration, load_engine_profile, write_engine_profile
from rgpu.experiments.benching.live_events import Bench, Configuration, LiveRun, prompts_of
from rgpu.experiments.benching.quiet import Quiet
from rgpu.experiments.inputs import policy_named
from rgpu.experiments.plot import render
from rgpu.experiments.suites.validating import judging
from rgpu.experiments.suites.validating.page import build_page
from rgpu.experiments.suites.validating.result_rows import rows_of
from rgpu.experiments.suites.validating.running import check_unseen, run_rounds, validated
from rgpu.replay.timing.engine_profile import EngineProfile
from rgpu.results.provenance import manifest, stamp, write_atomic, write_manifest
from rgpu.results.rows import append, read
from rgpu.runtime.loading import load_tokenizer
from rgpu.traces.storage import load_trace

CALIBRATES = "reference_hidden"  # the trace that policies calibrate on: other texts than those that run here


def benches(cfg: DictConfig, size: Any) -> tuple[Bench, Bench]:
    """(what calibrates, what is validated): the same but for their texts, which share no document."""
    folder = Path(cfg.model)
    for needed in (cfg.model, cfg.traces, cfg.heldout):
        if not Path(needed).is_dir():
            raise InputError(
                f"reproduce: got no folder {needed}; expected the shipped assets; run from the repository's root"
            )
    batches = [int(b) for b in size.batches]
    policies = {name: policy_named(name) for name in dict.fromkeys((*POLICIES, *size.policies))}
    needs = any(p.traits.calibration for p in policies.values())
    trace = load_trace(Path(cfg.traces) / f"{CALIBRATES}.safetensors") if needs else None
    tokenizer, most = load_tokenizer(folder), max(batches)
    made = [
        Bench(folder, prompts_of(cfg.heldout, tokenizer, size.prompt_tokens, first, most), size.new_tokens, policies, trace,
              seed=cfg.seed)
        for first in (0, most)
    ]  # fmt: skip
    return made[0], made[1]


def judge(bench: Bench, profile: EngineProfile, config: Configuration, runs: list[LiveRun]) -> dict[str, Any]:
    """A configuration's numbers: decisions of every repeat, measured and predicted time, error and spread."""
    again = [judging.replayed(bench, run) for run in runs]
    same = all(r.same for r in again) and all(run.log == runs[0].log for run in runs)
    time_s = judging.measured([run.seconds_P for run in runs])
    wall_s = judging.measured([run.wall_P for run in runs]).tpot_s
    found = judging.predict(profile, bench, runs[0], again[0].log)
    return {
        "name": config.name, "policy": config.policy, "slots": config.slots, "miss": config.handler, "batch": config.batch,
        "identical_decisions": same, "hits": again[0].hits, "accesses": again[0].accesses, "measured_s": time_s.tpot_s,
        "repeats_s": list(time_s.repeats_s), "spread": time_s.spread, "predicted_s": found.tpot_s,
        "without_misses_s": found.without_misses_s, "error": judging.error_of(found.tpot_s, time_s.tpot_s),
        "wall_s": wall_s, "wall_error": judging.error_of(found.tpot_s, wall_s),
        "error_without_misses": judging.error_of(found.without_misses_s, time_s.tpot_s),
    }  # fmt: skip


def run(cfg: DictConfig) -> dict[str, Any]:
    began = time.perf_counter()
    out, size = Path(cfg.out), cfg.validation.brief if cfg.quick else cfg.validation.full
    calibrating, bench = benches(cfg, size)
    slots = tuple(int(n) for n in size.calibration_slots)
    configurations = validated(size)
    check_unseen(configurations, slots)
    given = None if cfg.validation.profile is None else load_engine_profile(Path(cfg.validation.profile))
    quiet, calibration = Quiet(float(cfg.validation.others), float(size.patience_s)), None
    if given is None:
        calibration = Calibration(calibrating, tuple(int(b) for b in size.batches), slots, tuple(size.policies), quiet)
    done = run_rounds(calibration, bench, configurations, size.repeats, cfg.seed, quiet)
    profile = given or calibration.profile("this_machine")  # type: ignore[union-attr]
    path = write_engine_profile(profile, out / "profile.yaml")
    points = [judge(bench, profile, config, done.runs[config]) for config in configurations]
    calibrated = [c.name for c in calibration.runs] if calibration else [f"{profile.name}, before this run"]
    still = float(np.mean(np.asarray(quiet.others) <= quiet.most))
    config = OmegaConf.to_container(cfg, resolve=True)
    facts, provenance = manifest(config), stamp(config, seed=cfg.seed)
    judged = judging.verdict([p["error"] for p in points], [p["spread"] for p in points])
    judged["median_error_without_misses"] = judging.median_size([p["error_without_misses"] for p in points])
    judged["median_wall_error"] = judging.median_size([p["wall_error"] for p in points])
    tokens = max(run.trace.tokens for runs in done.runs.values() for run in runs)
    rows = out / "rows.parquet"
    rows.unlink(missing_ok=True)
    append(rows, rows_of(points, judged, profile.name, calibrating.model.name, tokens, done.loads, provenance))
    index = render(read(rows), out / "figures", ["validation_tpot"])
    failed = [f"decisions of {p['name']}" for p in points if not p["identical_decisions"]]
    document = {
        "suite": "validation", "machine": f"{facts['cpu']}, {facts['cores']} cores", "date": facts["date"],
        "load_average": done.loads, "quiet_runs": still, "repeats": int(size.repeats), "calibrated_on": calibrated,
        "decisions_identical": not failed, "failed": failed, **judged, "points": points, "profile": str(path),
        "rows": str(rows), "report": str(out / "report.html"), "limits": [],
        "seconds": round(time.perf_counter() - began, 1),
    }  # fmt: skip
    document["limits"] = limits(cfg, document)
    write_manifest(out / "manifest.json", facts)
    write_atomic(out / "validation.json", (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode())
    build_page(document, index, out)
    return document


def limits(cfg: DictConfig, judged: dict[str, Any]) -> list[str]:
    """What a reader must know before quoting the verdict."""
    said = [
        "One machine, its CPU, one thread that computes; experts in RAM. Nothing here says how well a GPU is simulated.",
        "The reference model is small: most of a pass is its dense part and fixed costs, which a replay does not change. "
        f"A prediction that leaves every miss out is off by {judged['median_error_without_misses']:.1%} (median).",
    ]
    if judged["quiet_runs"] < 0.9:
        said.append(
            f"Other processes were busy beside {1 - judged['quiet_runs']:.0%} of the runs. What a pass waited for a processor "
            f"is taken off; with it the median error is {judged['median_wall_error']:.1%}. What others do to caches and to the "
            "thread that copies stays in. Repeat on an idle machine before quoting."
        )
    if cfg.quick:
        said.append("Quick form: few configurations and repeats. Run without quick=true before quoting.")
    return said
