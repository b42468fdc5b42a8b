"""Where a policy's loads come from: cold, capacity, admission and victim choice (semantics, section "Hit, load, bytes").

    loads = cold                first use of an expert since the pool was emptied: nobody avoids these
          + capacity            what the best schedule of any kind loads beyond that: bypass-Belady - cold
          + admission           what keeping every miss costs even a clairvoyant: forced Belady - bypass-Belady
          + victim              what the policy's own choice of victims adds: policy - forced Belady
The last two are told apart only for demand policies that always admit; of others policy - bypass-Belady is given whole.
Exact at capacities in slots (one cost a load); where a budget in bytes holds experts of several sizes bypass-Belady is not
the optimum, and the decomposition is refused.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from rgpu.errors import InputError
from rgpu.policies.belady import Belady
from rgpu.policies.belady_bypass import BeladyBypass
from rgpu.policies.policy import Policy
from rgpu.replay.engine import ReplayResult, SharedEvents, replay
from rgpu.replay.pool import PoolConfig, lay_out

PARTS = ("cold", "capacity", "admission", "victim", "undivided")


@dataclass(frozen=True, slots=True)
class Gap:
    """Parts of a policy's loads, as numbers or as arrays of one shape; absent parts are None. They add up to the loads."""

    cold: Any
    capacity: Any
    admission: Any = None
    victim: Any = None
    undivided: Any = None

    def parts(self) -> Iterator[tuple[str, Any]]:
        """The parts that exist, bottom first."""
        for name in PARTS:
            if (value := getattr(self, name)) is not None:
                yield name, value


def decompose(policy: Any, cold: Any, bypass: Any, forced: Any, *, divides: bool) -> Gap:
    """Split the loads of `policy` at one capacity. `divides`: a demand policy that always admits."""
    if divides:
        return Gap(cold, bypass - cold, forced - bypass, policy - forced)
    return Gap(cold, bypass - cold, undivided=policy - bypass)


def divides(policy: Policy) -> bool:
    """Whether admission and victim choice are told apart: it loads only what it missed and keeps every miss."""
    return policy.traits.demand and not policy.traits.staging and not policy.traits.bound


def gap_curve(
    trace: Any, policies: list[Policy], slots: list[int], *, scope: str = "layer", reset: str = "none",
    staging: int = 1, touch_order: str = "rank", calibration: Any = None, seed: int = 0,
) -> dict[str, list[Gap]]:  # fmt: skip
    """For each policy its decomposition at every capacity, in loads over the whole trace; each capacity is replayed."""
    shared = SharedEvents(trace)

    def loads(policy: Policy, count: int) -> ReplayResult:
        pool = PoolConfig(scope, slots=count, staging=staging)
        check_sizes(lay_out(pool, policy, trace.shape).byte_cap)
        return replay(trace, policy, pool, reset=reset, touch_order=touch_order, calibration=calibration, seed=seed,
                      shared=shared)  # fmt: skip

    curves: dict[str, list[Gap]] = {policy.name: [] for policy in policies}
    for count in slots:
        bypass, forced = loads(BeladyBypass(), count), loads(Belady(), count)
        for policy in policies:
            found = loads(policy, count).loads
            curves[policy.name].append(
                decompose(found, bypass.cold_misses, bypass.loads, forced.loads, divides=divides(policy))
            )
    return curves


def check_sizes(byte_cap: np.ndarray) -> None:
    """Raise InputError where a pool's budget in bytes holds experts of several sizes."""
    if byte_cap.any():
        raise InputError(
            "gap decomposition: got a byte budget over experts of several sizes; expected equal sizes, because "
            "farthest next use is not optimal otherwise; give the pool in slots, or use the flow bound"
        )
