"""`rgpu reproduce suite=predictors`: every predictor on text it did not see, beside what others published."""

import importlib
import json
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from rgpu.experiments.figures.style import ENDINGS
from rgpu.experiments.plot import render
from rgpu.experiments.study.stages import Stages
from rgpu.experiments.suites.predicting import choices, traced
from rgpu.experiments.suites.predicting import live as engine
from rgpu.experiments.suites.predicting.asked import CHOICES, LIVE, TIMED, TRACE, check
from rgpu.experiments.suites.predicting.fitting import Bench
from rgpu.experiments.suites.predicting.material import Material, gather
from rgpu.experiments.suites.predicting.prefetch import FIGURES as PREFETCH
from rgpu.experiments.suites.predicting.prefetch import prefetching, records
from rgpu.experiments.suites.published import marks
from rgpu.experiments.suites.published.field_page import build_page
from rgpu.experiments.suites.published.judging import document
from rgpu.experiments.suites.published.record import NOT_TESTABLE, NotTestableError
from rgpu.results.provenance import config_hash, manifest, stamp, write_atomic, write_manifest
from rgpu.results.rows import append, read

FIGURES = ("recall", "layers", "accuracy", "calibration", "next_token", "transfer", "cost", "switches")
UNPUBLISHED = "nothing published"  # to compare with: the figure is ours
QUICK = "Quick form: little text and short training. Numbers are for looking, not for quoting."
LACKS = "what was published needs hidden states, domains, a recall near the published one or more sequences than this trace has"
SMALL = (
    "The reference model is small (8 MoE layers, 32 experts, hidden size 256): its routing is easier or harder to predict than "
    "that of the models others report, in ways this suite cannot tell."
)


def figures() -> list[Any]:
    """The modules that compute the figures, in reading order."""
    return [importlib.import_module(f"rgpu.experiments.suites.predicting.{name}") for name in FIGURES]


def compute(module: Any, bench: Bench, found: list[Material], stages: Stages) -> tuple[list[pa.Table], dict[str, str]]:
    """(rows of a figure on every material, reasons by trace where it could not be tested); finished parts are kept."""
    tables, reasons = [], {}
    for material in found:
        name = material.subject.name
        try:
            tables.append(stages.rows(f"{module.ABOUT.id}-{name}", lambda: module.rows(bench, material)))  # noqa: B023
        except NotTestableError as error:
            reasons[name] = str(error)
    return tables, reasons


def run(cfg: DictConfig) -> dict[str, Any]:
    began = time.perf_counter()
    out = Path(cfg.out)
    config = OmegaConf.to_container(cfg, resolve=True)
    facts = manifest(config)
    asked = cfg.get("predicting") or {}
    alone = asked.get("only")
    families = check(asked)
    if alone == CHOICES:
        return choices.run(cfg, families)
    if alone == TRACE:
        return traced.run(cfg, families)
    stages = Stages(out, config_hash({"config": config, "commit": facts["commit"], "families": families, "suite": 2}))
    found, missing = gather(cfg, stages.folder / "traces", further=not alone)
    bench = Bench(stages.folder / "fitted", bool(cfg.quick), families, stamp(config, seed=cfg.seed))
    tables: list[pa.Table] = []
    reasons: dict[str, dict[str, str]] = {}
    modules = [] if alone else figures()
    for module in tqdm(modules, desc="figures", disable=None):
        own, reasons[module.ABOUT.id] = compute(module, bench, found, stages)
        tables += own
        for trace in sorted({name for t in own for name in t["trace"].to_pylist()}):
            tables += marks.value_rows(module.ABOUT.figure, module.ABOUT.id, trace, bench.provenance)
    if alone != LIVE:
        for material in found[: 1 if alone else None]:  # what a continued run did not fit again
            bench.usable(material)
    chosen_on = Path(cfg.traces) / "reference_hidden.safetensors"
    judged_in_time: dict[str, Any] = {}
    judged_live: dict[str, Any] = {}
    if alone in (None, TIMED):
        timed, judged_in_time = prefetching(bench, found, stages, out, chosen_on)
        tables += timed
    judged_ids: dict[str, Any] = {}
    own_trace = asked.get("trace")
    if alone is None and own_trace is not None:
        timed, judged_ids = traced.traced(bench, Path(own_trace), cfg.seed, stages)
        tables += timed
    if alone in (None, LIVE):
        measured, judged_live = engine.live(bench, found, stages, chosen_on, asked, cfg.seed)
        tables += measured
    path = out / "rows.parquet"
    path.unlink(missing_ok=True)
    append(path, tables)
    rows = read(path)
    drawn = [
        *(m.ABOUT.figure for m in modules),
        *(PREFETCH if judged_in_time else []),
        *([engine.FIGURE] if judged_live else []),
    ]
    index = render(rows, out / "figures", drawn, ENDINGS[:1] if cfg.quick else ENDINGS)
    judged = [unpublished(document(m, rows, reasons[m.ABOUT.id], set(), index, out / "figures")) for m in modules]
    if judged_in_time:
        judged += records(judged_in_time, index, out / "figures", UNPUBLISHED)
    if judged_live:
        judged.append(engine.record(judged_live, index, out / "figures", UNPUBLISHED))
    refused = [f"{name} on {trace}: {why}" for trace, own in bench.refused.items() for name, why in own.items()]
    result = {
        "suite": "predictors",
        "figures": judged,
        "statuses": {f["id"]: f["status"] for f in judged},
        "families": families,
        "prefetching": judged_in_time,
        "live": judged_live,
        "traced": judged_ids,
        "refused": bench.refused,
        "synthetic": {},
        "limits": [
            SMALL,
            *missing,
            *([traced.ABSENT if own_trace is None else traced.LIMIT] if alone is None else []),
            *refused,
            *([QUICK] if cfg.quick else []),
        ],
        "rows": str(path),
        "row_count": len(rows),
        "report": str(out / "report.html"),
        "seconds": round(time.perf_counter() - began, 1),
    }
    write_manifest(out / "manifest.json", facts)
    write_atomic(out / "report.json", (json.dumps(result, indent=2, ensure_ascii=False, default=float) + "\n").encode())
    build_page(result, index, [m.subject for m in found], facts, out, title="Predictors of routed experts", how=HOW)
    stages.clear()
    return result


def unpublished(figure: dict[str, Any]) -> dict[str, Any]:
    """A figure that nobody published is neither reproduced nor untestable; one that is untestable says what it lacks."""
    for entry in figure["numbers"].values():
        if entry["status"] == NOT_TESTABLE and "why" not in entry:
            entry["lacks"] = LACKS
    if not figure["paper"].startswith("not published"):
        return figure
    for trace, entry in figure["numbers"].items():
        if "why" not in entry:
            entry.pop("lacks", None)
            entry["status"] = figure["by_trace"][trace] = UNPUBLISHED
    return figure | {"status": UNPUBLISHED if UNPUBLISHED in figure["by_trace"].values() else NOT_TESTABLE}


HOW = (
    "Every predictor with a config is fitted on the calibration half of a trace's documents and scored on the other half; "
    "intervals are 95 % cluster bootstraps over sequences.",
    "Reproduced: every shape the publication reports is there on each recorded trace, and its numbers within the stated "
    "tolerance on at least one. Shape only: the shapes are there, the numbers are not. Not reproduced: a shape does not hold. "
    "Nothing published: the figure is ours, with nothing to hold it against. The code decides, from the rows of this run.",
    "Published values are red open markers; they come from other models, text and machines.",
)
