"""Counts of every arm of a claim, one a sequence, each replayed once. Legend: S sequences, W windows of tokens."""

import hashlib
import io
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rgpu.experiments.suites.claim.inputs import Material
from rgpu.policies.loop import LOADED_BYTES
from rgpu.policies.policy import Policy
from rgpu.replay.engine import ReplayResult, SharedEvents, replay
from rgpu.replay.placement import place_layers
from rgpu.replay.pool import PoolConfig
from rgpu.results.provenance import write_atomic

WINDOW = 32  # tokens over which a hit rate is called stable or not


@dataclass(frozen=True, slots=True)
class Arm:
    """A policy under a label, in a pool of `slots` a layer (in all scopes, so that arms hold equal bytes)."""

    label: str
    policy: Policy
    scope: str = "layer"


@dataclass(frozen=True, slots=True)
class Counts:
    """int64 [S] each. `window_variance` float64 [S]: variance over windows of `WINDOW` tokens of the window's hit rate."""

    hits: np.ndarray
    accesses: np.ndarray
    loads: np.ndarray
    bytes: np.ndarray
    tokens: np.ndarray
    window_variance: np.ndarray

    @property
    def hit_rate(self) -> float:
        return float(self.hits.sum() / self.accesses.sum())

    @property
    def loads_per_token(self) -> float:
        return float(self.loads.sum() / self.tokens.sum())


@dataclass(slots=True)
class Bench:
    """Scores arms on the scored half of a material, each once: `counts(material, arm, slots)`. With a `folder` what was
    counted is kept there until `clear`, so that a killed run goes on."""

    seed: int = 0
    workers: int = 1
    folder: Path | None = None
    _known: dict[str, Counts] = field(default_factory=dict)
    _events: dict[str, SharedEvents] = field(default_factory=dict)

    def counts(self, material: Material, arm: Arm, slots: int) -> Counts:
        # by the policy itself, never by its label: two claims may call different policies by one name
        key = f"{material.name} {arm.policy!r} {arm.scope} {slots}"
        if key not in self._known:
            kept = self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.npz" if self.folder else None
            if kept is not None and kept.exists():
                with np.load(kept) as arrays:
                    self._known[key] = Counts(**{name: arrays[name] for name in arrays.files})
            else:
                self._known[key] = self._count(material, self.replay(material, arm, slots))
                if kept is not None:
                    buffer = io.BytesIO()
                    found = self._known[key]
                    np.savez(buffer, **{name: getattr(found, name) for name in Counts.__dataclass_fields__})
                    write_atomic(kept, buffer.getvalue())
        return self._known[key]

    def prepare(self, material: Material, wanted: Sequence[tuple[Arm, int]]) -> None:
        """Count these arms side by side."""
        self._events.setdefault(material.name, SharedEvents(material.scored))
        with ThreadPoolExecutor(self.workers) as pool:
            list(pool.map(lambda pair: self.counts(material, *pair), wanted))

    def clear(self) -> None:
        """What is kept on disk is not needed any more."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

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
            np.diff(trace.seq_offsets), window_variance(result, trace.seq_offsets),
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
