"""Prefetching judged live: predictors that are cheap enough, in the engine on this machine's CPU, beside the simulator."""

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from rgpu.errors import InputError
from rgpu.experiments.benching.quiet import Quiet
from rgpu.experiments.study.live_arms import arms_of
from rgpu.experiments.study.live_clock import calibrated
from rgpu.experiments.study.live_contest import Contest, Size, pick
from rgpu.experiments.study.live_engine import Host, Link
from rgpu.experiments.study.live_verdict import HEAD, judge, lines, rows, sentence
from rgpu.experiments.study.predictor_cost import cost_of
from rgpu.experiments.study.prefetch_time import slots_of
from rgpu.experiments.study.stages import Stages
from rgpu.experiments.suites.predicting.asked import repeats_of, shares_of, speeds_of
from rgpu.experiments.suites.predicting.fitting import Bench, names
from rgpu.experiments.suites.predicting.material import Material, documents, without
from rgpu.experiments.suites.published.record import note
from rgpu.results.provenance import manifest
from rgpu.traces.split import held_apart
from rgpu.traces.storage import load_trace
from rgpu.traces.trace import Trace

FIGURE = "prefetch_live"
MOST_US = 100.0  # that observing and forecasting one event may take: more than a tenth of a layer here
OTHERS = 0.25  # cores that other processes may use beside a run before it is made again
FULL = Size(8, 16, 2, (0.25, 0.5), (), 3, 30.0)
QUICK = Size(2, 6, 1, (0.25,), (), 1, 0.0)
DIFFERS = (
    "measured: rgpu's engine on this machine's CPU with the reference model, fed recorded tokens; the emulated links are this "
    "machine's memory, slowed down to a stated rate; a GPU's own link and compute are not in it"
)


def size_of(asked: Mapping[str, Any], quick: bool) -> Size:
    """How much runs: this machine's own file reads and the emulated links asked for (the slowest alone in the quick form)."""
    size = QUICK if quick else FULL
    speeds, repeats = speeds_of(asked), repeats_of(asked, size.repeats)
    shares = shares_of(asked, size.shares)
    links = (Link(), *(Link(v) for v in (sorted(speeds)[:1] if quick else speeds)))
    return replace(size, links=links, repeats=repeats, shares=shares)


def live(
    bench: Bench, found: list[Material], stages: Stages, chosen_on: Path, asked: Mapping[str, Any], seed: int = 0
) -> tuple[list[pa.Table], dict[str, Any]]:  # fmt: skip
    """(rows, document) on the first material with a model; finished ones are kept. Nothing where there is none. `asked`: what
    `size_of` reads.

    Texts are scored sequences of no document that the trace at `chosen_on` has, which the default was chosen on; if none is
    left, all are run and nothing is told."""
    material = next((m for m in found if m.model), None)
    if material is None:
        return [], {}
    own, size = material, size_of(asked, bench.quick)

    def make() -> list[pa.Table]:
        other = without(own.subject.scored, documents(load_trace(chosen_on, hidden=False)))
        seen = not other.sequences
        scored = own.subject.scored if seen else other
        tables, made = run(bench, own, scored, size, seed, seen)
        stages.document("live", lambda: made)
        return tables

    kept = stages.rows("live", make)
    return [kept], stages.document("live", dict)


def run(
    bench: Bench, material: Material, scored: Trace, size: Size, seed: int, seen: bool
) -> tuple[list[pa.Table], dict[str, Any]]:
    """Fit, calibrate, compete on texts of `scored`, judge. `seen`: the default was chosen on them."""
    began = time.perf_counter()
    subject, links = material.subject, size.links
    held_apart(subject.calibration, scored, "predicting.only=live")
    predictors, left_out = competing(bench, material, scored)
    host, quiet = Host.opened(Path(material.model)), Quiet(OTHERS, size.patience_s)
    loads = [load_average()]
    clock = calibrated(Path(material.model), host, links, subject.calibration, size.rounds, quiet)
    texts, arms = pick(scored, size.texts, size.steps), arms_of(list(predictors), bench.quick)
    contest = Contest(host, texts, predictors, arms, clock, quiet, seed)
    shares = {share: slots_of(scored, share) for share in size.shares}
    runs = len(texts) * len(arms) * len(shares) * len(links) * size.repeats
    with tqdm(total=runs, desc="live", unit="run", disable=None) as bar:
        tables = [judge(t, seen) for t in contest.hold(size, shares, bar)]
    loads.append(load_average())
    tokens = sum(len(t.tokens) for t in texts)
    context = bench.context(material, FIGURE).at(trace_tokens=tokens)
    made = [row for t in tables for row in rows(t, context, scored.header.num_experts)]
    facts = manifest({})
    rates = {
        link.label: {"gb_per_s": cost.bytes_per_s / 1e9, "latency_us": 1e6 * cost.latency_s}
        for link, cost in clock.copies.items()
    }
    document = {
        "simulated": False, "machine": f"{facts['cpu']}, {facts['cores']} cores", "load_average": loads,
        "quiet_runs": float(np.mean(np.asarray(quiet.others) <= quiet.most)), "texts": len(texts), "steps": size.steps,
        "repeats": size.repeats, "predictors": list(predictors), "left_out": left_out,
        "copies": rates,
        "outputs_identical": True, "decisions_identical": True, "tables": tables, "says": [sentence(t) for t in tables],
        "beats_lru": sum(len(t["beats_lru"]) for t in tables), "seconds": round(time.perf_counter() - began, 1),
    }  # fmt: skip
    return made, document


def competing(bench: Bench, material: Material, scored: Trace) -> tuple[dict[str, Any], dict[str, str]]:
    """(what competes, fitted, by name; why each other predictor with a config does not)."""
    fitted: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    for name in names():
        if name not in bench.names:
            left_out[name] = "not among predicting.families"
        elif not any(arm.predictor == name for arm in arms_of([name], bench.quick)):
            left_out[name] = "has no part in the quick form"
        else:
            try:
                predictor = bench.fitted(name, material, material.subject.calibration, "calibration")
            except InputError as error:
                left_out[name] = str(error)
                continue
            took = cost_of(predictor, scored, 200).us_lo
            if took > MOST_US:
                left_out[name] = f"takes {took:.0f} us an event, more than {MOST_US:.0f}"
            else:
                fitted[name] = predictor
    return fitted, left_out


def load_average() -> float:
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else float("nan")


def record(document: Mapping[str, Any], index: Mapping[str, Any], folder: Path, status: str) -> dict[str, Any]:
    """The figure's record for the page: a note for every table, and the tables themselves."""
    drawn, left_out = [f for f in index["figures"] if f["name"] == FIGURE], document.get("left_out", {}).items()
    criteria = [
        note(
            said, bool(t["beats_lru"]),
            {"bound, simulated": t["bound_of_lru_simulated"], "every expert resident": t["resident_of_lru"],
             "faster than LRU": t["beats_lru"]},
        ).to_json()
        for said, t in zip(document.get("says", []), document.get("tables", []), strict=True)
    ]  # fmt: skip
    return {
        "id": FIGURE, "title": "Prefetching live in the engine, beside the simulator", "status": status,
        "paper": "not published in this form", "same": "the same decisions, run and simulated", "differs": DIFFERS,
        "by_trace": {f["trace"]: status for f in drawn}, "published": [],
        "numbers": {f["trace"]: {"status": status, "calibrated synthetic": False, "criteria": criteria} for f in drawn[:1]},
        "files": [str(folder / file) for f in drawn for file in f["files"]],
        "tables": [
            {"title": f"{t['link']}, {t['slots']} slots a layer", "head": list(HEAD), "rows": lines(t)}
            for t in document.get("tables", [])
        ]
        + [
            {"title": "Predictors that did not compete", "head": ["predictor", "why"], "rows": [list(o) for o in left_out]}
        ] * bool(left_out),
    }  # fmt: skip
