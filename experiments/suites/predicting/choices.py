"""`predicting.only=choices`: the defaults of predictors that are no learner's own choice, chosen on calibration text alone."""

import json
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from rgpu.errors import InputError
from rgpu.experiments.study.choosing import GRIDS, choose
from rgpu.experiments.suites.predicting.fitting import FOLDER
from rgpu.experiments.suites.predicting.material import documents, shared_trace, without
from rgpu.results.provenance import write_atomic
from rgpu.traces.split import split
from rgpu.traces.storage import load_trace
from rgpu.traces.trace import Trace

NAME = "choices"


def calibration_of(folder: Path) -> Trace:
    """The calibration half of the reference trace, less every document that any shipped trace scores on."""
    whole, beside = (
        load_trace(folder / f"{name}.safetensors", hidden=False) for name in ("reference", "reference_hidden")
    )
    part = whole.select(split(whole).calibration)
    for trace in (whole, beside):
        part = without(part, documents(trace.select(split(trace).scored)))
    return part


def choices(name: str, calibration: Trace) -> list[dict[str, Any]]:
    """What is picked for each parameter of a predictor's grid, beside its default."""
    cfg: Any = OmegaConf.load(FOLDER / f"{name}.yaml")
    found = choose(lambda **changed: instantiate(cfg, **changed), GRIDS[name], calibration)
    return [choice.to_json() | {"default": cfg[choice.parameter]} for choice in found]


def run(cfg: DictConfig) -> dict[str, Any]:
    """Search on the reference trace, whose picks the defaults are; and on gpt-oss-20b, where it is there, to compare."""
    source = Path(cfg.traces)
    if not (source / "reference_hidden.safetensors").is_file():
        raise InputError(
            f"reproduce: got no {source}/reference_hidden.safetensors; expected the shipped traces; set traces"
        )
    texts = {"reference": calibration_of(source)}
    if (large := shared_trace(cfg)) is not None:
        texts["gpt-oss-20b"] = large.select(split(large).calibration)
    asked = (cfg.get("predicting") or {}).get("families")
    names = [name for name in GRIDS if asked is None or name in asked]
    found = {trace: {name: choices(name, text) for name in names} for trace, text in texts.items()}
    differs = [
        f"{name}.{one['parameter']}: default {one['default']}, picked {one['picked']}"
        for name, own in found["reference"].items()
        for one in own
        if one["picked"] != one["default"]
    ]
    report = Path(cfg.out) / "choices.json"
    result = {
        "suite": "predictors",
        "part": NAME,
        "choices": found,
        "calibration_sequences": {trace: text.sequences for trace, text in texts.items()},
        "differs": differs,
        "report": str(report),
    }
    report.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(report, (json.dumps(result, indent=1) + "\n").encode())
    return result
