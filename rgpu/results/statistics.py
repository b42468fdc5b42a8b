"""Cluster bootstrap, paired comparison and Holm's correction: how sure a number of this project is.

Legend: S sequences (the clusters), O random sequence orders of a warm run, P policies, B bootstrap samples.
Everything is seeded: the same S, O, seed and sample count resample the same clusters, so any two quantities of a table
are paired. Ratios are of summed numerators and denominators, never means of ratios (semantics, section Statistics).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np

from rgpu.errors import InputError

CONFIDENCE = 0.95
SAMPLES = 2_000
PAIR_SAMPLES = 10_000  # a Holm correction over 100 pairs needs p-values well below 0.05 / 100
MIN_CLUSTERS = 8  # a percentile interval over fewer clusters is too narrow: the verdict is "cannot tell"
CANNOT_TELL = "cannot tell"


@dataclass(frozen=True, slots=True)
class Interval:
    """A point estimate with its confidence interval; `lo` and `hi` are NaN where fewer than two clusters exist."""

    estimate: float
    lo: float
    hi: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """`a` minus `b` on the same sequences. `p` is Holm-adjusted; `verdict` is "higher", "lower" or "cannot tell"."""

    a: str
    b: str
    difference: Interval
    p: float
    verdict: str


@lru_cache(maxsize=2)
def resamples(clusters: int, orders: int, samples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """`(order_B int64, counts_BS float64)`, read-only: for each sample one order, and how often each cluster was drawn.

    A pure function, remembered because one table asks for the same draws hundreds of times.
    """
    rng = np.random.default_rng([seed, clusters, orders])
    order_B = rng.integers(orders, size=samples)
    counts_BS = np.empty((samples, clusters))
    for start in range(0, samples, 1000):
        rows = min(1000, samples - start)
        drawn = rng.integers(clusters, size=(rows, clusters)) + clusters * np.arange(rows)[:, None]
        counts_BS[start : start + rows] = np.bincount(drawn.ravel(), minlength=rows * clusters).reshape(rows, clusters)
    order_B.flags.writeable = counts_BS.flags.writeable = False
    return order_B, counts_BS


def bootstrap_sums(values_XOS: np.ndarray, *, samples: int = SAMPLES, seed: int = 0) -> np.ndarray:
    """Sums of X quantities over resampled clusters, the same clusters for all of them: float64 [X, B]."""
    order_B, counts_BS = resamples(values_XOS.shape[2], values_XOS.shape[1], samples, seed)
    if values_XOS.shape[1] == 1:
        return np.asarray(values_XOS[:, 0] @ counts_BS.T)
    sums_XB = np.empty((values_XOS.shape[0], samples))
    for order in range(values_XOS.shape[1]):
        drawn = order_B == order
        sums_XB[:, drawn] = values_XOS[:, order] @ counts_BS[drawn].T
    return sums_XB


def interval_of(
    statistic: Callable[[np.ndarray], np.ndarray],
    values_XOS: np.ndarray,
    *,
    samples: int = SAMPLES,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> tuple[Interval, np.ndarray]:
    """Percentile interval of any function of X summed quantities (`[X, B] -> [B]`), with its distribution [B].

    `values_XOS` float [X, S] or [X, O, S]; the estimate is over all clusters (and all orders).
    """
    values = np.asarray(values_XOS, np.float64)
    if values.ndim == 2:
        values = values[:, None, :]
    if values.ndim != 3 or values.shape[2] == 0:
        raise InputError(
            f"cannot bootstrap: got values of shape {values.shape}, expected at least one sequence; add some"
        )
    with np.errstate(divide="ignore", invalid="ignore"):
        estimate = float(statistic(values.sum((1, 2))[:, None])[0])
        if values.shape[2] < 2:
            return Interval(estimate, np.nan, np.nan), np.full(samples, np.nan)
        draws_B = statistic(bootstrap_sums(values, samples=samples, seed=seed))
    known = draws_B[np.isfinite(draws_B)]
    if not len(known):
        return Interval(estimate, np.nan, np.nan), draws_B
    lo, hi = np.quantile(known, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(estimate, float(lo), float(hi)), draws_B


def ratio(sums_XB: np.ndarray) -> np.ndarray:
    """First quantity over the second."""
    return np.asarray(sums_XB[0] / sums_XB[1])


def ratio_difference(sums_XB: np.ndarray) -> np.ndarray:
    """`x0 / x1 - x2 / x3`."""
    return np.asarray(sums_XB[0] / sums_XB[1] - sums_XB[2] / sums_XB[3])


def gap_closed(sums_XB: np.ndarray) -> np.ndarray:
    """`(policy - baseline) / (optimum - baseline)` of three summed counts; NaN where there is no gap."""
    policy, baseline, optimum = sums_XB
    return np.asarray(np.where(optimum == baseline, np.nan, (policy - baseline) / (optimum - baseline)))


def bootstrap(numerators_S: np.ndarray, denominators_S: np.ndarray, **options: float) -> Interval:
    """Cluster bootstrap of `sum(numerators) / sum(denominators)` over sequences.

    Arrays [S], or [O, S] for a warm run over O random orders of the same sequences (one order is drawn a sample,
    clusters are resampled within it). Options: `samples`, `seed`, `confidence`. NaN where the denominators sum to zero.
    """
    return interval_of(ratio, np.stack(_aligned(numerators_S, denominators_S)), **options)[0]  # type: ignore[arg-type]


def paired_difference(
    numerators_a: np.ndarray,
    denominators_a: np.ndarray,
    numerators_b: np.ndarray,
    denominators_b: np.ndarray,
    *,
    margin: float = 0.0,
    samples: int = PAIR_SAMPLES,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> tuple[Interval, float]:
    """Ratio of `a` minus ratio of `b` on the same resampled sequences; the two-sided p-value of "within `margin`"."""
    values = np.stack(_aligned(numerators_a, denominators_a, numerators_b, denominators_b))
    result, draws_B = interval_of(ratio_difference, values, samples=samples, seed=seed, confidence=confidence)
    known = draws_B[np.isfinite(draws_B)]
    within_above = (1 + np.count_nonzero(known <= margin)) / (1 + len(known))
    within_below = (1 + np.count_nonzero(known >= -margin)) / (1 + len(known))
    return result, float(min(1.0, 2 * min(within_above, within_below)))


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Holm's step-down adjusted p-values, in the order given (Holm 1979)."""
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    adjusted = np.empty_like(p)
    adjusted[order] = stepped
    return adjusted


def verdict(difference: Interval, p: float, *, margin: float, clusters: int, alpha: float = 1 - CONFIDENCE) -> str:
    """ "higher" or "lower" where the interval clears the margin, `p` survived correction and clusters suffice."""
    if clusters < MIN_CLUSTERS or not p < alpha:
        return CANNOT_TELL
    if difference.lo > margin:
        return "higher"
    return "lower" if difference.hi < -margin else CANNOT_TELL


def compare(
    names: Sequence[str],
    numerators_POS: np.ndarray,
    denominators_POS: np.ndarray,
    *,
    margin: float,
    baseline: str | None = None,
    samples: int = PAIR_SAMPLES,
    seed: int = 0,
) -> list[Comparison]:
    """Every pair (or every policy against `baseline`), Holm-corrected over the pairs. Arrays [P, S] or [P, O, S]."""
    index = {name: i for i, name in enumerate(names)}
    pairs = [(n, baseline) for n in names if n != baseline] if baseline is not None else list(combinations(names, 2))
    raw = [
        paired_difference(
            numerators_POS[index[a]],
            denominators_POS[index[a]],
            numerators_POS[index[b]],
            denominators_POS[index[b]],
            margin=margin,
            samples=samples,
            seed=seed,
        )
        for a, b in pairs
    ]
    clusters = np.asarray(numerators_POS).shape[-1]
    adjusted = holm([p for _, p in raw])
    return [
        Comparison(a, b, d, float(p), verdict(d, float(p), margin=margin, clusters=clusters))
        for (a, b), (d, _), p in zip(pairs, raw, adjusted, strict=True)
    ]


def _aligned(*arrays: np.ndarray) -> list[np.ndarray]:
    cast = [np.asarray(a, np.float64) for a in arrays]
    if any(a.shape != cast[0].shape for a in cast):
        shapes = ", ".join(str(a.shape) for a in cast)
        raise InputError(f"cannot pair sequences: got shapes {shapes}, expected equal ones; score the same sequences")
    return cast
