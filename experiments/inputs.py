"""From a config to objects: traces, pools, policies. Every command that replays or runs goes through these."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from hydra import compose
from omegaconf import DictConfig

from rgpu.errors import InputError
from rgpu.experiments.built import built
from rgpu.policies.admission import admitted
from rgpu.policies.policy import Policy
from rgpu.replay.allocate import Allocator, Uniform, allocate
from rgpu.replay.placement import place_layers
from rgpu.replay.pool import PoolConfig
from rgpu.traces.split import split
from rgpu.traces.storage import load_trace
from rgpu.traces.trace import Trace
from rgpu.types import MoEShape

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
DEFAULT_SHARE = 0.5  # of the documents, where a policy calibrates


def parse_bytes(value: Any, name: str) -> int:
    """Bytes from a number or a text such as 3000MiB."""
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-zA-Z]*)\s*", str(value))
    if not found or found[2].lower() not in _UNITS:
        raise InputError(f"{name}: got {value!r}; expected a size such as 3000MiB, 2GB or a number of bytes")
    return int(float(found[1]) * _UNITS[found[2].lower()])


def open_trace(cfg: DictConfig, hidden: bool = True, pre_attention: bool = False) -> Trace:
    """The trace of `cfg.path`; `cfg.expert_bytes` (one size, or one a layer) replaces the header's sizes."""
    trace = load_trace(Path(cfg.path), hidden=hidden, pre_attention=pre_attention)
    if (given := cfg.get("expert_bytes")) is not None:
        sizes = [
            parse_bytes(s, "trace.expert_bytes")
            for s in (given if hasattr(given, "__len__") and not isinstance(given, str) else [given] * trace.layers)
        ]
        if len(sizes) != trace.layers or min(sizes) < 1:
            raise InputError(f"trace.expert_bytes: got {len(sizes)} sizes; expected one, or {trace.layers} above 0")
        trace.header.expert_bytes = sizes
    return trace


def pool_of(cfg: DictConfig, shape: MoEShape) -> PoolConfig:
    """Pool settings; with neither slots nor bytes, a quarter of the experts. `slots` may be a list, one a pool."""
    slots, size = cfg.slots, cfg.bytes
    if slots is None and size is None:
        slots = max(1, place_layers(cfg.scope, shape.layers, shape.experts).keys // 4)
    several = hasattr(slots, "__len__") and not isinstance(slots, str)
    for value in slots if several else [slots]:
        if value is not None:
            _whole("slots", value, 1)
    _whole("staging", cfg.staging, 0)
    return PoolConfig(
        cfg.scope, tuple(slots) if several else slots, None if size is None else parse_bytes(size, "pool.bytes"),
        cfg.staging, cfg.get("miss", "fetch"),
    )  # fmt: skip


def allocated(pool: PoolConfig, allocator: Allocator, calibration: Trace | None, shape: MoEShape) -> PoolConfig:
    """The pool with its budget split over layers by `allocator`; uniform is the pool as it is."""
    if isinstance(allocator, Uniform):
        return pool
    if pool.scope != "layer" or isinstance(pool.slots, tuple):
        raise InputError(
            f"allocator: got {allocator.name} with pool.scope={pool.scope} and pool.slots={pool.slots}; expected a pool a "
            "layer and one budget; set pool.scope=layer and pool.slots to one number, or allocator=uniform"
        )
    if calibration is None:
        raise InputError(f"allocator {allocator.name}: got no calibration sequences; set calibration.share=0.5")
    sizes = np.ones(shape.layers, np.int64) if pool.bytes is None else np.asarray(shape.expert_bytes, np.int64)
    if not len(sizes):
        raise InputError("pool.bytes: got a trace without expert sizes; set trace.expert_bytes=N or use pool.slots")
    budget = pool.bytes if pool.bytes is not None else int(pool.slots or 0) * shape.layers
    slots = allocate(allocator, calibration, budget, sizes, least=1 + pool.staging)
    return replace(pool, slots=slots, bytes=None)


def _whole(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or int(value) != value or value < least:
        raise InputError(f"pool.{name}: got {value!r}; expected a whole number from {least}")


def make_policy(cfg: DictConfig, admission: DictConfig | None = None) -> Policy:
    """The policy a `conf/policy/*.yaml` names, behind the plug a `conf/admission/*.yaml` names."""
    policy: Policy = built(cfg, "policy")
    return policy if admission is None else admitted(policy, built(admission, "admission"))


def policy_named(name: str) -> Policy:
    """The policy of `conf/policy/<name>.yaml`, from inside a running job (its search path counts); "lru+second_hit" is
    lru behind `conf/admission/second_hit.yaml`."""
    policy, _, plug = name.partition("+")
    chosen = compose(overrides=[f"+policy={policy}", *([f"+admission={plug}"] if plug else [])])
    return make_policy(chosen.policy, chosen.get("admission"))


def scored_parts(trace: Trace, share: float | str, needed: bool) -> tuple[Trace | None, Trace, str | None]:
    """(calibration, scored, digest). `share` "auto": half of the documents where a policy calibrates, else everything
    is scored; a number from 0 splits in any case."""
    if share == "auto":
        share = DEFAULT_SHARE if needed else 0.0
    if not isinstance(share, int | float) or not 0 <= share < 1:
        raise InputError(f"calibration.share: got {share!r}; expected auto or a number from 0 to below 1")
    if share == 0:
        return None, trace, None
    parts = split(trace, calibration=float(share), seed=0)
    if not len(parts.calibration):
        raise InputError("calibration: got a trace of one document; expected at least two; record more prompts")
    return trace.select(parts.calibration), trace.select(parts.scored), parts.digest
