"""What a claim's test returns, the words it may use and the rules that choose them. Legend: S sequences (clusters).

A policy that loads unasked is never ranked by hits alone (docs/concepts.md): an arm is better than another where it has more
hits for no more loads, or fewer loads for no fewer hits. Intervals are simultaneous over a claim's rivals (Bonferroni).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from rgpu.results.statistics import MIN_CLUSTERS, Interval, bootstrap, interval_of, paired_difference

SUPPORTED, NOT_SUPPORTED, CANNOT_TELL, NOT_TESTABLE = "supported", "not supported", "cannot tell", "not testable here"
MARGIN = 0.005  # of accesses: a difference in hit rate below half a point decides nothing
LOADS_MARGIN = 0.005  # of the other arm's loads a token
BETTER, NO_BETTER, TRADE, OPEN = "better", "no better", "trades hits for loads", "open"


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


class Counted(Protocol):
    """int64 [S] each, on the same sequences for all arms."""

    @property
    def hits(self) -> np.ndarray: ...
    @property
    def accesses(self) -> np.ndarray: ...
    @property
    def loads(self) -> np.ndarray: ...
    @property
    def tokens(self) -> np.ndarray: ...


@dataclass(frozen=True, slots=True)
class Versus:
    """One arm minus another on the same sequences: hit rate, loads a token; `slack`: loads a token that decide nothing."""

    hits: Interval
    loads: Interval
    slack: float
    clusters: int

    @property
    def more_hits(self) -> bool:
        return self.clusters >= MIN_CLUSTERS and self.hits.lo > MARGIN

    @property
    def no_more_hits(self) -> bool:
        return self.clusters >= MIN_CLUSTERS and self.hits.hi < MARGIN

    @property
    def more_loads(self) -> bool:
        return self.clusters >= MIN_CLUSTERS and self.loads.lo > self.slack

    @property
    def fewer_loads(self) -> bool:
        return self.clusters >= MIN_CLUSTERS and self.loads.hi < -self.slack

    @property
    def word(self) -> str:
        """Better, no better (no more hits, and loads not shown to be fewer), a trade, or open."""
        if (self.more_hits and self.loads.hi < self.slack) or (self.fewer_loads and self.hits.lo > -MARGIN):
            return BETTER
        if self.no_more_hits and self.loads.lo > -self.slack:
            return NO_BETTER
        fewer_hits = self.no_more_hits and self.hits.hi < -MARGIN
        return TRADE if (self.more_hits and self.more_loads) or (fewer_hits and self.fewer_loads) else OPEN

    def told(self) -> dict[str, Any]:
        h, d = self.hits, self.loads
        return {
            "hit_rate": rounded(h.estimate, h.lo, h.hi), "loads_per_token": rounded(d.estimate, d.lo, d.hi),
            "word": self.word,
        }  # fmt: skip


def versus(own: Counted, rivals: Mapping[str, Counted], tests: int | None = None) -> dict[str, Versus]:
    """`own` minus every rival, intervals simultaneous over `tests` comparisons (default: as many as rivals)."""
    confidence = 1 - 0.05 / max(1, tests or len(rivals))
    found = {}
    for name, other in rivals.items():
        hits, _ = paired_difference(own.hits, own.accesses, other.hits, other.accesses, confidence=confidence)
        loads, _ = paired_difference(own.loads, own.tokens, other.loads, other.tokens, confidence=confidence)
        slack = LOADS_MARGIN * float(other.loads.sum() / other.tokens.sum())
        found[name] = Versus(hits, loads, slack, len(own.hits))
    return found


def above_all(words: Sequence[str]) -> str:
    """Supported where better than every control; not supported where no better than one of them."""
    if words and all(w == BETTER for w in words):
        return SUPPORTED
    return NOT_SUPPORTED if NO_BETTER in words else CANNOT_TELL


def above_one(words: Sequence[str]) -> str:
    """Supported where some arm is better than the baseline; not supported where every one is no better."""
    if BETTER in words:
        return SUPPORTED
    return NOT_SUPPORTED if words and all(w == NO_BETTER for w in words) else CANNOT_TELL


def agreed(words: Mapping[str, str]) -> str:
    """The verdict all materials share, else cannot tell."""
    return next(iter(words.values())) if len(set(words.values())) == 1 else CANNOT_TELL


def below(difference: Interval, margin: float, clusters: int) -> str:
    """ "lower", "not lower" or "open": whether a difference is under -margin, surely not, or neither."""
    if clusters < MIN_CLUSTERS or not np.isfinite([difference.lo, difference.hi]).all():
        return OPEN
    return "lower" if difference.hi < -margin else "not lower" if difference.lo > -margin else OPEN


def rate(numerators_S: np.ndarray, denominators_S: np.ndarray) -> list[float]:
    """[estimate, lo, hi] of a ratio of sums, rounded for people."""
    found = bootstrap(numerators_S, denominators_S)
    return rounded(found.estimate, found.lo, found.hi)


def rounded(*values: float) -> list[float]:
    return [round(float(v), 5) for v in values]


def shown(interval: Interval) -> list[float]:
    return rounded(interval.estimate, interval.lo, interval.hi)


def mean_of(values_S: np.ndarray) -> list[float]:
    """[mean, lo, hi] over sequences, those without a value left out."""
    known = values_S[np.isfinite(values_S)]
    return rate(known, np.ones(len(known)))


def mean_difference(a_S: np.ndarray, b_S: np.ndarray) -> tuple[Interval, int]:
    """Mean of a - b over the sequences where both are known, and how many those are."""
    known = np.isfinite(a_S) & np.isfinite(b_S)
    if known.sum() < 2:
        return Interval(np.nan, np.nan, np.nan), int(known.sum())
    found, _ = interval_of(lambda x: x[0] / x[1], np.stack([(a_S - b_S)[known], np.ones(int(known.sum()))]))
    return found, int(known.sum())
