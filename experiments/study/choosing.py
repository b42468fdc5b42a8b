"""Parameters chosen on calibration text alone: what is scored is never looked at.

The calibrating documents are divided again, a few times over; a candidate is fitted on one part and scored on the other.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rgpu.errors import InputError
from rgpu.replay.prediction import evaluate
from rgpu.replay.scores import over_layers
from rgpu.traces.split import held_apart, split
from rgpu.traces.trace import Trace

SHARE, REPEATS = 0.7, 5  # of the documents that a candidate is fitted on; times they are divided
Make = Callable[..., Any]  # overrides of parameters -> an unfitted predictor

GRIDS: dict[str, dict[str, tuple[Any, ...]]] = {  # what defaults are chosen from, one parameter after another
    "online_head": {"lr": (0.0, 0.01, 0.02, 0.05, 0.1, 0.2)},
    "similar_sequences": {
        "centred": (False, True),
        "neighbours": (1, 2, 4, 8),
        "smoothing": (8.0, 16.0, 32.0, 64.0, 128.0),
    },
}


@dataclass(frozen=True, slots=True)
class Choice:
    """`picked` of the values of a parameter. `recall` of each, in their order: mean over divisions and forecast rows."""

    parameter: str
    values: tuple[Any, ...]
    recall: tuple[float, ...]
    picked: Any

    def to_json(self) -> dict[str, Any]:
        tried = [{"value": v, "recall": round(r, 5)} for v, r in zip(self.values, self.recall, strict=True)]
        return {"parameter": self.parameter, "picked": self.picked, "tried": tried}


def choose(make: Make, grid: Mapping[str, Sequence[Any]], calibration: Trace, repeats: int = REPEATS) -> list[Choice]:
    """The best value of each parameter by recall at the router's own width, given those chosen before it; where two are
    equal the first. `calibration` must hold no scored sequence."""
    halves = []
    for seed in range(repeats):
        parts = split(calibration, SHARE, seed)
        if not len(parts.calibration) or not len(parts.scored):
            raise InputError(
                f"cannot choose parameters: got {calibration.sequences} sequences of one document; expected two documents "
                "or more; record more prompts"
            )
        halves.append((calibration.select(parts.calibration), calibration.select(parts.scored)))
        held_apart(*halves[-1], "choosing parameters")
    chosen: dict[str, Any] = {}
    found = []
    for name, values in grid.items():
        recalls = []
        for value in values:
            predictor = make(**chosen, **{name: value})
            told = [mean_recall(predictor.fit(fitting), held) for fitting, held in halves]
            recalls.append(sum(told) / len(told))
        chosen[name] = values[recalls.index(max(recalls))]
        found.append(Choice(name, tuple(values), tuple(recalls), chosen[name]))
    return found


def mean_recall(predictor: Any, held: Trace) -> float:
    """Recall at the router's own width, mean over the rows of a forecast, each pooled over layers."""
    rows = over_layers(evaluate(predictor, held, [held.header.top_k], predictor.horizon))
    own = [float(r["value"]) for r in rows if r["metric"] == "recall" and r["width"] == held.header.top_k]
    return sum(own) / len(own)
