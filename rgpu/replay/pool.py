"""Pools: how a budget in slots or bytes becomes capacities, and the state the decision loop starts from."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from rgpu.errors import InputError
from rgpu.policies.loop import BYTE_CAP, REG, SIZE, make_state
from rgpu.policies.policy import Policy, Setting
from rgpu.replay.placement import place_layers
from rgpu.types import MoEShape

COMPUTED_IN_PLACE = ("cpu", "zero_copy")  # miss handlers that need no staging slot


@dataclass(frozen=True, slots=True)
class PoolConfig:
    """`scope`: "layer", "global" or "groupN" (see `placement`). `slots`: device expert buffers of each pool, one number or
    one a pool; or `bytes` for all layers together, shared out evenly over layers. `staging` of them are set aside for a
    policy that serves misses without keeping them; `miss` is how misses are served: without `fetch` or `split`, staging
    may be 0."""

    scope: str = "layer"
    slots: int | tuple[int, ...] | None = None
    bytes: int | None = None
    staging: int = 1
    miss: str = "fetch"


@dataclass(frozen=True, slots=True)
class Layout:
    """Pools and keys: layer l lives in pool `pool_of[l]`, its expert 0 has key `base[l]`; `main[p]` slots keep experts,
    `staging` more serve misses that are not kept. `byte_cap[p]` is 0 unless sizes differ within the pool."""

    scope: str
    pools: int
    keys: int
    pool_of: np.ndarray
    base: np.ndarray
    main: list[int]
    staging: int
    byte_cap: np.ndarray
    size_of: np.ndarray

    @property
    def slots(self) -> int:
        """Slots of the largest pool, staging included."""
        return max(self.main) + self.staging


def lay_out(pool: PoolConfig, policy: Policy, shape: MoEShape) -> Layout:
    """Capacities of every pool under equal bytes: staging comes out of the budget. Raises InputError on what cannot be."""
    if (pool.slots is None) == (pool.bytes is None):
        raise InputError(f"pool: got slots={pool.slots} and bytes={pool.bytes}; expected exactly one of them; set one")
    layers, experts = shape.layers, shape.experts
    placed = place_layers(pool.scope, layers, experts)
    sizes = np.asarray(shape.expert_bytes or [0] * layers, np.int64).reshape(placed.pools, placed.span)
    byte_cap = np.zeros(placed.pools, np.int64)
    if pool.bytes is None:
        given = pool.slots if isinstance(pool.slots, tuple) else (pool.slots,) * placed.pools
        if len(given) != placed.pools:
            raise InputError(
                f"pool.slots: got {len(given)} numbers; expected one, or one for each of {placed.pools} pools"
            )
        slots = [int(s) for s in given]  # type: ignore[arg-type]
    else:
        if not sizes.all():
            raise InputError(
                "pool.bytes: got a trace without expert sizes; expected expert_bytes in its header; "
                "set trace.expert_bytes=N or use pool.slots"
            )
        share = pool.bytes // placed.pools
        slots = [int(share // own.min()) for own in sizes]
        byte_cap[(sizes != sizes[:, :1]).any(1)] = share
    staging = pool.staging if policy.traits.staging else 0
    if policy.traits.staging and staging < 1 and pool.miss not in COMPUTED_IN_PLACE:
        raise InputError(
            f"pool.staging: got {pool.staging}; expected at least 1, because {policy.name} serves misses without keeping "
            "them; set pool.staging=1"
        )
    if min(slots) < max(1, staging):
        what = f"pool.slots: got {min(slots)}" if pool.bytes is None else f"pool.bytes: got room for {min(slots)} slots"
        raise InputError(
            f"{what}; expected at least {max(1, staging)} (staging {staging} included); give the pool more"
        )
    largest = sizes.max(1)
    tight = byte_cap > 0
    byte_cap[tight] -= staging * largest[tight]
    if (byte_cap[tight] < largest[tight]).any():
        raise InputError(f"pool.bytes: got {pool.bytes}; expected room for the largest expert ({sizes.max()} bytes)")
    size_of = np.repeat(sizes, experts, axis=1)
    return Layout(pool.scope, placed.pools, placed.keys, placed.pool_of, placed.base, [s - staging for s in slots], staging,
                  byte_cap, size_of)  # fmt: skip


def initial_state(
    layout: Layout,
    policy: Policy,
    shape: MoEShape,
    feature: str,
    width: int,
    calibration: Any,
    seed: int,
    memo: dict[Any, Any] | None = None,
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """(m, f, fill): prepared state and the keys each pool is filled with before the first event (empty arrays: none)."""
    traits = policy.traits
    frows = traits.frows + layout.keys * traits.signatures
    m, f = make_state(layout.pools, layout.keys, layout.main, traits.rows, frows, width, seed)
    m[:, SIZE, : layout.keys] = layout.size_of
    tight = layout.byte_cap > 0
    m[tight, REG, BYTE_CAP] = layout.byte_cap[tight]
    if traits.calibration and calibration is None:
        raise InputError(
            f"policy {policy.name}: got no calibration sequences; expected a calibration split; set calibration.share=0.5"
        )
    setting = Setting(
        m, f, shape, layout.pool_of, layout.base, feature, calibration, seed, {} if memo is None else memo
    )
    if prepare := getattr(policy, "prepare", None):
        prepare(setting)
    fill = policy.fill(setting) if hasattr(policy, "fill") else [np.zeros(0, np.int64)] * layout.pools
    return m, f, [np.asarray(keys, np.int32) for keys in fill]
