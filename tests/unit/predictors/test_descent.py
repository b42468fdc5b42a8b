from dataclasses import replace
from typing import Any

import pytest
import torch

from rgpu.errors import InputError
from rgpu.predictors.descent import Parameters, Schedule, descend, whole


class Line:
    """Least squares of a slope; its score is one less the error."""

    def __init__(self) -> None:
        self.units, self.key = torch.arange(64), "line"
        self.x = torch.linspace(-1, 1, 64)

    def loss(self, parameters: Parameters, units_B: torch.Tensor) -> torch.Tensor:
        return ((parameters["slope"] * self.x[units_B] - 3 * self.x[units_B]) ** 2).mean()

    def score(self, parameters: Parameters) -> torch.Tensor:
        return 1 - (parameters["slope"].double() - 3).abs().reshape(1)

    merge = staticmethod(whole)


def run(**change: Any) -> tuple[Parameters, list[dict[str, Any]]]:
    schedule = replace(Schedule(epochs=30, batch=16, lr=0.2, patience=30), **change)
    return descend("line", {"slope": torch.zeros(())}, Line(), schedule, None)


@pytest.mark.parametrize("optimiser", ["adamw", "sgd"])
def test_both_optimisers_descend(optimiser: str) -> None:
    best, curve = run(optimiser=optimiser)
    assert abs(float(best["slope"]) - 3) < 0.1
    assert [row["epoch"] for row in curve] == list(range(31))
    assert curve[0]["loss"] is None and curve[-1]["loss"] < curve[1]["loss"]
    assert curve[-1]["best_recall"] == max(row["recall"] for row in curve)


def test_adam_is_that_of_torch() -> None:
    slope = torch.zeros((), requires_grad=True)
    theirs = torch.optim.AdamW([slope], lr=1.0, weight_decay=0.1)
    line = Line()
    for step in range(4):
        theirs.param_groups[0]["lr"] = 0.2 * (1 - 0.95 * step / 4)
        theirs.zero_grad()
        line.loss({"slope": slope}, line.units).backward()  # type: ignore[no-untyped-call]
        theirs.step()
    ours, _ = run(epochs=4, batch=64, decay=0.1)
    assert abs(float(ours["slope"]) - slope.item()) < 1e-5


def test_patience_ends_a_training_that_gains_nothing() -> None:
    best, curve = run(lr=1e-9, patience=2)
    assert len(curve) == 3 and abs(float(best["slope"])) < 1e-6


@pytest.mark.parametrize("bad", [{"optimiser": "lion"}, {"device": "cuda:99"}, {"patience": 0}, {"lr": 0.0}])
def test_bad_schedules(bad: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=f"predictor line: got {next(iter(bad))}"):
        replace(Schedule(), **bad).check("line")


def test_a_training_that_runs_away_says_so() -> None:
    with pytest.raises(InputError, match="predictor line: got a loss of (nan|inf) in epoch .*; lower predictor.lr"):
        run(optimiser="sgd", lr=100.0)
