"""A lower bound in seconds: no schedule of any policy, prefetcher or miss handler is faster on the machine.

Every schedule must serve at least the misses of bypass-Belady (`miss_bytes`), x bytes of them over the link and m computed
where they lie, x + m >= M. Each resource must have the time for its part, whatever overlaps:
    T >= min over m of max(device, link, CPU, host memory)
    device = dense + launch + read-back + (all experts' compute - the most that computing m elsewhere can save)
    link = x / B_link,  CPU = m / B_cpu,  host = (x + m) / B_host
(the resource form of the field survey's section E3; equal expert sizes, empty pools at the start, as for bypass-Belady).
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rgpu.errors import InputError
from rgpu.replay.events import Events
from rgpu.replay.timing.cost import ModelCost
from rgpu.replay.timing.facts import PassFacts
from rgpu.replay.timing.machine import Machine

HANDLERS = ("fetch", "cpu", "split", "zero_copy")


@dataclass(frozen=True, slots=True)
class Bound:
    """`seconds` for the whole trace, and what each resource takes at the best split; `tpot_s` per output token (NaN where
    prompts are part of the time: their share is not known). `binding`: the resource that takes longest."""

    seconds: float
    tpot_s: float
    device_s: float
    link_s: float
    cpu_s: float
    host_s: float
    link_bytes: float
    cpu_bytes: float

    @property
    def binding(self) -> str:
        parts = {"device": self.device_s, "link": self.link_s, "cpu": self.cpu_s, "host": self.host_s}
        return max(parts, key=lambda name: parts[name])


def time_bound(
    events: Events, facts: PassFacts, machine: Machine, cost: ModelCost, top_k: int, miss_bytes: float,
    handlers: Sequence[str] = HANDLERS, device: tuple[float, float, float, float] | None = None,
) -> Bound:  # fmt: skip
    """The bound over schedules that may use `handlers` (fetch is always possible). `miss_bytes`: bytes that bypass-Belady
    loads on these events at the same capacity; 0 gives the time of the device alone. `device`: what `device_seconds` gave."""
    if unknown := sorted(set(handlers) - set(HANDLERS)):
        raise InputError(f"handlers: got {unknown[0]!r}; expected some of {', '.join(HANDLERS)}")
    if miss_bytes < 0:
        raise InputError(f"miss_bytes: got {miss_bytes}; expected bytes from 0")
    fixed, experts, per_byte, total = device or device_seconds(events, facts, machine, cost, top_k)
    link = machine.link_rate
    if "zero_copy" in handlers:
        link = max(link, machine.zero_copy_rate)
    per_link_byte = 1 / link
    if not set(handlers) & {"split", "zero_copy"}:  # copies of whole experts: each pays its latency
        per_link_byte += machine.link_latency_s / float(cost.expert_bytes.max())
    cpu = machine.cpu_rate if set(handlers) & {"cpu", "split"} else 0.0
    most = total if cpu > 0 else 0.0
    # lines (at m = 0, slope) whose maximum is the time; the best m is an end or where two of them cross
    lines = [(fixed + experts, -per_byte), (fixed, 0.0), (miss_bytes * per_link_byte, -per_link_byte), (0.0, 0.0)]
    if cpu > 0:
        host = 1 / machine.host_bytes_per_s
        lines += [(0.0, 1 / cpu), (miss_bytes * host, 0.0), (0.0, host)]
    crossings = [(b - a) / (p - q) for (a, p), (b, q) in itertools.combinations(lines, 2) if p != q]
    candidates = [0.0, most, *(m for m in crossings if 0 < m < most)]
    seconds, m = min((max(a + p * m for a, p in lines), m) for m in candidates)
    x = max(0.0, miss_bytes - m)
    steps = float(facts.steps.sum())
    whole = bool(facts.decode.all()) and not facts.prefill and steps > 0
    return Bound(
        seconds, seconds / steps if whole else float("nan"), max(fixed, fixed + experts - per_byte * m), x * per_link_byte,
        m / cpu if cpu > 0 else 0.0, max(x + m, miss_bytes) / machine.host_bytes_per_s, x, m,
    )  # fmt: skip


def device_seconds(
    events: Events, facts: PassFacts, machine: Machine, cost: ModelCost, top_k: int
) -> tuple[float, float, float, float]:
    """(seconds beside routed experts, seconds of all routed experts on the device, the most seconds that one byte of them
    takes, bytes of all of them)."""
    work, packed = facts.work, cost.packed(top_k)
    fixed = len(events.pool) * (machine.launch_s + machine.sync_s)
    for at in range(cost.layers):
        kv, pairs = (work[:, 2], work[:, 4]) if cost.windowed[at] else (work[:, 1], work[:, 3])
        dense, flop_a_token, *_, head_bytes, head_flop = packed[at]
        nbytes = dense + cost.kv_bytes[at] * kv + np.where(work[:, 5] > 0, head_bytes, 0.0)
        flop = flop_a_token * work[:, 0] + cost.attention_flop[at] * pairs + head_flop * work[:, 5]
        fixed += float(np.maximum(nbytes / machine.bytes_per_s, flop / machine.flop_per_s).sum())
    members = np.diff(events.offs)
    rows = np.maximum(1.0, work[np.arange(len(members)) // cost.layers, 0] * top_k / np.maximum(members, 1))
    size = cost.expert_bytes[events.layer]
    each = np.maximum(size / machine.bytes_per_s, cost.expert_flop[events.layer] * rows / machine.flop_per_s)
    used = members > 0
    most = float((each[used] / size[used]).max()) if used.any() else 0.0
    return fixed, float((each * members).sum()), most, float((size * members).sum())
