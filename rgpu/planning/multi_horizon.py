"""Multi-horizon planner: one list over several layers ahead, the nearest and most certain first.

Source: the prefetch priority of MoE-Infinity (arXiv 2401.14361), which weighs the chance that an expert is used with how
near its layer is. Here a chance loses the factor `decay` with every layer, so that a sure expert three layers ahead can
go before a doubtful one in the next. Legend: L MoE layers, E experts.
"""

import numpy as np

from rgpu.contracts import Forecast
from rgpu.planning.rows import check, most_likely, nearest_rows
from rgpu.types import ExpertKey


class MultiHorizon:
    """At most `width` loads an event over the next `horizon` layers, by probability x decay^(layers between).

    A priority below `floor` is not loaded. With `next_token` its row comes as if right behind the last layer.
    """

    def __init__(
        self, width: int = 6, horizon: int = 3, decay: float = 0.7, floor: float = 0.2, next_token: bool = False
    ) -> None:
        limits = (("width", width, 1, np.inf), ("horizon", horizon, 0, np.inf), ("decay", decay, 0, 1))
        check("multi_horizon", *limits, ("floor", floor, 0, 1))
        self.width, self.horizon, self.decay, self.floor, self.next_token = width, horizon, decay, floor, next_token

    def plan(self, forecast: Forecast, resident_LE: np.ndarray) -> list[ExpertKey]:
        """Loads in order of priority, ties: nearest layer, then lowest id."""
        ranked: list[tuple[float, int, int, int]] = []
        for place, row in enumerate(nearest_rows(forecast, self.horizon, self.next_token)):
            layer, probs_E = int(forecast.layers[row]), forecast.probs_HE[row]
            discount = self.decay**place
            for expert in most_likely(probs_E)[: self.width + int(resident_LE[layer].sum())].tolist():
                priority = float(probs_E[expert]) * discount
                if priority >= self.floor and priority > 0 and not resident_LE[layer, expert]:
                    ranked.append((-priority, place, expert, layer))
        return [ExpertKey(layer, expert) for _, _, expert, layer in sorted(ranked)[: self.width]]
