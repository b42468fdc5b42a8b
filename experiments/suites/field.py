"""`rgpu reproduce suite=field`: figures that others published, recomputed on our traces, each with its status."""

import importlib
import json
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from rgpu.errors import InputError
from rgpu.experiments.plot import render
from rgpu.experiments.study.stages import Stages
from rgpu.experiments.suites.published import marks
from rgpu.experiments.suites.published.bench import Bench
from rgpu.experiments.suites.published.field_page import build_page
from rgpu.experiments.suites.published.judging import document
from rgpu.experiments.suites.published.record import NotTestableError
from rgpu.experiments.suites.published.subjects import Subject, recorded, synthetic
from rgpu.results.provenance import config_hash, manifest, stamp, write_atomic, write_manifest
from rgpu.results.rows import append, read
from rgpu.traces.synthetic import described

FIGURES = (
    "miss_gap",
    "granularity",
    "pass_order",
    "token_cycle",
    "hit_speed",
    "disk_staircase",
    "hot_transfer",
    "plain_predictors",
    "link_batch",
    "budget_handlers",
)
QUICK = "Quick form: few sequences, capacities and orders. Statuses are for looking, not for quoting."


def figures() -> list[Any]:
    """The modules that compute the figures, in reading order."""
    return [importlib.import_module(f"rgpu.experiments.suites.published.{name}") for name in FIGURES]


def compute(
    module: Any, bench: Bench, subjects: list[Subject], shared: Path, stages: Stages, bar: Any
) -> tuple[list[pa.Table], dict[str, str]]:
    """(rows of a figure on every subject, reasons by trace where it could not be tested); finished parts are kept."""
    tables, reasons = [], {}
    for subject in subjects:
        bar.set_postfix_str(f"{module.ABOUT.id}, {subject.name}")
        try:
            tables.append(
                stages.rows(f"{module.ABOUT.id}-{subject.name}", lambda: module.rows(bench, subject))  # noqa: B023
            )
        except NotTestableError as error:
            reasons[subject.name] = str(error)
        bar.update()
    if hasattr(module, "extra"):
        for own in module.extra(bench, shared).values():
            tables += own
    return tables, reasons


def gather(cfg: DictConfig) -> tuple[list[Subject], list[str]]:
    """(subjects, what is left out and why)."""
    traces, shared = Path(cfg.traces), Path(cfg.shared)
    if not (traces / "reference.safetensors").is_file():
        raise InputError(
            f"reproduce: got no trace reference.safetensors in {cfg.traces}; expected the shipped ones; run from the "
            "repository's root"
        )
    found, missing = recorded(traces, shared, cfg.quick)
    made, lacking = synthetic(shared, cfg.quick, cfg.seed)
    return [*found, *made], [*missing, *lacking]


def run(cfg: DictConfig) -> dict[str, Any]:
    began = time.perf_counter()
    out = Path(cfg.out)
    config = OmegaConf.to_container(cfg, resolve=True)
    facts = manifest(config)
    subjects, missing = gather(cfg)
    inputs = {s.name: s.whole.header.checksum or s.whole.checksum() for s in subjects}
    stages = Stages(out, config_hash({"config": config, "inputs": inputs, "commit": facts["commit"], "suite": 1}))
    bench = Bench(cfg.quick, cfg.seed, cfg.workers, stamp(config, seed=cfg.seed))
    modules = figures()
    tables: list[pa.Table] = []
    reasons: dict[str, dict[str, str]] = {}
    with tqdm(total=len(modules) * len(subjects), unit="part", disable=None) as bar:
        for module in modules:
            own, reasons[module.ABOUT.id] = compute(module, bench, subjects, Path(cfg.shared), stages, bar)
            tables += own
            for trace in sorted({name for t in own for name in t["trace"].to_pylist()}):
                tables += marks.value_rows(module.ABOUT.figure, module.ABOUT.id, trace, bench.provenance)
    path = out / "rows.parquet"
    path.unlink(missing_ok=True)
    append(path, tables)
    rows = read(path)
    index = render(rows, out / "figures", [m.ABOUT.figure for m in modules])
    known = {s.name for s in subjects if s.synthetic}
    judged = [document(m, rows, reasons[m.ABOUT.id], known, index, out / "figures") for m in modules]
    limits = [*missing, *([QUICK] if cfg.quick else [])]
    result = {
        "suite": "field",
        "figures": judged,
        "statuses": {f["id"]: f["status"] for f in judged},
        "synthetic": {s.name: described(s.fit, s.targets) for s in subjects if s.fit and s.targets},
        "limits": limits,
        "rows": str(path),
        "row_count": len(rows),
        "report": str(out / "report.html"),
        "seconds": round(time.perf_counter() - began, 1),
    }
    write_manifest(out / "manifest.json", facts)
    write_atomic(out / "report.json", (json.dumps(result, indent=2, ensure_ascii=False, default=float) + "\n").encode())
    build_page(result, index, subjects, facts, out)
    stages.clear()
    return result
