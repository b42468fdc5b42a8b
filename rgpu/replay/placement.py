"""Which pool holds which layers, and the key an expert has there. Scopes: "layer", "global", "groupN" (N equal groups).

A pool of several layers holds consecutive ones; an expert's key is (layer - first layer of the pool) * E + expert.
"""

import re
from dataclasses import dataclass

import numpy as np

from rgpu.errors import InputError


@dataclass(frozen=True, slots=True)
class Placement:
    """Layer l lives in pool `pool_of[l]` (int32 [L]), its expert 0 has key `base[l]` (int64 [L]); `span` layers a pool."""

    pools: int
    span: int
    keys: int
    pool_of: np.ndarray
    base: np.ndarray


def groups_of(scope: str, layers: int) -> int:
    """Number of pools. Raises InputError on an unknown scope or groups that do not divide the layers."""
    if scope == "layer":
        return layers
    if scope == "global":
        return 1
    found = re.fullmatch(r"group([1-9][0-9]*)", scope)
    if not found:
        raise InputError(
            f"pool.scope: got {scope!r}; expected layer, global or groupN (N groups of layers); choose one"
        )
    groups = int(found[1])
    if layers % groups:
        fit = ", ".join(f"group{n}" for n in range(2, layers) if layers % n == 0) or "layer"
        raise InputError(f"pool.scope: got {scope} for {layers} layers; expected groups of equal size; choose {fit}")
    return groups


def place_layers(scope: str, layers: int, experts: int) -> Placement:
    """Pools and keys of a model under a scope."""
    pools = groups_of(scope, layers)
    span = layers // pools
    layer = np.arange(layers)
    return Placement(pools, span, span * experts, (layer // span).astype(np.int32), (layer % span) * experts)
