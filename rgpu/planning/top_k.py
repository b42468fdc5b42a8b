"""Top-k planner: prefetch the most likely experts of the nearest layers.

Source: speculative loading of Eliseev and Mazur 2023 (arXiv 2312.17238, section 3.2), with the width as a parameter.
Legend: H rows of a forecast, L MoE layers, E experts.
"""

import numpy as np

from rgpu.contracts import Forecast
from rgpu.errors import InputError
from rgpu.types import ExpertKey


class TopK:
    """The `width` most likely experts of each of the next `horizon` layers, with `next_token` of that row too."""

    def __init__(self, width: int, horizon: int = 1, next_token: bool = False) -> None:
        for name, value, low in (("width", width, 1), ("horizon", horizon, 0)):
            if value < low:
                raise InputError(f"planner top_k: got {name} {value}; expected {low} or more; set planner.{name}")
        self.width, self.horizon, self.next_token = width, horizon, next_token

    def plan(self, forecast: Forecast, resident_LE: np.ndarray) -> list[ExpertKey]:
        """Loads in order: nearest layer first, next token last; within a row most likely first, ties by lowest id.

        Residents are dropped after the choice, so a row gives at most `width` loads and never reaches past its first
        `width` candidates; an expert of probability 0 is no candidate.
        """
        now = np.flatnonzero(forecast.tokens_ahead == 0)
        rows = now[np.argsort(forecast.layers[now], kind="stable")][: self.horizon].tolist()
        if self.next_token:
            rows += np.flatnonzero(forecast.tokens_ahead == 1).tolist()
        loads: list[ExpertKey] = []
        for row in rows:
            layer, probs_E = int(forecast.layers[row]), forecast.probs_HE[row]
            likely = np.argsort(-probs_E, kind="stable")[: self.width]
            loads += [ExpertKey(layer, int(e)) for e in likely if probs_E[e] > 0 and not resident_LE[layer, e]]
        return loads
