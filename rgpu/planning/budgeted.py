"""Budgeted planner: as many experts as the link can carry before they are wanted, and no more.

Source: the field's negative results, where prefetch with a full link made runs slower (BigMoeOnEdge's measurements), and
the limit that follows: prefetch hides at most the compute time of its lead. Decisions rest on estimated seconds
(`link_time`), so they repeat bit for bit: no clock is read. Legend: L MoE layers, E experts.
"""

import numpy as np

from rgpu.contracts import Forecast
from rgpu.planning.link_time import LinkTime
from rgpu.planning.rows import check, distances, most_likely
from rgpu.types import ExpertKey


class Budgeted:
    """Most likely experts of the next `horizon` layers while the link's queue leaves time for them.

    `copy_us` an expert's copy, `dense_us` a layer beside its routed experts, `experts_us` the routed ones of one token (see
    `link_time` for a machine and model). Its own queue is estimated: each event works off dense and expert time of it.
    `begun`: also the load that begins before it is wanted but lands after, which hides a part of its copy. At most `width`
    candidates a row.
    """

    def __init__(
        self, copy_us: float = 124.0, dense_us: float = 95.0, experts_us: float = 24.0, width: int = 8, horizon: int = 3,
        next_token: bool = False, begun: bool = True,
    ) -> None:  # fmt: skip
        limits = (("copy_us", copy_us, 1e-3, np.inf), ("dense_us", dense_us, 0, np.inf))
        check("budgeted", *limits, ("experts_us", experts_us, 0, np.inf), ("width", width, 1, np.inf),
              ("horizon", horizon, 0, np.inf))  # fmt: skip
        self.time = LinkTime(copy_us / 1e6, dense_us / 1e6, experts_us / 1e6)
        self.width, self.horizon, self.next_token, self.begun = width, horizon, next_token, begun
        self._queue_s = 0.0

    def plan(self, forecast: Forecast, resident_LE: np.ndarray) -> list[ExpertKey]:
        """Loads in order: nearest layer first, next token last; within a row most likely first, ties by lowest id."""
        time = self.time
        queue = max(0.0, self._queue_s - time.event_s)
        loads: list[ExpertKey] = []
        for row, distance in distances(forecast, len(resident_LE), self.horizon, self.next_token):
            layer = int(forecast.layers[row])
            for expert in most_likely(forecast.probs_HE[row])[: self.width].tolist():
                if resident_LE[layer, expert]:
                    continue
                if queue + (0.0 if self.begun else time.copy_s) >= time.lead_s(distance) + (
                    0.0 if self.begun else 1e-12
                ):
                    break
                queue += time.copy_s
                loads.append(ExpertKey(layer, expert))
        self._queue_s = queue
        return loads
