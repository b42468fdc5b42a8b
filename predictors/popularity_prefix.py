"""Popularity of the prefix: how often this sequence used each expert so far, prompt included, shrunk to what all sequences did.

Source: hot lists learnt from the prompt, as profile-guided pinning does online; the activation counts of a sequence of
MoE-Infinity (arXiv 2401.14361). Legend: P passes, L MoE layers, H rows of a forecast, E experts.
"""

from pathlib import Path

import numpy as np

from rgpu.predictors.popularity import popularity
from rgpu.predictors.ranges import check_number
from rgpu.predictors.routed import known_or_last, member_chunks, pass_of, real_rows, sequence_of
from rgpu.predictors.running import RunningPredictor, before_pass
from rgpu.predictors.stacking import EDGE
from rgpu.traces.trace import Trace
from rgpu.types import MoEShape

STRENGTHS = (4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0)
ROWS = 4096  # calibration tokens that choose among them


class PopularityPrefix(RunningPredictor):
    """(uses so far + `strength` * popularity) / (tokens so far + `strength`), for each layer.

    `strength`: tokens that the calibrated popularity counts for; null: of `STRENGTHS`, whichever has the least log-loss on
    calibration sequences.
    """

    name = "popularity_prefix"

    def __init__(self, horizon: int = 4, strength: float | None = None) -> None:
        super().__init__(horizon)
        self.strength = strength

    def _check_parameters(self) -> None:
        super()._check_parameters()
        if self.strength is not None:
            check_number(self.name, "strength", self.strength, 0, 1e12, above=True)

    def _fit(self, part: Trace, checkpoint: Path | None) -> dict[str, np.ndarray]:
        popular_LE = popularity(part)
        strength = _strength(part, popular_LE) if self.strength is None else self.strength
        return {"popularity_LE": popular_LE, "strength": np.full(1, strength, np.float32)}

    def reset(self) -> None:
        super().reset()
        if hasattr(self, "schema_"):
            self._uses_LE = np.zeros((self.schema_.layers, self.schema_.experts + 1), np.int64)
            self._tokens_L = np.zeros(self.schema_.layers, np.int64)

    def _add(self, layer: int, ids_TK: np.ndarray) -> None:
        self._uses_LE[layer] += np.bincount(ids_TK.ravel(), minlength=self.schema_.experts + 1)
        self._tokens_L[layer] += len(ids_TK)

    def expected_bytes(self, shape: MoEShape) -> int | None:
        return 4 * (shape.layers * shape.experts + 1)

    def _score(self, layer: int) -> np.ndarray:
        layers, _ = self.targets(layer)
        rows = [
            self._forecast(int(t), self._uses_LE[t][None, : self.schema_.experts], self._tokens_L[t][None])
            for t in layers
        ]
        return np.stack(rows, axis=1)[: self._rows]

    def predict_trace(self, trace: Trace, layer: int, rows_P: np.ndarray, first_P: np.ndarray) -> np.ndarray:
        self.check(trace)
        experts = self.schema_.experts
        layers, _ = self.targets(layer)
        probs_PHE = np.empty((len(rows_P), len(layers), experts), np.float32)
        rows, at = pass_of(trace, rows_P)
        tokens_P = np.bincount(at, minlength=len(rows_P))
        for h, target in enumerate(layers):
            ids_NK = known_or_last(trace.expert_ids[rows, target], experts)
            code = (at[:, None] * (experts + 1) + ids_NK).ravel()
            uses_PE = np.bincount(code, minlength=len(rows_P) * (experts + 1)).reshape(-1, experts + 1)[:, :experts]
            here = target == layer  # this pass has shown it already
            seen_PE, seen_P = (before_pass(made, first_P) + (made if here else 0) for made in (uses_PE, tokens_P))
            probs_PHE[:, h] = self._forecast(int(target), seen_PE, seen_P)
        return probs_PHE

    def _forecast(self, layer: int, uses_PE: np.ndarray, tokens_P: np.ndarray) -> np.ndarray:
        """float32 [P, E]."""
        strength = self.tensors_["strength"][0]
        prior_E = strength * self.tensors_["popularity_LE"][layer]
        return (uses_PE.astype(np.float32) + prior_E) / (tokens_P.astype(np.float32) + strength)[:, None]

    def work(self, layer: int) -> tuple[int, int] | None:
        """Counts and popularity of each row of the forecast; a product, a sum and a quotient."""
        outputs = len(self.targets(layer)[0]) * self.schema_.experts
        return 12 * outputs, 3 * outputs


def _strength(part: Trace, popular_LE: np.ndarray) -> float:
    """Of `STRENGTHS` the one with the least log-loss where each token is forecast from those before it."""
    rows = real_rows(part)
    rows = rows[: max(ROWS, 1)]
    sequence = sequence_of(part, rows)
    first = np.r_[True, sequence[1:] != sequence[:-1]]
    seen = before_pass(np.ones(len(rows), np.int64), first)
    loss = np.zeros(len(STRENGTHS))
    for layer, popular_E in enumerate(popular_LE):
        member = np.concatenate([m for _, m in member_chunks(part.expert_ids[rows, layer], len(popular_E))])
        uses = before_pass(member.astype(np.int64), first)
        for i, strength in enumerate(STRENGTHS):
            p = np.clip((uses + strength * popular_E) / (seen + strength)[:, None], EDGE, 1 - EDGE)
            loss[i] -= float(np.mean(np.where(member > 0, np.log(p), np.log1p(-p))))
    return STRENGTHS[int(np.argmin(loss))]
