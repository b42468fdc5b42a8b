"""Counts of every arm of a claim, one a sequence, each replayed once. Legend: S sequences, W windows of tokens."""

from dataclasses import dataclass, field

import numpy as np

from rgpu.experiments.suites.claim.inputs import Material
from rgpu.policies.loop import LOADED_BYTES
from rgpu.policies.policy import Policy
from rgpu.replay.engine import ReplayResult, SharedEvents, replay
from rgpu.replay.placement import place_layers
from rgpu.replay.pool import PoolConfig

WINDOW = 32  # tokens over which a hit rate is called stable or not


@dataclass(frozen=True, slots=True)
class Arm:
    """A policy under a label, in a pool of `slots` a layer (in all scopes, so that arms hold equal bytes)."""

    label: str
    policy: Policy
    scope: str = "layer"


@dataclass(frozen=True, slots=True)
class Counts:
    """int64 [S] each. `window_variance` float64 [S]: variance over windows of `WINDOW` tokens of the window's hit rate.
    `seconds`: of the decision loop."""

    hits: np.ndarray
    accesses: np.ndarray
    loads: np.ndarray
    bytes: np.ndarray
    tokens: np.ndarray
    window_variance: np.ndarray
    seconds: float

    @property
    def hit_rate(self) -> float:
        return float(self.hits.sum() / self.accesses.sum())

    @property
    def loads_per_token(self) -> float:
        return float(self.loads.sum() / self.tokens.sum())


@dataclass(slots=True)
class Bench:
    """Scores arms on the scored half of a material, each once: `counts(material, arm, slots)`."""

    seed: int = 0
    _known: dict[tuple[str, str, str, int], Counts] = field(default_factory=dict)
    _events: dict[str, SharedEvents] = field(default_factory=dict)

    def counts(self, material: Material, arm: Arm, slots: int) -> Counts:
        key = (material.name, arm.label, arm.scope, slots)
        if key not in self._known:
            self._known[key] = self._count(material, self.replay(material, arm, slots))
        return self._known[key]

    def replay(self, material: Material, arm: Arm, slots: int, decisions: bool = False) -> ReplayResult:
        """One cold replay of the scored half; `slots` a layer whatever the scope."""
        trace = material.scored
        span = place_layers(arm.scope, trace.layers, trace.header.num_experts).span
        shared = self._events.setdefault(material.name, SharedEvents(trace))
        return replay(
            trace, arm.policy, PoolConfig(arm.scope, slots * span), reset="sequence", calibration=material.calibration,
            by_sequence=True, seed=self.seed, shared=shared, decisions=decisions,
        )  # fmt: skip

    def _count(self, material: Material, result: ReplayResult) -> Counts:
        trace = material.scored
        return Counts(
            result.hits_piece, result.accesses_piece, result.loads_piece, result.pieces[:, LOADED_BYTES],
            np.diff(trace.seq_offsets), window_variance(result, trace.seq_offsets), result.seconds,
        )  # fmt: skip


def window_variance(result: ReplayResult, offsets_S: np.ndarray) -> np.ndarray:
    """float64 [S]: variance over windows of `WINDOW` passes of the hit rate inside one sequence; NaN under two windows.

    Sequences own their passes (batch 1), so passes are cut where the accesses of a sequence end.
    """
    passes, at = np.unique(result.events.pass_id, return_inverse=True)
    hits = np.bincount(at, result.hits_event, len(passes))
    accesses = np.bincount(at, np.diff(result.events.offs), len(passes))
    ends = np.searchsorted(np.cumsum(accesses), np.cumsum(result.accesses_piece))
    out = np.full(len(offsets_S) - 1, np.nan)
    start = 0
    for s, end in enumerate(ends):
        span = np.arange(start, end + 1)
        start = int(end) + 1
        cut = [span[i : i + WINDOW] for i in range(0, len(span) - WINDOW + 1, WINDOW)]
        if len(cut) > 1:
            out[s] = np.var([hits[w].sum() / max(1, accesses[w].sum()) for w in cut])
    return out
