"""Parameters chosen on calibration text: the best of a grid, and nothing scored is looked at."""

import itertools
import json
from dataclasses import replace
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
from rgpu.predictors.pre_attention import PreAttention
from rgpu.predictors.similar_sequences import SimilarSequences
from rgpu.traces.split import origins, sharing, split
from rgpu.traces.storage import load_trace
from rgpu.traces.trace import Trace
from tests.predicting import learnable_trace


def test_every_combination_is_tried_and_noise_leaves_the_simplest(monkeypatch: pytest.MonkeyPatch) -> None:
    worth = {("a", 1): 0.1, ("a", 2): 0.3, ("b", 1): 0.3, ("b", 2): 0.4}  # one after another would stop at (b, 1)
    parts: list[tuple[Trace, Trace]] = []

    class Made:
        def __init__(self, **given: Any) -> None:
            self.given = given

        def fit(self, trace: Trace) -> "Made":
            self.trace = trace
            return self

    def scored(predictor: Made, held: Trace) -> float:
        parts.append((predictor.trace, held))
        return worth[predictor.given["kind"], predictor.given["depth"]]

    monkeypatch.setattr(choosing, "mean_recall", scored)
    trace = learnable_trace()
    found = choosing.choose(Made, {"kind": ("a", "b"), "depth": (1, 2)}, trace, repeats=2)
    assert found.picked == {"kind": "b", "depth": 2}
    assert found.recall_CR.tolist() == [[w, w] for w in worth.values()]
    assert len(parts) == 8 and all(not sharing(held, origins(fitting)).any() for fitting, held in parts)
    told = found.to_json()
    assert told["best"] == told["picked"] and told["tried"][1]["values"] == {"kind": "a", "depth": 2}
    assert (told["tried"][1]["recall"], told["tried"][1]["behind"], told["tried"][1]["noise"]) == (0.3, 0.1, 0)
    with pytest.raises(InputError, match="sequences of one document; expected two"):
        choosing.choose(Made, {}, trace.select(np.array([0])))


def test_what_noise_cannot_tell_from_the_best() -> None:
    best = np.array([0.50, 0.54, 0.52, 0.51])
    steady, shaky, worse = best - 0.001, best - [-0.03, 0.03, 0.02, -0.01], best - 0.1
    recall = np.array([worse, steady, shaky, best])
    gap, noise = choosing.behind(recall)
    assert gap == pytest.approx([0.1, 0.001, 0.0025, 0])
    spread = np.var([-0.03, 0.03, 0.02, -0.01], ddof=1)
    assert noise == pytest.approx([0, 0, np.sqrt(spread * (1 / 4 + 0.3 / 0.7)), 0], abs=1e-12)
    assert choosing.first_as_good(recall) == 2
    assert choosing.first_as_good(recall[[3, 2]]) == 0 and choosing.first_as_good(recall[[0, 3]]) == 1


def test_what_calibrates_is_scored_by_no_shipped_trace() -> None:
    part = choices.calibration_of(Path("assets/traces"))
    for name in ("reference", "reference_hidden"):
        trace = load_trace(Path("assets/traces") / f"{name}.safetensors", hidden=False)
        assert not sharing(part, origins(trace.select(split(trace).scored))).any()
    assert part.sequences == 32


ROWS = Path("benchmarks/results/predictor_pages/choices.jsonl")
PAST = Path("benchmarks/results/forecast_past.jsonl")
CFG = {"traces": "assets/traces", "shared": "nowhere", "quick": True, "seed": 0}


def asked(folder: Path, *families: str, **more: Any) -> Any:
    given = {"only": "choices", "families": list(families) or None}
    return OmegaConf.create({**CFG, "out": str(folder), "predicting": given, **more})


def test_the_part_of_the_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = learnable_trace(sequences=8)
    monkeypatch.setattr(choices, "calibration_of", lambda folder: made)
    found = suite.run(asked(tmp_path, "similar_sequences", "popularity"))
    assert set(found["choices"]) == {"reference"} and set(found["choices"]["reference"]) == {"similar_sequences"}
    told = found["choices"]["reference"]["similar_sequences"]
    grid = choosing.GRIDS["similar_sequences"]
    assert len(told["tried"]) == np.prod([len(values) for values in grid.values()])
    assert told["default"] == choices.defaults("similar_sequences")
    assert all(told["picked"][name] in values for name, values in grid.items())
    assert (tmp_path / "choices.json").exists()
    with pytest.raises(InputError, match="expected the shipped traces"):
        suite.run(asked(tmp_path, traces=str(tmp_path)))


def test_todays_defaults_do_not_decide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The outcome of one search is not where the next one starts."""
    trace = learnable_trace(sequences=6)
    before = choices.choices("similar_sequences", trace, quick=True)
    cfg: Any = OmegaConf.load(choices.FOLDER / "similar_sequences.yaml")
    OmegaConf.save(
        {**cfg, "centred": not cfg.centred, "neighbours": 8, "smoothing": 32.0}, tmp_path / "similar_sequences.yaml"
    )
    monkeypatch.setattr(choices, "FOLDER", tmp_path)
    after = choices.choices("similar_sequences", trace, quick=True)
    assert np.array_equal(before.recall_CR, after.recall_CR) and before.picked == after.picked


def test_what_lacks_states_is_read_again_or_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = learnable_trace(sequences=4, tokens=8, logits=True)
    bare = replace(trace, hidden=None, pre_attention=None)
    monkeypatch.setattr(choices, "calibration_of", lambda folder: bare)
    found = suite.run(asked(tmp_path, "pre_attention"))
    assert (
        found["choices"] == {} and "needs the array 'pre_attention'" in found["refused"]["reference"]["pre_attention"]
    )
    monkeypatch.setattr(choices, "load_model", lambda model: (model, None))
    monkeypatch.setattr(choices, "read_again", lambda reader, part, name: trace)
    assert choices.with_states(bare, "model", tmp_path) is trace
    assert choices.with_states(trace, "model", tmp_path) is trace


def test_defaults_are_what_the_recorded_search_picks() -> None:
    """Every combination of today's grids, on today's calibration text, is in the rows; the yaml has what they pick."""
    rows = [json.loads(line) for line in ROWS.read_text().splitlines()]
    own = [row for row in rows if row["trace"] == "reference"]
    text = choices.calibration_of(Path("assets/traces"))
    assert {row["predictor"] for row in own} == set(choosing.GRIDS)
    for name, grid in choosing.GRIDS.items():
        tried = [row for row in own if row["predictor"] == name]
        assert [row["values"] for row in tried] == [
            dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())
        ]
        assert {row["text"] for row in tried} == {choices.text_of(text)}
        recall_CR = np.array([row["divisions"] for row in tried])
        assert recall_CR.shape[1] == choosing.REPEATS
        assert tried[choosing.first_as_good(recall_CR)]["values"] == choices.defaults(name), name


def test_a_recorded_row_is_what_is_measured() -> None:
    text = choices.calibration_of(Path("assets/traces"))
    rows = [json.loads(line) for line in ROWS.read_text().splitlines()]
    default = choices.defaults("similar_sequences")
    (row,) = (
        r for r in rows if (r["trace"], r["predictor"], r["values"]) == ("reference", "similar_sequences", default)
    )
    fitting, held = choosing.divided(text, 1)[0]
    assert choosing.mean_recall(SimilarSequences().fit(fitting), held) == pytest.approx(row["divisions"][0], abs=2e-6)


def test_which_chances_eviction_keeps_is_what_the_recorded_search_picks() -> None:
    """`Controller._forget` is what `dropped` stands for; the text that decided is today's calibration text."""
    rows = [json.loads(line) for line in PAST.read_text().splitlines()]
    assert [row["past"] for row in rows] == ["dropped", "kept"]
    assert {row["text"] for row in rows} == {choices.text_of(choices.calibration_of(Path("assets/traces")))}
    assert choosing.first_as_good(np.array([row["divisions"] for row in rows])) == 0


def test_yaml_and_constructor_have_one_default() -> None:
    for kind in (OnlineHead, SimilarSequences, PreAttention):
        cfg: Any = OmegaConf.load(choices.FOLDER / f"{kind.name}.yaml")
        other = {"model"} if "model" in cfg else set()  # the shipped one, which no constructor knows
        given = {n: v for n, v in cfg.items() if n not in {"_target_", *other}}
        assert given == {n: v for n, v in kind().params().items() if n not in other}
