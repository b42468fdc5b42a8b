import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from rgpu.errors import InputError
from rgpu.experiments.built import built
from rgpu.experiments.train import regime, train, unseen
from rgpu.predictors.base import load_predictor
from rgpu.predictors.linear import Linear
from rgpu.predictors.popularity import Popularity
from rgpu.traces.split import split
from rgpu.traces.trace import Trace, TraceHeader
from tests.predicting import learnable_trace


def teacher_forced(trace: Trace) -> Trace:
    return replace(trace, header=TraceHeader(**{**trace.header.to_json(), "on_policy": False}))


def test_curve_lies_beside_the_predictor(tmp_path: Path) -> None:
    trace = learnable_trace()
    train(Linear(epochs=2), trace, split(trace), tmp_path / "p")
    curve = json.loads((tmp_path / "p.curve.json").read_text())
    assert [row["epoch"] for row in curve["epochs"]] == [0, 1, 2]
    assert (tmp_path / "p.curve.svg").exists() and not (tmp_path / "p.training.safetensors").exists()
    train(Popularity(), trace, split(trace), tmp_path / "q")
    assert not (tmp_path / "q.curve.json").exists()


def test_how_the_text_came_about_is_told(tmp_path: Path) -> None:
    trace = teacher_forced(learnable_trace())
    assert regime(trace) == "teacher-forced" and regime(learnable_trace()) == "on-policy"
    fitted = Linear(epochs=0).fit(trace)
    fitted.save(tmp_path / "p")
    assert Linear.load(tmp_path / "p").schema_.on_policy is False


def test_another_trace_is_scored_without_documents_trained_on(tmp_path: Path) -> None:
    trace, other = learnable_trace(), learnable_trace(seed=1)
    parts = split(trace)
    left = unseen(trace, parts, other, "other")
    documents = {meta["document"] for meta in left.header.sequences}
    assert documents == {f"d{s}" for s in parts.scored}
    _, rows = train(Popularity(), trace, parts, tmp_path / "p", scored=left)
    assert len(rows[0]["denominators"]) == left.sequences
    with pytest.raises(InputError, match="documents that were trained on"):
        unseen(trace, parts, other.select(np.asarray(parts.calibration)), "other")


@pytest.mark.parametrize(
    ("told", "again"),
    [
        ({"document": ["d{s}"]}, {"document": ["d{s}", "extra {s}"]}),
        ({"dataset": "made", "row_index": "{s}"}, {"dataset": "made", "row_index": "{s}"}),
        ({}, {}),
    ],
)
def test_a_document_is_known_again_however_it_is_named(told: dict[str, Any], again: dict[str, Any]) -> None:
    trace = learnable_trace()
    other = learnable_trace(seed=1) if told else learnable_trace()  # without names, by its tokens
    for made, meta in ((trace, told), (other, again)):
        text = json.dumps(meta)
        made.header.sequences = [json.loads(text.replace("{s}", str(s))) for s in range(made.sequences)]
    parts = split(trace)
    left = unseen(trace, parts, other, "other")
    assert left.sequences == len(parts.scored) == 3
    assert np.array_equal(left.expert_ids, other.select(parts.scored).expert_ids)


def test_a_users_predictor_is_one_class_and_one_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "outside.py").write_text(
        'from rgpu.predictors.mlp import Mlp\n\n\nclass Outside(Mlp):\n    name = "outside"\n'
    )
    (tmp_path / "outside.yaml").write_text("_target_: outside.Outside\nwidth: 4\nepochs: 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    trace = learnable_trace()
    predictor = built(OmegaConf.load(tmp_path / "outside.yaml"), "predictor")  # type: ignore[arg-type]
    saved, _ = train(predictor, trace, split(trace), tmp_path / "saved")
    loaded = load_predictor(saved, expect=trace)
    assert (type(loaded).__name__, loaded.width, loaded.schema_.on_policy) == ("Outside", 4, True)
    assert len(json.loads((tmp_path / "saved.curve.json").read_text())["epochs"]) == 2
