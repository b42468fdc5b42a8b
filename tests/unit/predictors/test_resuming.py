"""What a training state belongs to, and what of a killed training is taken up again."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rgpu.experiments.learning_curve import write_curve
from rgpu.predictors import descent
from rgpu.predictors.ensemble import Ensemble
from rgpu.predictors.history_gru import HistoryGru
from rgpu.predictors.history_transformer import HistoryTransformer
from rgpu.predictors.linear import Linear
from rgpu.predictors.mlp import Mlp
from rgpu.predictors.popularity import Popularity
from rgpu.traces.trace import Trace
from tests.predicting import learnable_trace


class Killed(Exception):
    pass


def killed_after(monkeypatch: pytest.MonkeyPatch, epoch: int, predictor: Any, trace: Trace, checkpoint: Path) -> None:
    """Fit until the state of `epoch` is written."""
    keep = descent._keep

    def keep_then_die(path: Path, key: str, state: Any, curve: list[Any], stale: int) -> None:
        keep(path, key, state, curve, stale)
        if curve[-1]["epoch"] == epoch:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(descent, "_keep", keep_then_die)
        with pytest.raises(Killed):
            predictor.fit(trace, checkpoint=checkpoint)


def epochs_run(monkeypatch: pytest.MonkeyPatch, predictor: Any, trace: Trace, checkpoint: Path) -> list[int]:
    """Epochs that fitting goes through: what it took up is missing."""
    epochs: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(descent, "_keep", lambda path, key, state, curve, stale: epochs.append(curve[-1]["epoch"]))
        predictor.fit(trace, checkpoint=checkpoint)
    return epochs


def other_hidden(trace: Trace, row: int) -> Trace:
    hidden = trace.require("hidden", "test").copy()
    hidden[row, -1] = -hidden[row, -1]
    return replace(trace, hidden=hidden)


def other_token(trace: Trace) -> Trace:
    tokens = trace.require("token_ids", "test").copy()
    first, second = np.flatnonzero(tokens != tokens[0])[0], 0
    tokens[[first, second]] = tokens[[second, first]]
    return replace(trace, token_ids=tokens)


def same(trace: Trace) -> Trace:
    return trace


GRU = {"size": 8, "epochs": 2, "patience": 9}
CASES: list[Any] = [
    (HistoryTransformer, {**GRU, "heads": 2}, {}, same, [2]),
    (HistoryTransformer, {**GRU, "heads": 2}, {"heads": 4}, same, [1, 2]),  # the same shapes
    (HistoryTransformer, {**GRU, "heads": 2}, {"validation": 0.3}, same, [1, 2]),
    (HistoryGru, {**GRU, "inputs": "hidden"}, {}, lambda t: other_hidden(t, 100), [1, 2]),
    (HistoryGru, {**GRU, "inputs": "tokens"}, {}, other_token, [1, 2]),
    (HistoryGru, {**GRU, "inputs": "routing"}, {}, lambda t: other_token(other_hidden(t, 100)), [2]),
    (Linear, {"epochs": 2, "patience": 9}, {}, same, [2]),
    (Linear, {"epochs": 2, "patience": 9}, {}, lambda t: other_hidden(t, 0), [1, 2]),
    (Mlp, {"epochs": 2, "patience": 9, "width": 4}, {}, lambda t: other_hidden(t, 0), [1, 2]),
]


@pytest.mark.parametrize(("kind", "settings", "change", "altered", "epochs"), CASES)
def test_a_state_is_taken_up_by_the_same_training_alone(
    kind: Any, settings: dict[str, Any], change: dict[str, Any], altered: Any, epochs: list[int],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    trace, checkpoint = learnable_trace(tokens=20), tmp_path / "state.safetensors"
    killed_after(monkeypatch, 1, kind(**settings), trace, checkpoint)
    assert epochs_run(monkeypatch, kind(**settings | change), altered(trace), checkpoint) == epochs


@pytest.mark.parametrize("kind", [HistoryGru, HistoryTransformer])
def test_killed_history_ends_in_the_same_parameters(kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace, checkpoint = learnable_trace(tokens=20), tmp_path / "state.safetensors"
    whole = kind(**GRU).fit(trace)
    killed_after(monkeypatch, 1, kind(**GRU), trace, checkpoint)
    resumed = kind(**GRU).fit(trace, checkpoint=checkpoint)
    assert [row["loss"] for row in whole.curve_] == [row["loss"] for row in resumed.curve_]
    assert all(np.array_equal(whole.tensors_[n], resumed.tensors_[n]) for n in whole.tensors_)


def test_members_of_an_ensemble_are_taken_up_and_show_their_curves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ensemble() -> Ensemble:
        return Ensemble([Linear(epochs=1), Popularity(), Mlp(epochs=2, patience=9, width=4)], horizon=1)

    trace, checkpoint = learnable_trace(tokens=20), tmp_path / "state.safetensors"
    whole = ensemble().fit(trace)
    assert [(row["member"], row["epoch"]) for row in whole.curve_] == [
        *(("0 linear", epoch) for epoch in range(2)),
        *(("2 mlp", epoch) for epoch in range(3)),
    ]
    killed_after(monkeypatch, 2, ensemble(), trace, checkpoint)  # in the second member that trains
    left = len(list(tmp_path.iterdir()))
    assert left == 2
    assert epochs_run(monkeypatch, ensemble(), trace, checkpoint) == [1, 1, 2]  # of the second stage alone
    killed_after(monkeypatch, 2, ensemble(), trace, checkpoint)
    resumed = ensemble().fit(trace, checkpoint=checkpoint)
    assert all(np.array_equal(whole.tensors_[n], resumed.tensors_[n]) for n in whole.tensors_)
    assert not list(tmp_path.iterdir())
    figures = write_curve(whole.curve_, whole.name, tmp_path / "p")
    assert len(figures) == 3
