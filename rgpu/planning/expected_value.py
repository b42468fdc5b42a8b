"""Expected value: a load is made where the stall it is expected to save is worth more than what it is expected to cost.

Source: gap 7 of the field (nobody prefetches by "expected saved stall above link cost"); cost-benefit prefetching of
Patterson et al. (SOSP 1995, informed prefetching) is the model. It needs calibrated probabilities: with forecasts that are
too sure it loads too much. Legend: L MoE layers, E experts.
"""

import numpy as np

from rgpu.contracts import Forecast
from rgpu.planning.link_time import LinkTime
from rgpu.planning.rows import check, distances, most_likely
from rgpu.types import ExpertKey


class ExpectedValue:
    """Loads with p * hidden - (1 - p) * waste * copy - victim * copy above `least` copies, at most `width` a row.

    `hidden`: the part of the copy that fits between its turn in the estimated queue and its lead. `waste`: what a useless
    copy costs others, in copies (0: the link is idle anyway; 1: every byte delays another). `victim`: with `joint`, the
    chance in this forecast that the expert that has to go is wanted, one after another from the least likely resident: what
    an eviction by the same forecast will choose; else 0. Times as in `Budgeted`.
    """

    def __init__(
        self, copy_us: float = 124.0, dense_us: float = 95.0, experts_us: float = 24.0, width: int = 8, horizon: int = 3,
        next_token: bool = False, waste: float = 0.25, joint: bool = False, least: float = 0.0,
    ) -> None:  # fmt: skip
        limits = (("copy_us", copy_us, 1e-3, np.inf), ("dense_us", dense_us, 0, np.inf))
        check("expected_value", *limits, ("experts_us", experts_us, 0, np.inf), ("width", width, 1, np.inf),
              ("horizon", horizon, 0, np.inf), ("waste", waste, 0, 1), ("least", least, 0, 1))  # fmt: skip
        self.time = LinkTime(copy_us / 1e6, dense_us / 1e6, experts_us / 1e6)
        self.width, self.horizon, self.next_token = width, horizon, next_token
        self.waste, self.joint, self.least = waste, joint, least
        self._queue_s = 0.0

    def plan(self, forecast: Forecast, resident_LE: np.ndarray) -> list[ExpertKey]:
        """Loads in order: nearest layer first, next token last; within a row most likely first, ties by lowest id."""
        time = self.time
        queue = max(0.0, self._queue_s - time.event_s)
        loads: list[ExpertKey] = []
        for row, distance in distances(forecast, len(resident_LE), self.horizon, self.next_token):
            layer, probs_E = int(forecast.layers[row]), forecast.probs_HE[row]
            leaving = np.sort(probs_E[resident_LE[layer]]).tolist() if self.joint else []
            made = 0
            for expert in most_likely(probs_E)[: self.width].tolist():
                if resident_LE[layer, expert]:
                    continue
                chance = float(probs_E[expert])
                hidden = min(time.copy_s, time.lead_s(distance) - queue)
                victim = leaving[made] if made < len(leaving) else 0.0
                value = chance * hidden - ((1 - chance) * self.waste + victim) * time.copy_s
                if hidden <= 0 or value <= self.least * time.copy_s:
                    break  # those behind are less likely, and what they would evict is not
                queue += time.copy_s
                made += 1
                loads.append(ExpertKey(layer, expert))
        self._queue_s = queue
        return loads
