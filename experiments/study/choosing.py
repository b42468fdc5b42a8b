"""Parameters chosen on calibration text alone: what is scored is never looked at.

The calibrating documents are divided again, a few times over; a candidate is fitted on one part and scored on the other.
Legend: C candidates, R divisions.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rgpu.errors import InputError
from rgpu.replay.prediction import evaluate
from rgpu.replay.scores import over_layers
from rgpu.traces.split import held_apart, split
from rgpu.traces.trace import Trace

SHARE, REPEATS = 0.7, 5  # of the documents that a candidate is fitted on; times they are divided
Make = Callable[..., Any]  # overrides of parameters -> an unfitted predictor

GRIDS: dict[str, dict[str, tuple[Any, ...]]] = {  # every combination is tried; of each the simplest value first
    "online_head": {"lr": (0.0, 0.01, 0.02, 0.05, 0.1, 0.2)},
    "similar_sequences": {"centred": (False, True), "neighbours": (1, 2, 4, 8), "smoothing": (128.0, 32.0, 8.0)},
    "pre_attention": {"loss": ("pairwise", "listwise"), "lr": (0.0001, 0.0005, 0.002, 0.02)},
}


@dataclass(frozen=True, slots=True)
class Choice:
    """`candidates`: values by parameter, in the grid's order. `recall_CR`: in each division, mean over forecast rows."""

    candidates: tuple[dict[str, Any], ...]
    recall_CR: np.ndarray

    @property
    def picked(self) -> dict[str, Any]:
        return self.candidates[first_as_good(self.recall_CR)]

    def to_json(self) -> dict[str, Any]:
        behind_C, noise_C = behind(self.recall_CR)
        tried = [
            {"values": values, "recall": round(float(own.mean()), 5), "behind": round(float(less), 5),
             "noise": round(float(noise), 5), "divisions": [round(float(r), 6) for r in own]}
            for values, own, less, noise in zip(self.candidates, self.recall_CR, behind_C, noise_C, strict=True)
        ]  # fmt: skip
        best = self.candidates[int(self.recall_CR.mean(1).argmax())]
        return {"picked": self.picked, "best": best, "tried": tried}


def choose(make: Make, grid: Mapping[str, Sequence[Any]], calibration: Trace, repeats: int = REPEATS) -> Choice:
    """Recall at the router's own width of every combination of the grid, fitted on one part of each division and scored on the
    other. Nothing is assumed of the parameters in the grid: `make` is given all of them. `calibration` must hold no scored
    sequence. Raises `InputError` where it cannot be divided, and what a fit raises."""
    halves = divided(calibration, repeats)
    candidates = tuple(dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values()))
    recall_CR = [[mean_recall(make(**own).fit(fitting), held) for fitting, held in halves] for own in candidates]
    return Choice(candidates, np.array(recall_CR))


def divided(calibration: Trace, repeats: int) -> list[tuple[Trace, Trace]]:
    """(fitted on, scored) of each division: no document is in both."""
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
    return halves


def behind(recall_CR: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(how far each is behind the best mean, standard error of that): float64 [C]. Differences are paired by division; as
    divisions share documents, their variance is corrected by the ratio of both parts (Nadeau and Bengio 2003)."""
    gap_CR = recall_CR[recall_CR.mean(1).argmax()] - recall_CR
    repeats = gap_CR.shape[1]
    spread_C = gap_CR.var(1, ddof=1) if repeats > 1 else np.zeros(len(gap_CR))
    return gap_CR.mean(1), np.sqrt(spread_C * (1 / repeats + (1 - SHARE) / SHARE))


def first_as_good(recall_CR: np.ndarray) -> int:
    """The first candidate that is no more than one standard error behind the best: where noise decides, the simplest."""
    behind_C, noise_C = behind(recall_CR)
    return int(np.flatnonzero(behind_C <= noise_C)[0])


def mean_recall(predictor: Any, held: Trace) -> float:
    """Recall at the router's own width, mean over the rows of a forecast, each pooled over layers."""
    rows = over_layers(evaluate(predictor, held, [held.header.top_k], predictor.horizon))
    own = [float(r["value"]) for r in rows if r["metric"] == "recall" and r["width"] == held.header.top_k]
    return sum(own) / len(own)
