"""Miss rates around a change of topic: what C2 and C3 compare. Legend: P pairs of documents (the clusters), N tokens.

Each document is in one pair; the texts of a pair are summed, so that pairs are independent.
"""

from dataclasses import dataclass

import numpy as np

from rgpu.experiments.suites.claim.inputs import Material
from rgpu.experiments.suites.claim.scoring import Arm, Bench
from rgpu.results.statistics import Interval, interval_of, ratio_difference

AROUND = 40  # tokens before and after a switch


@dataclass(frozen=True, slots=True)
class Around:
    """Misses and accesses of each pair in the `AROUND` tokens before the first switch and after one; int64 [P] each."""

    before: np.ndarray
    before_of: np.ndarray
    after: np.ndarray
    after_of: np.ndarray

    @property
    def parts(self) -> list[np.ndarray]:
        return [self.after, self.after_of, self.before, self.before_of]

    def of(self, which: np.ndarray) -> "Around":
        return Around(self.before[which], self.before_of[which], self.after[which], self.after_of[which])

    @property
    def after_rate(self) -> float:
        return float(self.after.sum() / self.after_of.sum())


def rise(one: Around) -> Interval:
    """Miss rate after the switch minus that before the first, over pairs."""
    return interval_of(ratio_difference, np.stack(one.parts))[0]


def rise_difference(one: Around, other: Around, confidence: float = 0.95) -> Interval:
    """`rise` of one minus that of the other, on the same pairs."""

    def both(x: np.ndarray) -> np.ndarray:
        return ratio_difference(x[:4]) - ratio_difference(x[4:])

    return interval_of(both, np.stack([*one.parts, *other.parts]), confidence=confidence)[0]


def after_difference(one: Around, other: Around, confidence: float = 0.95) -> Interval:
    """Miss rate after the switch of one minus that of the other, on the same pairs."""
    values = np.stack([one.after, one.after_of, other.after, other.after_of])
    return interval_of(ratio_difference, values, confidence=confidence)[0]


def around(bench: Bench, material: Material, arm: Arm, slots: int, kind: str, which: int) -> Around:
    """`kind`: "switch" (A to B) or "switch_back" (A to B to A); `which` switch of those texts the tokens after follow."""
    trace = material.scored
    result = bench.replay(material, arm, slots)
    row = np.searchsorted(np.unique(trace.passes), result.events.pass_id)  # one token a pass, in order
    accesses_N = np.bincount(row, np.diff(result.events.offs), trace.tokens)
    misses_N = accesses_N - np.bincount(row, result.hits_event, trace.tokens)
    meta = trace.header.sequences
    found: dict[int, np.ndarray] = {}
    for s in range(trace.sequences):
        if meta[s]["kind"] == kind:
            start = int(trace.seq_offsets[s])
            first, at = (start + int(meta[s]["switches"][w]) for w in (0, which))
            early, late = slice(first - AROUND, first), slice(at, at + AROUND)
            sums = [misses_N[early].sum(), accesses_N[early].sum(), misses_N[late].sum(), accesses_N[late].sum()]
            pair = int(meta[s]["pair"])
            found[pair] = found.get(pair, np.zeros(4, np.int64)) + np.asarray(sums, np.int64)
    return Around(*np.stack([found[pair] for pair in sorted(found)]).T)
