"""Miss rates around a change of topic, one a sequence: what C2 and C3 compare. Legend: S sequences, N tokens."""

from dataclasses import dataclass

import numpy as np

from rgpu.experiments.suites.claim.inputs import Material
from rgpu.experiments.suites.claim.scoring import Arm, Bench

AROUND = 40  # tokens before and after a switch


@dataclass(frozen=True, slots=True)
class Around:
    """Misses and accesses of each sequence in the `AROUND` tokens before and after one switch; int64 [S] each."""

    before: np.ndarray
    before_of: np.ndarray
    after: np.ndarray
    after_of: np.ndarray

    @property
    def surge_S(self) -> np.ndarray:
        """float64 [S]: miss rate after minus before."""
        return self.after / self.after_of - self.before / self.before_of

    def of(self, which: np.ndarray) -> "Around":
        return Around(self.before[which], self.before_of[which], self.after[which], self.after_of[which])


def around(bench: Bench, material: Material, arm: Arm, slots: int, kind: str, which: int) -> Around:
    """`kind`: "switch" (A to B) or "switch_back" (A to B to A); `which` switch of those sequences."""
    trace = material.scored
    result = bench.replay(material, arm, slots)
    row = np.searchsorted(np.unique(trace.passes), result.events.pass_id)  # one token a pass, in order
    accesses_N = np.bincount(row, np.diff(result.events.offs), trace.tokens)
    misses_N = accesses_N - np.bincount(row, result.hits_event, trace.tokens)
    meta = trace.header.sequences
    found = []
    for s in range(trace.sequences):
        if meta[s]["kind"] == kind:
            at = int(trace.seq_offsets[s]) + int(meta[s]["switches"][which])
            early, late = slice(at - AROUND, at), slice(at, at + AROUND)
            found.append([misses_N[early].sum(), accesses_N[early].sum(), misses_N[late].sum(), accesses_N[late].sum()])
    return Around(*np.asarray(found, np.int64).T)
