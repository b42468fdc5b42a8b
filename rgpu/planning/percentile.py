"""Percentile planner: widen the prefetched set to every expert above a percentile of the row's confidences.

Source: the widened prefetch of Fate (arXiv 2502.12224), which raises the share of routed experts covered from 78.8 to
97.2 % there by taking experts above a confidence percentile instead of the top-k. Our reading: the percentile is that of
the row's own probabilities, so a row gives about (100 - percentile) % of the experts, more where they tie at the cut.
Legend: L MoE layers, E experts.
"""

import numpy as np

from rgpu.contracts import Forecast
from rgpu.planning.rows import check, most_likely, nearest_rows
from rgpu.types import ExpertKey


class Percentile:
    """Experts at or above the `percentile` of their row, at most `width` a row, in the next `horizon` layers."""

    def __init__(self, percentile: float = 75.0, width: int = 16, horizon: int = 1, next_token: bool = False) -> None:
        limits = (("percentile", percentile, 0, 100), ("width", width, 1, np.inf), ("horizon", horizon, 0, np.inf))
        check("percentile", *limits)
        self.percentile, self.width, self.horizon, self.next_token = percentile, width, horizon, next_token

    def plan(self, forecast: Forecast, resident_LE: np.ndarray) -> list[ExpertKey]:
        """Loads in order: nearest layer first, next token last; within a row most likely first, ties by lowest id."""
        loads: list[ExpertKey] = []
        for row in nearest_rows(forecast, self.horizon, self.next_token):
            layer, probs_E = int(forecast.layers[row]), forecast.probs_HE[row]
            # the value of rank ceil(q E): no interpolation, so that the cut is a probability of the row itself
            rank = min(len(probs_E) - 1, int(np.ceil(self.percentile / 100 * len(probs_E))))
            likely = most_likely(probs_E)
            wanted = likely[probs_E[likely] >= np.sort(probs_E)[rank]][: self.width]
            loads += [ExpertKey(layer, int(e)) for e in wanted if not resident_LE[layer, e]]
        return loads
