"""Threshold planner: prefetch whatever is likely enough, however many experts that are.

Source: the probability cut of multi-label predictors (MoE-Beyond, arXiv 2508.17137) in place of a fixed count. It says
something only for calibrated forecasts: at `threshold` p, every load is useful with a chance of at least p.
Legend: L MoE layers, E experts.
"""

import numpy as np

from rgpu.contracts import Forecast
from rgpu.planning.rows import check, most_likely, nearest_rows
from rgpu.types import ExpertKey


class Threshold:
    """Experts of probability `threshold` or more, at most `width` a row, in the next `horizon` layers."""

    def __init__(self, threshold: float = 0.5, width: int = 8, horizon: int = 1, next_token: bool = False) -> None:
        check("threshold", ("threshold", threshold, 0, 1), ("width", width, 1, np.inf), ("horizon", horizon, 0, np.inf))
        self.threshold, self.width, self.horizon, self.next_token = threshold, width, horizon, next_token

    def plan(self, forecast: Forecast, resident_LE: np.ndarray) -> list[ExpertKey]:
        """Loads in order: nearest layer first, next token last; within a row most likely first, ties by lowest id."""
        loads: list[ExpertKey] = []
        for row in nearest_rows(forecast, self.horizon, self.next_token):
            layer, probs_E = int(forecast.layers[row]), forecast.probs_HE[row]
            likely = most_likely(probs_E)
            wanted = likely[probs_E[likely] >= self.threshold][: self.width]
            loads += [ExpertKey(layer, int(e)) for e in wanted if not resident_LE[layer, e]]
        return loads
