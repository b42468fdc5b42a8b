"""What a claim's test returns, and the words it may use. Legend: S sequences."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from rgpu.results.statistics import Comparison, bootstrap, compare, interval_of

SUPPORTED, NOT_SUPPORTED, CANNOT_TELL, NOT_TESTABLE = "supported", "not supported", "cannot tell", "not testable here"
MARGIN = 0.005  # of accesses: a difference in hit rate below half a point decides nothing


@dataclass(slots=True)
class Claim:
    """A claim of the published record with its test. `rows`: everything its figure is drawn from."""

    id: str
    claim: str
    source: str
    test: str
    falsified_if: str
    verdict: str
    why: str
    numbers: dict[str, Any] = field(default_factory=dict)
    figures: list[str] = field(default_factory=list)
    rows: list[pa.Table] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        named = ("id", "claim", "source", "test", "falsified_if", "verdict", "why", "numbers", "figures")
        return {name: getattr(self, name) for name in named}


def rate(numerators_S: np.ndarray, denominators_S: np.ndarray) -> list[float]:
    """[estimate, lo, hi] of a ratio of sums, rounded for people."""
    found = bootstrap(numerators_S, denominators_S)
    return rounded(found.estimate, found.lo, found.hi)


def rounded(*values: float) -> list[float]:
    return [round(float(v), 5) for v in values]


def mean_of(values_S: np.ndarray) -> list[float]:
    """[mean, lo, hi] over sequences, those without a value left out."""
    known = values_S[np.isfinite(values_S)]
    return rate(known, np.ones(len(known)))


def against(
    names: Sequence[str], numerators_PS: np.ndarray, denominators_PS: np.ndarray, baseline: str, margin: float = MARGIN
) -> dict[str, Comparison]:
    """Every other name against the baseline on the same sequences, Holm-corrected."""
    found = compare(names, numerators_PS, denominators_PS, margin=margin, baseline=baseline)
    return {c.a: c for c in found}


def told(comparison: Comparison) -> dict[str, Any]:
    """A comparison as JSON."""
    d = comparison.difference
    return {
        "a": comparison.a, "b": comparison.b, "difference": rounded(d.estimate, d.lo, d.hi), "p": round(comparison.p, 5),
        "verdict": comparison.verdict,
    }  # fmt: skip


def mean_difference(a_S: np.ndarray, b_S: np.ndarray) -> tuple[list[float], str]:
    """[mean of a - b, lo, hi] over sequences where both are known, and "higher", "lower" or "cannot tell" against 0."""
    known = np.isfinite(a_S) & np.isfinite(b_S)
    if known.sum() < 8:
        return [float("nan")] * 3, CANNOT_TELL
    found, _ = interval_of(lambda x: x[0] / x[1], np.stack([(a_S - b_S)[known], np.ones(int(known.sum()))]))
    word = "higher" if found.lo > 0 else "lower" if found.hi < 0 else CANNOT_TELL
    return rounded(found.estimate, found.lo, found.hi), word
