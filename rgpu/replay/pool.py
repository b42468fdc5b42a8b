"""Pools: how a budget in slots or bytes becomes capacities, and the state the decision loop starts from."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from rgpu.errors import InputError
from rgpu.policies.loop import BYTE_CAP, REG, SIZE, make_state
from rgpu.policies.policy import Policy, Setting
from rgpu.types import MoEShape

SCOPES = ("layer", "global")


@dataclass(frozen=True, slots=True)
class PoolConfig:
    """`slots`: device expert buffers, per layer in scope "layer", in all in scope "global"; or `bytes` for all layers
    together. `staging` of them are set aside for a policy that serves misses without keeping them."""

    scope: str = "layer"
    slots: int | None = None
    bytes: int | None = None
    staging: int = 1


@dataclass(frozen=True, slots=True)
class Layout:
    """Pools and keys: layer l lives in pool `pool_of[l]`, its expert 0 has key `base[l]`; `main[p]` slots keep experts,
    `staging` more serve misses that are not kept. `byte_cap` is 0 unless sizes differ within a pool."""

    scope: str
    pools: int
    keys: int
    pool_of: np.ndarray
    base: np.ndarray
    main: list[int]
    staging: int
    byte_cap: int
    size_of: np.ndarray

    @property
    def slots(self) -> int:
        """Slots of the largest pool, staging included."""
        return max(self.main) + self.staging


def lay_out(pool: PoolConfig, policy: Policy, shape: MoEShape) -> Layout:
    """Capacities of every pool under equal bytes: staging comes out of the budget. Raises InputError on what cannot be."""
    if pool.scope not in SCOPES:
        raise InputError(f"pool.scope: got {pool.scope!r}; expected layer or global; choose one")
    if (pool.slots is None) == (pool.bytes is None):
        raise InputError(f"pool: got slots={pool.slots} and bytes={pool.bytes}; expected exactly one of them; set one")
    layers, experts = shape.layers, shape.experts
    sizes = np.asarray(shape.expert_bytes or [0] * layers, np.int64)
    by_layer = pool.scope == "layer"
    byte_cap = 0
    if pool.slots is not None:
        slots = [int(pool.slots)] * (layers if by_layer else 1)
    else:
        assert pool.bytes is not None
        if not sizes.all():
            raise InputError(
                "pool.bytes: got a trace without expert sizes; expected expert_bytes in its header; "
                "set trace.expert_bytes=N or use pool.slots"
            )
        share = pool.bytes // layers if by_layer else pool.bytes
        slots = [int(share // s) for s in sizes] if by_layer else [int(share // sizes.min())]
        byte_cap = 0 if by_layer or (sizes == sizes[0]).all() else int(pool.bytes)
    staging = pool.staging if policy.traits.staging else 0
    if policy.traits.staging and staging < 1:
        raise InputError(
            f"pool.staging: got {pool.staging}; expected at least 1, because {policy.name} serves misses without keeping "
            "them; set pool.staging=1"
        )
    if min(slots) < max(1, staging):
        what = f"pool.slots: got {min(slots)}" if pool.bytes is None else f"pool.bytes: got room for {min(slots)} slots"
        raise InputError(
            f"{what}; expected at least {max(1, staging)} (staging {staging} included); give the pool more"
        )
    if byte_cap:
        byte_cap -= staging * int(sizes.max())
        if byte_cap < int(sizes.max()):
            raise InputError(
                f"pool.bytes: got {pool.bytes}; expected room for the largest expert ({sizes.max()} bytes)"
            )
    pool_of = np.arange(layers, dtype=np.int32) if by_layer else np.zeros(layers, np.int32)
    base = np.zeros(layers, np.int64) if by_layer else np.arange(layers, dtype=np.int64) * experts
    pools, keys = (layers, experts) if by_layer else (1, layers * experts)
    size_of = np.repeat(sizes[:, None], experts, 1).reshape(pools, keys)
    return Layout(pool.scope, pools, keys, pool_of, base, [s - staging for s in slots], staging, byte_cap, size_of)


def initial_state(
    layout: Layout, policy: Policy, shape: MoEShape, feature: str, width: int, calibration: Any, seed: int
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """(m, f, fill): prepared state and the keys each pool is filled with before the first event (empty arrays: none)."""
    traits = policy.traits
    frows = traits.frows + (layout.keys if traits.signatures else 0)
    m, f = make_state(layout.pools, layout.keys, layout.main, traits.rows, frows, width, seed)
    m[:, SIZE, : layout.keys] = layout.size_of
    if layout.byte_cap:
        m[:, REG, BYTE_CAP] = layout.byte_cap
    if traits.calibration and calibration is None:
        raise InputError(
            f"policy {policy.name}: got no calibration sequences; expected a calibration split; set calibration.share=0.5"
        )
    setting = Setting(m, f, shape, layout.pool_of, layout.base, feature, calibration, seed)
    if prepare := getattr(policy, "prepare", None):
        prepare(setting)
    fill = policy.fill(setting) if hasattr(policy, "fill") else [np.zeros(0, np.int64)] * layout.pools
    return m, f, [np.asarray(keys, np.int32) for keys in fill]
