"""Markov: which experts followed each of those just routed, some layers on and at the same layer of the next token.

Source: the expert transition tables of ST-MoE (arXiv 2606.15453); that ids alone carry little from layer to layer on some
models is a finding of others (ml-explore/mlx-lm issue 1588), which these tables let one check on a trace.
Legend: N rows, L MoE layers, H rows of a forecast, E experts, K top-k.
"""

from pathlib import Path

import numpy as np

from rgpu.predictors.popularity import popularity
from rgpu.predictors.ranges import check_number
from rgpu.predictors.routed import Parent, RoutedPredictor, conditional, real_rows, successors, summed
from rgpu.traces.trace import Trace
from rgpu.types import MoEShape


class Markov(RoutedPredictor):
    """P(expert at the target | expert here), mean over the K experts routed here; rows sum to K.

    `smoothing`: tokens' worth of popularity that each row of a table is shrunk by; null tables (never seen) are popularity.
    """

    name = "markov"

    def __init__(self, horizon: int = 4, smoothing: float = 8.0) -> None:
        super().__init__(horizon)
        self.smoothing = smoothing

    def _check_parameters(self) -> None:
        super()._check_parameters()
        check_smoothing(self.name, self.smoothing)

    def _fit(self, part: Trace, checkpoint: Path | None) -> dict[str, np.ndarray]:
        popular_LE = popularity(part)
        layers, experts = popular_LE.shape
        rows, (before, after) = real_rows(part), successors(part)
        chance_LHEE = np.zeros((layers, self.horizon + 1, experts + 1, experts), np.float32)
        for layer in range(layers):
            targets, ahead = self.targets(layer)
            for h, target in enumerate(targets):
                one, other = (before, after) if ahead[h] else (rows, rows)
                chance_LHEE[layer, h, :experts] = conditional(
                    part.expert_ids[one, layer], part.expert_ids[other, target], popular_LE[target], self.smoothing
                )
                chance_LHEE[layer, h, experts] = popular_LE[target]  # an expert that is not known
        return {"chance_LHEE": np.minimum(chance_LHEE, np.float32(1))}

    def _parents(self, layer: int) -> list[Parent]:
        return [(layer, 0)]

    def expected_bytes(self, shape: MoEShape) -> int | None:
        return 4 * shape.layers * (self.horizon + 1) * (shape.experts + 1) * shape.experts

    def work(self, layer: int) -> tuple[int, int] | None:
        """K rows of a table for each row of the forecast, added up and divided."""
        outputs = len(self.targets(layer)[0]) * self.schema_.experts
        return 4 * self.schema_.top_k * outputs, (self.schema_.top_k + 1) * outputs

    def _combine(self, layer: int, ids: list[np.ndarray]) -> np.ndarray:
        rows = len(self.targets(layer)[0])
        chance_HEE, (ids_NK,) = self.tensors_["chance_LHEE"][layer, :rows], ids
        total_NHE = np.stack([summed(chance_HEE[h], ids_NK) for h in range(rows)], axis=1)
        return total_NHE / np.float32(ids_NK.shape[1])


def check_smoothing(name: str, smoothing: float) -> None:
    check_number(name, "smoothing", smoothing, 0, above=True)
