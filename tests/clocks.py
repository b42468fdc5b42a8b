"""Decision logs, machines and costs made by hand for tests of the virtual clock."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from rgpu.policies.loop import DEMAND
from rgpu.policies.lru import Lru
from rgpu.policies.on_demand import OnDemand
from rgpu.replay.events import Events
from rgpu.replay.log import DecisionLog
from rgpu.replay.pool import PoolConfig, lay_out
from rgpu.replay.timing.cost import ModelCost
from rgpu.replay.timing.facts import PassFacts
from rgpu.replay.timing.machine import Machine
from rgpu.types import MoEShape

SIZE = 1_000_000  # bytes of an expert


def log_of(
    events: Sequence[Sequence[tuple[int, int]]], *, layers: int = 1, experts: int = 64, slots: int = 8, staging: int = 0,
    proactive: Sequence[tuple[int, ...]] = (), fills: Sequence[tuple[int, ...]] = (), resets: Sequence[int] = (),
) -> DecisionLog:  # fmt: skip
    """A log whose event e has the members (key, code) of events[e], layer e % layers, a pool a layer."""
    shape = MoEShape(layers, experts, 1, expert_bytes=(SIZE,) * layers)
    policy: Any = OnDemand() if staging else Lru()
    layout = lay_out(PoolConfig(slots=slots, staging=staging), policy, shape)
    if staging:
        layout.main[:] = [slots - staging] * layers
    n = len(events)
    layer = np.arange(n, dtype=np.int64) % layers
    sizes = [len(e) for e in events]
    keys = np.array([k for e in events for k, _ in e], np.int32)
    made = Events(
        layer.astype(np.int32), np.full(n, DEMAND, np.int8), layer.astype(np.int16),
        (np.arange(n) // layers).astype(np.int32), np.ones(n, bool), np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        keys, np.zeros(len(keys), np.float32), np.zeros(0, np.int32), len(keys),
    )  # fmt: skip
    codes = np.array([c for e in events for _, c in e], np.int32)
    rows = [np.array(r, np.int64).reshape(len(r), 5) for r in (proactive, fills)]
    bounds = np.array([0, *resets, n], np.int64)
    return DecisionLog("hand", made, layout, codes, np.full(len(keys), -1, np.int32), rows[0], rows[1], bounds)


def facts_of(passes: int, tokens: float = 1.0) -> PassFacts:
    work = np.zeros((passes, 6))
    work[:, [0, 5]] = tokens
    ones, none = np.ones(passes), np.zeros(1, np.int64)
    return PassFacts(work, np.ones(passes, bool), ones, ones, np.zeros(passes, np.int64), none, none - 1)


def cost_of_layers(layers: int = 1, dense_bytes: float = 0.0, size: float = SIZE) -> ModelCost:
    zero, no = np.zeros(layers), np.zeros(layers, bool)
    return ModelCost("hand", np.full(layers, dense_bytes), zero, zero, zero, np.full(layers, size), zero, no, 0, "test")


def machine(**given: float) -> Machine:
    """A machine on which nothing takes time but what is given."""
    free: dict[str, Any] = {"name": "hand", "bytes_per_s": math.inf, "link_bytes_per_s": math.inf}
    return Machine(**(free | given))
