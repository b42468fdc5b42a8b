"""Popularity: the share of calibration tokens that used each expert, whatever the context.

Source: static hot lists of Fiddler (Kamahori et al. 2024, arXiv 2402.07033, section 3.3) and of llama.cpp's
profile-guided pinning. The baseline every other predictor has to beat.
"""

from pathlib import Path

import numpy as np

from rgpu.predictors.base import BasePredictor, speaking_rows
from rgpu.traces.trace import PADDING, Trace
from rgpu.types import MoEShape, RoutingEvent


def popularity(trace: Trace) -> np.ndarray:
    """float32 [L, E]: share of real tokens whose top-k held the expert; rows sum to K where every id was recorded."""
    ids_NLK = trace.expert_ids if trace.phase is None else trace.expert_ids[trace.phase != PADDING]
    experts = trace.header.num_experts
    counts_LE = np.empty((trace.layers, experts), np.int64)
    for layer in range(trace.layers):
        ids = ids_NLK[:, layer].ravel()
        counts_LE[layer] = np.bincount(ids[ids < experts], minlength=experts)
    recorded_L = (ids_NLK < experts).any(2).sum(0)
    return (counts_LE / np.maximum(1, recorded_L)[:, None]).astype(np.float32)


class Popularity(BasePredictor):
    """Same forecast after every event: `popularity` of the calibration tokens."""

    name = "popularity"

    def _fit(self, part: Trace, checkpoint: Path | None) -> dict[str, np.ndarray]:
        return {"popularity_LE": popularity(part)}

    def observe(self, event: RoutingEvent) -> None:
        super().observe(event)
        self._rows = len(speaking_rows(event.phase_T, len(event.experts_TK)))

    def work(self, layer: int) -> tuple[int, int] | None:
        """One row of a table for each row of the forecast."""
        return 4 * len(self.targets(layer)[0]) * self.schema_.experts, 0

    def expected_bytes(self, shape: MoEShape) -> int | None:
        return 4 * shape.layers * shape.experts

    def _score(self, layer: int) -> np.ndarray:
        layers, _ = self.targets(layer)
        return np.repeat(self.tensors_["popularity_LE"][layers][None], min(1, self._rows), axis=0)

    def predict_trace(self, trace: Trace, layer: int, rows_P: np.ndarray, first_P: np.ndarray) -> np.ndarray:
        self.check(trace)
        layers, _ = self.targets(layer)
        return np.repeat(self.tensors_["popularity_LE"][layers][None], len(rows_P), axis=0)
