"""What a planner that counts link time knows of a machine and a model: seconds, estimated and never read off a clock.

Between an event and the one `d` MoE layers later the device does d dense parts and the experts of the d - 1 layers between.
That is how long a load has before it is wanted. Demand copies take the link, but the event they are for waits as long, so
they neither give nor take free link time.
"""

from dataclasses import dataclass

import numpy as np

from rgpu.replay.timing.cost import ModelCost
from rgpu.replay.timing.machine import Machine


@dataclass(frozen=True, slots=True)
class LinkTime:
    """Seconds of one expert's copy, of a layer beside its routed experts (launch and read-back included), and of the routed
    experts of one token."""

    copy_s: float
    dense_s: float
    experts_s: float

    def lead_s(self, distance: int) -> float:
        """Until an event `distance` layers later wants its experts."""
        return distance * self.dense_s + (distance - 1) * self.experts_s

    @property
    def event_s(self) -> float:
        """One event that waits for nothing."""
        return self.dense_s + self.experts_s


def link_time(machine: Machine, cost: ModelCost, top_k: int, context: float = 0.0) -> LinkTime:
    """Means over the layers of a model with one token a pass and `context` tokens of keys and values, on a machine."""
    size = float(cost.expert_bytes.mean())
    near = np.where(cost.windowed, min(context, cost.window), context)
    nbytes = cost.dense_bytes + cost.kv_bytes * near
    nbytes[-1] -= cost.head_bytes  # the head comes after the layers, and no load waits for it within a pass
    flop = cost.dense_flop + cost.attention_flop * near
    dense = np.maximum(nbytes / machine.bytes_per_s, flop / machine.flop_per_s).mean()
    each = max(size / machine.bytes_per_s, float(cost.expert_flop.mean()) / machine.flop_per_s)
    return LinkTime(
        machine.link_latency_s + size / machine.link_rate,
        float(dense) + machine.launch_s + machine.sync_s,
        top_k * each,
    )
