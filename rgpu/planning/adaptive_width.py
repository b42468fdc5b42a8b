"""Adaptive width: how many experts are prefetched follows how many of the last ones were used.

Source: feedback-directed prefetching (Srinath et al., HPCA 2007), whose aggressiveness follows measured accuracy, applied
to the experts of each layer. It sees decisions and routing, never the clock: a load counts as used where the layer's next
event routes its expert. Legend: L MoE layers, E experts.
"""

import numpy as np

from rgpu.contracts import Forecast
from rgpu.planning.rows import check, most_likely, nearest_rows
from rgpu.types import ExpertKey, RoutingEvent


class AdaptiveWidth:
    """Begins with `start` experts for every layer; one more while the share used is above `high`, one fewer below `low`.

    The share is an average over the layer's events with loads, each of weight `rate`; the width stays from 1 to `width`.
    """

    def __init__(
        self, width: int = 8, start: int = 2, horizon: int = 1, next_token: bool = False, low: float = 0.4,
        high: float = 0.7, rate: float = 0.1,
    ) -> None:  # fmt: skip
        limits = (("width", width, 1, np.inf), ("start", start, 1, width), ("horizon", horizon, 0, np.inf))
        check("adaptive_width", *limits, ("high", high, 0, 1), ("low", low, 0, high), ("rate", rate, 0, 1))
        self.width, self.start, self.horizon, self.next_token = width, start, horizon, next_token
        self.low, self.high, self.rate = low, high, rate
        self.widths: dict[int, int] = {}  # of each layer that had loads
        self._used: dict[int, float] = {}
        self._asked: dict[int, set[int]] = {}

    def observe(self, event: RoutingEvent) -> None:
        """What was asked for this layer meets what it routes."""
        asked = self._asked.pop(event.layer, None)
        if not asked:
            return
        share = len(asked.intersection(event.experts_TK.ravel().tolist())) / len(asked)
        before = self._used.get(event.layer, (self.low + self.high) / 2)
        used = self._used[event.layer] = before + self.rate * (share - before)
        now = self.widths.get(event.layer, self.start)
        self.widths[event.layer] = min(self.width, now + 1) if used > self.high else max(1, now - (used < self.low))

    def plan(self, forecast: Forecast, resident_LE: np.ndarray) -> list[ExpertKey]:
        """Loads in order: nearest layer first, next token last; within a row most likely first, ties by lowest id."""
        loads: list[ExpertKey] = []
        for row in nearest_rows(forecast, self.horizon, self.next_token):
            layer, probs_E = int(forecast.layers[row]), forecast.probs_HE[row]
            wanted = most_likely(probs_E)[: self.widths.get(layer, self.start)]
            new = [int(e) for e in wanted if not resident_LE[layer, e]]
            self._asked.setdefault(layer, set()).update(new)
            loads += [ExpertKey(layer, e) for e in new]
        return loads
