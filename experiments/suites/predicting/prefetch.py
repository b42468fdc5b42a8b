"""Prefetching in the suite of predictors: what forecasts are worth in time, the verdict, and the break-even atlas."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from rgpu.experiments.study.prefetching import run
from rgpu.experiments.study.stages import Stages
from rgpu.experiments.suites.predicting.fitting import Bench
from rgpu.experiments.suites.predicting.material import Material, documents, window, without
from rgpu.experiments.suites.published.record import note
from rgpu.traces.storage import load_trace

TOKENS = 112  # of each scored sequence, from its beginning: enough for narrow intervals, and all run for minutes
FIGURES = {
    "prefetch_recall": "Recall against time saved",
    "prefetch_tpot": "Time per token by predictor and planner, and the verdict",
    "prefetch_bytes": "What becomes of prefetched bytes",
    "prefetch_break_even": "The recall from which prefetching pays",
}
PAPER = "not published in this form; after the negative results of BigMoeOnEdge and arXiv 2608.12103"
SAME = "prefetch judged by time per token, not by recall"
DIFFERS = (
    "simulated: the reference model's routing, timed with the layers of gpt-oss-20b; "
    "what predicting takes is in the verdict, measured on this CPU, and not in the other figures"
)


def prefetching(
    bench: Bench, found: list[Material], stages: Stages, out: Path, chosen_on: Path
) -> tuple[list[pa.Table], dict[str, Any]]:
    """(rows, document) on the first material with a model; finished ones are kept. Nothing where there is none.

    Scored sequences of a document that the trace at `chosen_on` has, which the default was chosen on, are left out; if that
    leaves none, all are timed and nothing is said of the default."""
    material = next((m for m in found if m.model), None)
    if material is None:
        return [], {}

    def make() -> list[pa.Table]:
        calibration, scored = material.subject.calibration, window(material.subject.scored, 0, TOKENS)
        other = without(scored, documents(load_trace(chosen_on, hidden=False)))
        seen = not other.sequences
        scored = scored if seen else other
        fitted = {name: bench.fitted(name, material, calibration, "calibration") for name in bench.usable(material)}
        context = bench.context(material, "prefetch_time")
        tables, made = run(context, calibration, scored, material.model, out, bench.quick, fitted, seen)
        stages.document("prefetching", lambda: made)
        return tables

    rows = stages.rows("prefetching", make)
    return [rows], stages.document("prefetching", dict)


def records(document: Mapping[str, Any], index: Mapping[str, Any], folder: Path, status: str) -> list[dict[str, Any]]:
    """Records of the figures for the page: nothing to hold them against, the verdicts as notes."""
    made = []
    for name, title in FIGURES.items():
        drawn = [f for f in index["figures"] if f["name"] == name]
        criteria = _verdicts(document) if name == "prefetch_tpot" else []
        numbers = {
            f["trace"]: {"status": status, "calibrated synthetic": False, "criteria": criteria} for f in drawn[:1]
        }
        made.append(
            {
                "id": name, "title": title, "paper": PAPER, "same": SAME, "differs": DIFFERS, "status": status,
                "by_trace": {f["trace"]: status for f in drawn}, "numbers": numbers, "published": [],
                "files": [str(folder / file) for f in drawn for file in f["files"]],
            }
        )  # fmt: skip
    return made


def _verdicts(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each verdict with what it rests on: time saved against LRU and both look-aheads, by machine."""
    return [
        note(
            f"timed as {v['timed_as']}, {v['slots']} slots a layer: {v['says']}",
            v["pays"],
            {own["machine"]: {n: cell["saved"] for n, cell in own["against"].items()} for own in v["machines"]},
        ).to_json()
        for v in document.get("verdicts", [])
    ]
