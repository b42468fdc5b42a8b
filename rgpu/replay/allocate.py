"""Allocators: how one budget is split over layers whose pools are their own. Legend: L MoE layers, E experts, C slots.

Each looks at a calibration trace only. A layer always gets `least` slots and never more than E; what rounding leaves goes
where the rule wants it most, so the budget is used up to less than one expert.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from rgpu.errors import InputError
from rgpu.replay.mattson import lru_curve
from rgpu.traces import stats


class Allocator(Protocol):
    @property
    def name(self) -> str: ...

    def worth(self, trace: Any) -> np.ndarray:
        """float64 [L, E]: what the c-th slot of a layer is worth (column c - 1), never rising along a row."""
        ...


@dataclass(frozen=True, slots=True)
class Uniform:
    """Every layer the same bytes; no parameters."""

    name: ClassVar[str] = "uniform"

    def worth(self, trace: Any) -> np.ndarray:
        return _shares(np.ones(trace.layers), trace.header.num_experts)


@dataclass(frozen=True, slots=True)
class Entropy:
    """In proportion to `exp(entropy)` of each layer's expert popularity: its effective number of experts.

    `power` sharpens (above 1) or flattens (below 1) the proportions.
    """

    power: float = 1.0
    name: ClassVar[str] = "entropy"

    def __post_init__(self) -> None:
        if isinstance(self.power, bool) or not 0 <= self.power <= 100:
            raise InputError(f"allocator.power: got {self.power!r}; expected a number from 0; set allocator.power=1")

    def worth(self, trace: Any) -> np.ndarray:
        p_LE = stats.popularity(trace)
        entropy_L = -(p_LE * np.log(np.where(p_LE > 0, p_LE, 1.0))).sum(1)
        return _shares(np.exp(self.power * entropy_L), trace.header.num_experts)


@dataclass(frozen=True, slots=True)
class Marginal:
    """By the hits one more slot brings, read from each layer's LRU miss-ratio curve (its concave hull); no parameters.

    The greedy choice over concave curves is the best split (Fox 1966); curves are made concave by giving every slot of
    a convex stretch its mean gain, as utility-based cache partitioning does (Qureshi and Patt 2006).
    """

    name: ClassVar[str] = "marginal"

    def worth(self, trace: Any) -> np.ndarray:
        curve_LC, _ = lru_curve(trace)
        return np.stack([np.diff(concave_hull(curve)) for curve in curve_LC.astype(np.float64)])


def concave_hull(curve_C: np.ndarray) -> np.ndarray:
    """float64 [C]: the least concave curve nowhere below `curve_C`, given at whole capacities from 0."""
    corners = [0]
    for c in range(1, len(curve_C)):
        while len(corners) > 1:
            a, b = corners[-2:]
            if (curve_C[b] - curve_C[a]) * (c - b) > (curve_C[c] - curve_C[b]) * (b - a):
                break
            corners.pop()
        corners.append(c)
    return np.interp(np.arange(len(curve_C)), corners, curve_C[corners])


def _shares(weight_L: np.ndarray, experts: int) -> np.ndarray:
    """The c-th slot is worth weight / c: slots then grow in proportion to the weights (D'Hondt's rule)."""
    return weight_L[:, None] / np.arange(1, experts + 1)


def allocate(allocator: Allocator, trace: Any, budget: int, sizes_L: np.ndarray, least: int = 1) -> tuple[int, ...]:
    """Slots of each layer. `budget` in the unit of `sizes_L` (bytes of an expert by layer; ones: slots).

    Slots are given one at a time to the layer where the next is worth most for its size, ties to the first layer.
    Raises InputError where `least` slots a layer do not fit.
    """
    layers, experts = trace.layers, trace.header.num_experts
    sizes = np.asarray(sizes_L, np.int64)
    slots = np.full(layers, min(least, experts))
    left = int(budget) - int((slots * sizes).sum())
    if left < 0:
        raise InputError(
            f"pool: got a budget of {budget}; expected at least {int((slots * sizes).sum())}, {least} slots in each of "
            f"{layers} layers; give the pool more"
        )
    worth_LC = np.concatenate([allocator.worth(trace) / sizes[:, None], np.full((layers, 1), -np.inf)], axis=1)
    while True:
        fits = (sizes <= left) & (slots < experts)
        if not fits.any():
            return tuple(int(s) for s in slots)
        best = int(np.argmax(np.where(fits, worth_LC[np.arange(layers), slots], -np.inf)))
        slots[best] += 1
        left -= int(sizes[best])
