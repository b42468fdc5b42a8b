from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rgpu.errors import InputError
from rgpu.predictors import descent
from rgpu.predictors.gate_lookahead import GateLookahead
from rgpu.predictors.group_mlp import GroupMlp
from rgpu.predictors.hidden import threshold_chances
from rgpu.predictors.low_rank import LowRank
from rgpu.predictors.mlp import Mlp
from rgpu.predictors.probe import Probe, scaling
from rgpu.predictors.training_rows import HiddenRows
from rgpu.replay.prediction import evaluate
from rgpu.traces.split import split
from rgpu.traces.trace import Trace
from tests.predicting import HIDDEN, LAYERS, learnable_trace, write_checkpoint

PROBES = [LowRank, Mlp, GroupMlp]
every_probe = pytest.mark.parametrize("kind", PROBES)


def recall(predictor: Probe | GateLookahead, trace: Trace) -> float:
    rows = evaluate(predictor, trace)
    return float(np.mean([r["value"] for r in rows if (r["metric"], r["width"]) == ("recall", 2)]))


@every_probe
def test_numpy_does_what_torch_learnt(kind: Any) -> None:
    predictor = kind(epochs=2).fit(learnable_trace())
    x_NLD = np.random.default_rng(0).normal(size=(5, LAYERS, HIDDEN)).astype(np.float32)
    parameters = {name: torch.from_numpy(array) for name, array in predictor.tensors_.items()}
    theirs = predictor._learnt(parameters, torch.from_numpy(x_NLD).transpose(0, 1))
    for layer in range(LAYERS):
        rows_H = [*range(len(predictor.targets(layer)[0]) - 1), predictor.horizon]
        wanted = theirs[layer].view(5, predictor.horizon + 1, -1)[:, rows_H].reshape(5, -1)
        assert np.allclose(predictor._apply(layer, x_NLD[:, layer], rows_H), wanted.numpy(), atol=1e-5)


@every_probe
def test_learning_starts_at_gate_lookahead_and_gains(kind: Any, tmp_path: Path) -> None:
    trace, model = learnable_trace(sequences=16, tokens=60), str(write_checkpoint(tmp_path))
    parts = split(trace)
    held = trace.select(parts.scored)
    gate = GateLookahead(model).fit(trace)
    assert recall(kind(model=model, epochs=0).fit(trace, parts), held) == pytest.approx(recall(gate, held), abs=0.002)
    assert recall(kind(model=model).fit(trace, parts), held) > recall(gate, held) - 0.005
    assert recall(kind(lr=0.01).fit(trace, parts), held) > 0.5


@every_probe
def test_a_forecast_is_every_part_together(kind: Any, tmp_path: Path) -> None:
    """Spelt out from the tensors; the low-rank probe folds them into one map."""
    trace = learnable_trace()
    probe = kind(model=str(write_checkpoint(tmp_path)), epochs=2, horizon=2).fit(trace)
    own = probe.tensors_
    assert np.abs(own["out_LFM"]).max() > 0
    own["gain_LH"] += np.arange(3, dtype=np.float32) / 8
    hidden = trace.require("hidden", "test")[:7].astype(np.float32)
    for layer in range(LAYERS):
        targets = probe.targets(layer)[0]
        rows_H = [*range(len(targets) - 1), 2]
        x_ND = (hidden[:, layer] - own["mean_LD"][layer]) * own["inverse_LD"][layer]
        learnt_NHE = probe._apply(layer, x_ND, rows_H).reshape(7, len(rows_H), -1)
        routed_NHE = (
            np.einsum("nd,hed->nhe", hidden[:, layer], own["router_LED"][targets]) + own["router_bias_LE"][targets]
        )
        gain_H1, scale_H1 = (own[name][layer, rows_H][:, None] for name in ("gain_LH", "scale_LH"))
        wanted = threshold_chances((learnt_NHE + gain_H1 * routed_NHE) * scale_H1, probe.schema_.top_k)
        assert np.allclose(probe._score_hidden(layer, hidden[:, layer]), wanted, atol=1e-5)


@every_probe
def test_killed_probe_resumes(kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace, checkpoint = learnable_trace(), tmp_path / "state.safetensors"
    whole = kind(epochs=2, patience=9).fit(trace)
    keep = descent._keep

    def die(*state: Any) -> None:
        keep(*state)
        raise KeyboardInterrupt

    monkeypatch.setattr(descent, "_keep", die)
    with pytest.raises(KeyboardInterrupt):
        kind(epochs=2, patience=9).fit(trace, checkpoint=checkpoint)
    monkeypatch.setattr(descent, "_keep", keep)
    resumed = kind(epochs=2, patience=9).fit(trace, checkpoint=checkpoint)
    assert all(np.array_equal(whole.tensors_[n], resumed.tensors_[n]) for n in whole.tensors_)


def test_scaling_is_of_the_rows_that_train() -> None:
    hidden_NLD = np.random.default_rng(1).normal(2, 3, size=(3000, 2, 4)).astype(np.float32)
    found = scaling(HiddenRows(hidden_NLD), torch.arange(2500))
    assert np.allclose(found["mean_LD"], hidden_NLD[:2500].mean(0), atol=1e-4)
    assert np.allclose(found["inverse_LD"], 1 / hidden_NLD[:2500].std(0), rtol=1e-3)


@pytest.mark.parametrize(
    ("kind", "bad"), [(LowRank, {"rank": 0}), (Mlp, {"width": 0}), (GroupMlp, {"groups": 0}), (Mlp, {"optimiser": "x"})]
)
def test_bad_sizes(kind: Any, bad: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"got {next(iter(bad))}"):
        kind(**bad).fit(learnable_trace())
