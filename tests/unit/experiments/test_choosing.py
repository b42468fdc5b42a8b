"""Parameters chosen on calibration text: the best of a grid, and nothing scored is looked at."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from rgpu.errors import InputError
from rgpu.experiments.study import choosing
from rgpu.experiments.suites import predictors as suite
from rgpu.experiments.suites.predicting import choices
from rgpu.predictors.online_head import OnlineHead
from rgpu.predictors.similar_sequences import SimilarSequences
from rgpu.traces.split import origins, sharing, split
from rgpu.traces.storage import load_trace
from rgpu.traces.trace import Trace
from tests.predicting import learnable_trace


def test_the_best_of_each_parameter_given_those_before(monkeypatch: pytest.MonkeyPatch) -> None:
    worth = {("a", 1): 0.1, ("a", 2): 0.3, ("b", 1): 0.3, ("b", 2): 0.2}
    parts: list[tuple[Trace, Trace]] = []

    class Made:
        def __init__(self, **given: Any) -> None:
            self.given = given

        def fit(self, trace: Trace) -> "Made":
            self.trace = trace
            return self

    def scored(predictor: Made, held: Trace) -> float:
        parts.append((predictor.trace, held))
        return worth[predictor.given["kind"], predictor.given.get("depth", 1)]

    monkeypatch.setattr(choosing, "mean_recall", scored)
    trace = learnable_trace()
    kind, depth = choosing.choose(Made, {"kind": ("a", "b"), "depth": (1, 2)}, trace, repeats=2)
    assert (kind.picked, kind.recall) == ("b", (0.1, 0.3))
    assert (depth.picked, depth.recall) == (1, (0.3, 0.2))
    assert len(parts) == 8 and all(not sharing(held, origins(fitting)).any() for fitting, held in parts)
    assert kind.to_json()["tried"] == [{"value": "a", "recall": 0.1}, {"value": "b", "recall": 0.3}]
    with pytest.raises(InputError, match="sequences of one document; expected two"):
        choosing.choose(Made, {}, trace.select(np.array([0])))


def test_what_calibrates_is_scored_by_no_shipped_trace() -> None:
    part = choices.calibration_of(Path("assets/traces"))
    for name in ("reference", "reference_hidden"):
        trace = load_trace(Path("assets/traces") / f"{name}.safetensors", hidden=False)
        assert not sharing(part, origins(trace.select(split(trace).scored))).any()
    assert part.sequences == 32


def test_the_part_of_the_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = learnable_trace(sequences=8)
    monkeypatch.setattr(choices, "calibration_of", lambda folder: made)
    cfg = {"traces": "assets/traces", "shared": str(tmp_path), "out": str(tmp_path), "quick": True, "seed": 0}
    asked = {"only": "choices", "families": ["similar_sequences"]}
    found = suite.run(OmegaConf.create({**cfg, "predicting": asked}))
    assert set(found["choices"]) == {"reference"} and set(found["choices"]["reference"]) == {"similar_sequences"}
    told = {one["parameter"]: one for one in found["choices"]["reference"]["similar_sequences"]}
    for name, values in choosing.GRIDS["similar_sequences"].items():
        assert told[name]["picked"] in values and told[name]["default"] in values
    assert (tmp_path / "choices.json").exists()
    with pytest.raises(InputError, match="expected the shipped traces"):
        choices.run(OmegaConf.create({**cfg, "traces": str(tmp_path)}))


def test_yaml_and_constructor_have_one_default() -> None:
    for kind in (OnlineHead, SimilarSequences):
        cfg: Any = OmegaConf.load(choices.FOLDER / f"{kind.name}.yaml")
        assert {n: v for n, v in cfg.items() if n != "_target_"} == kind().params()
