"""Top-k planner: prefetch the most likely experts of the nearest layers.

Source: speculative loading of Eliseev and Mazur 2023 (arXiv 2312.17238, section 3.2), with the width as a parameter.
Legend: H rows of a forecast, L MoE layers, E experts.
"""

import numpy as np

from rgpu.contracts import Forecast
from rgpu.planning.rows import check, most_likely, nearest_rows
from rgpu.types import ExpertKey


class TopK:
    """The `width` most likely experts of each of the next `horizon` layers, with `next_token` of that row too."""

    def __init__(self, width: int, horizon: int = 1, next_token: bool = False) -> None:
        check("top_k", ("width", width, 1, np.inf), ("horizon", horizon, 0, np.inf))
        self.width, self.horizon, self.next_token = width, horizon, next_token

    def plan(self, forecast: Forecast, resident_LE: np.ndarray) -> list[ExpertKey]:
        """Loads in order: nearest layer first, next token last; within a row most likely first, ties by lowest id.

        Residents are dropped after the choice, so a row gives at most `width` loads and never reaches past its first
        `width` candidates; an expert of probability 0 is no candidate.
        """
        loads: list[ExpertKey] = []
        for row in nearest_rows(forecast, self.horizon, self.next_token):
            layer = int(forecast.layers[row])
            likely = most_likely(forecast.probs_HE[row])[: self.width]
            loads += [ExpertKey(layer, int(e)) for e in likely if not resident_LE[layer, e]]
        return loads
