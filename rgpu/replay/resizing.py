"""Pools that change their size while a run goes on: what was decided, and how a replay does the same.

Slots come and go at a pool's end, one at a time and between events: a full pool first gives up whom its policy chooses, and
who sits in the last slot moves to a free one. So the slots that are kept are always the first of a buffer.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rgpu.errors import InputError, TraceError
from rgpu.policies.policy import Policy
from rgpu.replay.pool import Layout

KEY = "resizes"  # in a trace header's provenance: [pass before which it happened, pool, slots that keep experts]


@dataclass(frozen=True, slots=True)
class Resized:
    """Pool `pool` has `slots` slots that keep experts. `moves`: (from, to) of experts whose slot went; `evicted`: keys."""

    pool: int
    slots: int
    moves: list[tuple[int, int]]
    evicted: list[int]


def check_policy(policy: Policy) -> None:
    """`InputError` where a policy cannot go on with other slots."""
    if not policy.traits.resizes:
        raise InputError(
            f"policy {policy.name}: got a pool that changes its size; expected a policy that goes on with other slots, as "
            "all in conf/policy but clairvoyant ones do, such as lru; keep the cap, or choose another"
        )


def check_resizable(policy: Policy, layout: Layout, pool: int, slots: int, most: int) -> None:
    """`InputError` where pool `pool` cannot get `slots` slots beside its staging."""
    check_policy(policy)
    if not 0 <= pool < len(layout.byte_cap):
        raise InputError(f"pool: got {pool}; expected 0 to {len(layout.byte_cap) - 1}, a pool that there is; give one")
    if layout.byte_cap[pool]:
        raise InputError(
            "pool.bytes: got a pool of experts of unequal sizes that changes its size; expected pool.slots; set that"
        )
    if not 1 <= slots <= most:
        raise InputError(
            f"pool {pool}: got {slots} slots beside {layout.staging} of staging; expected 1 to {most}; give a size in between"
        )


def moves_of(before: np.ndarray, after: np.ndarray) -> list[tuple[int, int]]:
    """(from, to) of every key that is in another slot than before; int64 keys by slot, -1 empty."""
    was = {int(key): slot for slot, key in enumerate(before.tolist()) if key >= 0}
    return [(was[key], slot) for slot, key in enumerate(after.tolist()) if key >= 0 and was[key] != slot]


class Resizes:
    """The recorded changes of a run, to be made again by the controller that replays its trace. `left`: not made yet."""

    def __init__(self, recorded: Iterable[Sequence[int]] = ()) -> None:
        self.left = [(int(number), int(pool), int(slots)) for number, pool, slots in recorded]

    @classmethod
    def of(cls, trace: Any) -> "Resizes":
        """Those in the header of a live run's trace; none in others."""
        found = trace.header.provenance.get(KEY, [])
        rows = found if isinstance(found, list) else [found]
        if not all(isinstance(row, list) and len(row) == 3 and all(type(n) is int for n in row) for row in rows):
            raise TraceError(f"provenance.{KEY}: got {found!r}; expected rows of pass, pool and slots; record it anew")
        return cls(found)

    def __bool__(self) -> bool:
        return bool(self.left)

    def make(self, controller: Any, number: int | None = None) -> None:
        """Those due before pass `number` (None: all that are left)."""
        while self.left and (number is None or self.left[0][0] <= number):
            at, pool, slots = self.left.pop(0)
            controller.resize(pool, slots, at)
