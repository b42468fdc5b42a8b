"""Expected value: a load is made where the stall it is expected to save is worth more than what it is expected to cost.

Source: gap 7 of the field (nobody prefetches by "expected saved stall above link cost"); cost-benefit prefetching of
Patterson et al. (SOSP 1995, informed prefetching) is the model. It needs calibrated probabilities: with forecasts that are
too sure it loads too much. Legend: L MoE layers, E experts.
"""

from collections.abc import Sequence

import numpy as np

from rgpu.contracts import Forecast
from rgpu.planning.link_time import LinkTime
from rgpu.planning.rows import check, distances, most_likely
from rgpu.types import ExpertKey


class ExpectedValue:
    """Loads with p * hidden - (1 - p) * waste * copy - victim * copy above `least` copies, at most `width` a row.

    `hidden`: the part of the copy that fits between its turn in the estimated queue and its lead. `waste`: what a useless
    copy costs others, in copies (0: the link is idle anyway; 1: every byte delays another). `victim`: with `joint`, the
    chance in this forecast that the expert that has to go is wanted, one after another from the least likely resident of the
    layer; else 0. Nothing has to go while slots are free, which the controller's `told` lets it know; untold, pools are
    taken to be full. `joint_forecast` adds a little recency to those chances, which this leaves out: it may evict another
    resident of about the same chance. Times as in `Budgeted`.
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
        self._slots: Sequence[int] = ()
        self._pool_of = np.zeros(0, np.int64)

    def told(self, slots: Sequence[int], pool_of: np.ndarray) -> None:
        """Slots of each pool that keep experts, and the pool of each MoE layer."""
        self._slots, self._pool_of = slots, np.asarray(pool_of)

    def plan(self, forecast: Forecast, resident_LE: np.ndarray) -> list[ExpertKey]:
        """Loads in order: nearest layer first, next token last; within a row most likely first, ties by lowest id."""
        time = self.time
        queue = max(0.0, self._queue_s - time.event_s)
        loads: list[ExpertKey] = []
        free = self._free(resident_LE)
        for row, distance in distances(forecast, len(resident_LE), self.horizon, self.next_token):
            layer, probs_E = int(forecast.layers[row]), forecast.probs_HE[row]
            leaving = np.sort(probs_E[resident_LE[layer]]).tolist() if self.joint else []
            pool = int(self._pool_of[layer]) if free else -1  # -1: not known
            room = free.get(pool, 0)
            made = 0
            for expert in most_likely(probs_E)[: self.width].tolist():
                if resident_LE[layer, expert]:
                    continue
                chance = float(probs_E[expert])
                hidden = min(time.copy_s, time.lead_s(distance) - queue)
                victim = leaving[made - room] if 0 <= made - room < len(leaving) else 0.0
                value = chance * hidden - ((1 - chance) * self.waste + victim) * time.copy_s
                if hidden <= 0 or value <= self.least * time.copy_s:
                    break  # those behind are less likely, and what they would evict is not
                queue += time.copy_s
                made += 1
                loads.append(ExpertKey(layer, expert))
            if free:
                free[pool] = max(0, room - made)
        self._queue_s = queue
        return loads

    def _free(self, resident_LE: np.ndarray) -> dict[int, int]:
        """Free slots of each pool; nothing where that is not needed or not known."""
        if not self.joint or not len(self._slots):
            return {}
        used = np.bincount(self._pool_of, resident_LE.sum(1), len(self._slots)).astype(int)
        return {pool: max(0, slots - int(used[pool])) for pool, slots in enumerate(self._slots)}
