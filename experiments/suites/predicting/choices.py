"""`predicting.only=choices`: the defaults of predictors that are no learner's own choice, chosen on calibration text alone."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from rgpu.errors import InputError, TraceError
from rgpu.experiments.loading import load_model
from rgpu.experiments.study.choosing import GRIDS, REPEATS, Choice, choose
from rgpu.experiments.suites.predicting.fitting import FOLDER, QUICK
from rgpu.experiments.suites.predicting.material import (
    Reader,
    documents,
    read_again,
    same_routing,
    shared_trace,
    without,
)
from rgpu.results.provenance import stamp, write_atomic
from rgpu.traces.split import split
from rgpu.traces.storage import load_trace
from rgpu.traces.trace import Trace

NAME = "choices"
QUICK_REPEATS = 2
STATES = ("pre_attention",)  # read what the shipped reference trace lacks


def calibration_of(folder: Path) -> Trace:
    """The calibration half of the reference trace, less every document that any shipped trace scores on."""
    whole, beside = (
        load_trace(folder / f"{name}.safetensors", hidden=False) for name in ("reference", "reference_hidden")
    )
    part = whole.select(split(whole).calibration)
    for trace in (whole, beside):
        part = without(part, documents(trace.select(split(trace).scored)))
    return part


def with_states(part: Trace, model: str, folder: Path) -> Trace:
    """The same sequences with hidden states, states before attention and router logits, which the shipped trace lacks: read
    again by the model that wrote them."""
    if part.pre_attention is not None:
        return part
    torch.set_num_threads(1)  # small matrices: a second thread costs more than it gives
    folder.mkdir(parents=True, exist_ok=True)
    read = read_again(Reader(*load_model(model), folder), part, NAME)
    same_routing(read, part)
    return read


def choices(name: str, calibration: Trace, model: str = "", quick: bool = False) -> Choice:
    """How each combination of a predictor's grid does on calibration text. Of its yaml only what is not in the grid is used."""
    cfg: Any = OmegaConf.load(FOLDER / f"{name}.yaml")
    fixed = ({"model": model or None} if "model" in cfg else {}) | {
        k: v for k, v in QUICK.items() if quick and k in cfg
    }
    return choose(
        lambda **changed: instantiate(cfg, **fixed, **changed),
        GRIDS[name], calibration, QUICK_REPEATS if quick else REPEATS,
    )  # fmt: skip


def text_of(part: Trace) -> str:
    """What a search was made on: a hash of the tokens, or of the routing where there are none."""
    content = part.expert_ids if part.token_ids is None else part.token_ids
    return hashlib.sha256(np.ascontiguousarray(content).data).hexdigest()[:16]


def rows_of(found: Mapping[str, Mapping[str, Any]], texts: Mapping[str, Trace]) -> list[dict[str, Any]]:
    """A row a candidate: the trace, what was tried, recall in each division."""
    return [
        {"trace": trace, "text": text_of(texts[trace]), "sequences": texts[trace].sequences, "predictor": name, **tried,
         "picked": tried["values"] == one["picked"]}
        for trace, own in found.items() for name, one in own.items() for tried in one["tried"]
    ]  # fmt: skip


def defaults(name: str) -> dict[str, Any]:
    """Values that the yaml of a predictor has for the parameters of its grid."""
    cfg: Any = OmegaConf.load(FOLDER / f"{name}.yaml")
    return {parameter: cfg[parameter] for parameter in GRIDS[name]}


def run(cfg: DictConfig, families: Sequence[str] = tuple(GRIDS)) -> dict[str, Any]:
    """Search on the reference trace, whose picks the defaults are; and on gpt-oss-20b, where it is there, to compare."""
    source, out = Path(cfg.traces), Path(cfg.out)
    if not (source / "reference_hidden.safetensors").is_file():
        raise InputError(
            f"reproduce: got no {source}/reference_hidden.safetensors; expected the shipped traces; set traces"
        )
    names = [name for name in GRIDS if name in families]
    texts = {"reference": calibration_of(source)}
    if (large := shared_trace(cfg)) is not None:
        texts["gpt-oss-20b"] = large.select(split(large).calibration)
    found: dict[str, dict[str, Any]] = {}
    refused: dict[str, dict[str, str]] = {}
    for trace, text in texts.items():
        model = str(cfg.get("model") or "") if trace == "reference" else ""
        for name in names:
            own = with_states(text, model, out / "traces") if model and name in STATES else text
            try:
                chosen = choices(name, own, model, bool(cfg.quick))
            except TraceError as error:  # the trace lacks what it reads
                refused.setdefault(trace, {})[name] = str(error)
            else:
                found.setdefault(trace, {})[name] = chosen.to_json() | {"default": defaults(name)}
    differs = [
        f"{name}.{parameter}: default {own['default'][parameter]}, picked {value}"
        for name, own in found.get("reference", {}).items()
        for parameter, value in own["picked"].items()
        if value != own["default"][parameter]
    ]
    report, rows = out / "choices.json", out / "choices.jsonl"
    result = {
        "suite": "predictors",
        "part": NAME,
        "choices": found,
        "refused": refused,
        "calibration_sequences": {trace: text.sequences for trace, text in texts.items()},
        "differs": differs,
        "rows": str(rows),
        "report": str(report),
    }
    report.parent.mkdir(parents=True, exist_ok=True)
    made = stamp(OmegaConf.to_container(cfg, resolve=True), seed=cfg.seed)
    lines = [json.dumps(row | {"date": made["date"][:10], "commit": made["commit"]}) for row in rows_of(found, texts)]
    write_atomic(rows, ("\n".join(lines) + "\n").encode())
    write_atomic(report, (json.dumps(result, indent=1) + "\n").encode())
    return result
