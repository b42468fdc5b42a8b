"""A policy of a grid whose budget an allocator splits over layers: "lru@marginal" beside "lru" at the same bytes."""

from dataclasses import dataclass, field
from typing import Any

from rgpu.experiments.inputs import allocated
from rgpu.policies.policy import Policy
from rgpu.replay.allocate import Allocator
from rgpu.replay.pool import PoolConfig
from rgpu.traces.trace import Trace


@dataclass(frozen=True)
class Allocated:
    """`policy` in pools whose capacities `allocator` chooses; everything else is the policy's own."""

    policy: Any
    allocator: Allocator
    pools: dict[PoolConfig, PoolConfig] = field(default_factory=dict, repr=False, compare=False)

    @property
    def name(self) -> str:
        return f"{self.policy.name}@{self.allocator.name}"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.policy, name)

    def split(self, pool: PoolConfig, calibration: Trace | None, trace: Trace) -> PoolConfig:
        """The pool with its budget split over layers; each capacity is split once a grid."""
        if pool not in self.pools:
            self.pools[pool] = allocated(pool, self.allocator, calibration, trace.shape)
        return self.pools[pool]


def pool_at(
    policy: Policy, scope: str, slots: int, staging: int, calibration: Trace | None, trace: Trace
) -> PoolConfig:
    """The pool of one cell of a grid."""
    pool = PoolConfig(scope, slots=slots, staging=staging)
    return policy.split(pool, calibration, trace) if isinstance(policy, Allocated) else pool
