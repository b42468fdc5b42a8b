"""The tier below host memory: which loads find their expert in RAM and which must read the disk first.

RAM is a cache with a policy of its own, run over the stream of loads through the same decision loop as any pool. It keeps
its content across resets of the device pool, and starts empty. Legend: N loads, A accesses.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from rgpu.errors import InputError
from rgpu.policies.loop import BYPASS
from rgpu.policies.policy import Policy
from rgpu.replay.engine import replay
from rgpu.replay.log import AFTER, KEY, DecisionLog
from rgpu.replay.log import POOL as IN
from rgpu.replay.pool import PoolConfig
from rgpu.replay.timing.simulate import DiskLoads
from rgpu.traces.trace import Trace, TraceHeader


@dataclass(frozen=True, slots=True)
class LoadStream:
    """Every load of a log in the order it was submitted. `trace`: one layer whose experts are all experts of the model;
    a pass holds the loads of one event, or its proactive loads, or an initial fill. `source` uint8 [N]: 0 fills, 1
    accesses, 2 proactive; `index` int64 [N]: row there."""

    trace: Trace
    source: np.ndarray
    index: np.ndarray


def load_stream(log: DecisionLog, expert_bytes: int) -> LoadStream:
    """The loads of `log` as a trace for another pool."""
    layout, events = log.layout, log.events
    per_pool = layout.keys
    missed = np.flatnonzero(log.kept | (log.codes == BYPASS))
    event_A = np.repeat(np.arange(len(events.pool)), np.diff(events.offs))[missed]
    parts = [
        (0, log.fills[:, AFTER], log.fills[:, IN] * per_pool + log.fills[:, KEY], np.arange(len(log.fills))),
        (1, event_A, events.pool[event_A].astype(np.int64) * per_pool + events.keys[missed], missed),
        (
            2,
            log.proactive[:, AFTER],
            log.proactive[:, IN] * per_pool + log.proactive[:, KEY],
            np.arange(len(log.proactive)),
        ),
    ]
    turn = np.concatenate([3 * event.astype(np.int64) + kind for kind, event, _, _ in parts])
    order = np.argsort(turn, kind="stable")
    ids = np.concatenate([key for _, _, key, _ in parts])[order]
    source = np.concatenate([np.full(len(event), kind, np.uint8) for kind, event, _, _ in parts])[order]
    index = np.concatenate([rows for _, _, _, rows in parts])[order]
    experts = layout.pools * per_pool
    if experts > np.iinfo(np.uint16).max - 1:
        raise InputError(f"ram: got a model of {experts} experts; expected at most 65534")
    _, passes = np.unique(turn[order], return_inverse=True)
    n = len(ids)
    header = TraceHeader("loads", experts, 1, [0], expert_bytes=[int(expert_bytes)])
    trace = Trace(header, ids.astype(np.uint16).reshape(n, 1, 1), np.array([0, n]), np.arange(n, dtype=np.int32),
                  passes.astype(np.int32))  # fmt: skip
    return LoadStream(trace, source, index)


def disk_loads(log: DecisionLog, policy: Policy, ram_bytes: int, expert_bytes: np.ndarray) -> DiskLoads:
    """What reads the disk when `ram_bytes` of host memory hold experts under `policy`.

    Raises InputError where experts differ in size, memory holds none, or the policy needs what loads do not have.
    """
    sizes = np.unique(np.asarray(expert_bytes, np.int64))
    if len(sizes) != 1:
        raise InputError("ram: got experts of unequal size; expected one size; leave ram out")
    traits: Any = policy.traits
    if traits.weights or traits.feature or traits.calibration:
        raise InputError(
            f"ram.policy: got {policy.name}, which needs weights, features or calibration; expected e.g. lru"
        )
    out = DiskLoads(*(np.zeros(n, np.uint8) for n in (len(log.codes), len(log.proactive), len(log.fills))))
    stream = load_stream(log, int(sizes[0]))
    if not stream.trace.tokens:
        return out
    slots = min(int(ram_bytes // sizes[0]), stream.trace.header.num_experts)
    if slots < 1 + traits.staging:
        raise InputError(
            f"ram.bytes: got {ram_bytes}; expected room for at least {1 + traits.staging} experts of {sizes[0]} bytes"
        )
    decided = replay(stream.trace, policy, PoolConfig(slots=slots), decisions=True).decisions
    assert decided is not None
    if len(decided.codes) != len(stream.index):
        raise InputError("ram: got an expert loaded twice at once; expected loads without duplicates")
    # events hold their keys in the order of the rows: no duplicates, so last appearances are appearances
    missed = (~decided.hit).astype(np.uint8)
    for kind, target in enumerate((out.fills, out.accesses, out.proactive)):
        own = stream.source == kind
        target[stream.index[own]] = missed[own]
    return out
