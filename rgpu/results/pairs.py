"""Every policy against every other at one capacity: "better", "worse" or "cannot tell".

Legend: P policies, O sequence orders, S sequences, B bootstrap samples. Any metric that is a ratio of summed numerators
and denominators is compared, paired by order and sequence, and Holm-corrected over all pairs of one table (one metric at
one point). Bounds and clairvoyant policies are not contenders.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from rgpu.results.derive import CEILINGS, MARGIN, counts_of, kinds_of
from rgpu.results.rows import SCHEMA, table
from rgpu.results.statistics import (
    CANNOT_TELL,
    CONFIDENCE,
    PAIR_SAMPLES,
    Interval,
    bootstrap_sums,
    holm,
    verdict,
)

EXPERIMENT = "pair_difference"
BETTER, WORSE = "better", "worse"
HIGHER_IS_BETTER = frozenset({"hit_rate", "prefetch_hit_rate", "tokens_per_s"})
DEMAND_ONLY = frozenset({"hit_rate"})  # a pool that loads ahead shows hits that cost loads: hits do not rank it
METRICS = ("hit_rate", "loads_per_token", "bytes_per_token", "tpot")
POINT = ("model", "trace", "scope", "reset", "slots", "capacity_share", "case", "batch", "machine", "miss")
KEPT = (
    *("trace_tokens", "source", "synthetic", "simulated", "method"),
    *("seed", "config_hash", "commit", "versions", "hardware", "date"),
)
_NUMBERS = {"slots", "capacity_share", "sequence", "order", "numerator", "denominator"}


@dataclass(frozen=True, slots=True)
class Pair:
    """`a` against `b`: the difference `a - b`, its Holm-adjusted p, and what it means for `a`."""

    a: str
    b: str
    difference: Interval
    p: float
    verdict: str


def contenders(kinds: dict[str, str]) -> list[str]:
    """Policies that could run: bounds and clairvoyants left out."""
    return [p for p in kinds if kinds[p] not in CEILINGS]


def samples_for(pairs: int) -> int:
    """Bootstrap samples such that a pair that always wins survives Holm's correction twice over."""
    needed = 2 * 2 * pairs / (1 - CONFIDENCE)
    return PAIR_SAMPLES * max(1, int(np.ceil(needed / PAIR_SAMPLES)))


def compare_pairs(
    names: Sequence[str],
    numerators_POS: np.ndarray,
    denominators_POS: np.ndarray,
    *,
    margin: float,
    higher_is_better: bool,
    against: str | None = None,
    seed: int = 0,
) -> list[Pair]:
    """Every pair of policies, or every policy as `b` beside `a = against`. Arrays [P, S] or [P, O, S].

    One table: all pairs share the resamples and one Holm correction over them.
    """
    numerators, denominators = (np.asarray(x, np.float64) for x in (numerators_POS, denominators_POS))
    if numerators.ndim == 2:
        numerators, denominators = numerators[:, None], denominators[:, None]
    index = {name: i for i, name in enumerate(names)}
    pairs = list(combinations(names, 2)) if against is None else [(against, n) for n in names if n != against]
    if not pairs:
        return []
    clusters, single = numerators.shape[2], numerators.shape[2] < 2
    with np.errstate(divide="ignore", invalid="ignore"):
        point_P = numerators.sum((1, 2)) / denominators.sum((1, 2))
        ratios_PB = None if single else _ratios(numerators, denominators, samples_for(len(pairs)), seed)
    found: list[tuple[Interval, float]] = []
    for a, b in pairs:
        estimate = float(point_P[index[a]] - point_P[index[b]])
        if ratios_PB is None:
            found.append((Interval(estimate, np.nan, np.nan), 1.0))
            continue
        draws_B = ratios_PB[index[a]] - ratios_PB[index[b]]
        draws_B = draws_B[np.isfinite(draws_B)]
        lo, hi = np.quantile(draws_B, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]) if len(draws_B) else (np.nan,) * 2
        within = min(np.count_nonzero(draws_B <= margin), np.count_nonzero(draws_B >= -margin))
        found.append((Interval(estimate, float(lo), float(hi)), min(1.0, 2 * (1 + within) / (1 + len(draws_B)))))
    adjusted = holm([p for _, p in found])
    words = {"higher": BETTER if higher_is_better else WORSE, "lower": WORSE if higher_is_better else BETTER}
    return [
        Pair(a, b, d, float(p), words.get(verdict(d, float(p), margin=margin, clusters=clusters), CANNOT_TELL))
        for (a, b), (d, _), p in zip(pairs, found, adjusted, strict=True)
    ]


def _ratios(numerators_POS: np.ndarray, denominators_POS: np.ndarray, samples: int, seed: int) -> np.ndarray:
    """float64 [P, B]: ratio of sums in every resample; drawn in batches, so that memory does not grow with the pairs."""
    batches = []
    for batch in range(-(-samples // PAIR_SAMPLES)):
        options: dict[str, int] = {"samples": PAIR_SAMPLES, "seed": seed + batch}
        batches.append(bootstrap_sums(numerators_POS, **options) / bootstrap_sums(denominators_POS, **options))
    return np.concatenate(batches, axis=1)


def margin_of(metric: str, numerators_PXX: np.ndarray, denominators_PXX: np.ndarray, accesses: float | None) -> float:
    """What difference counts: 0.5 % of accesses for hits, as many loads of a token; else 0.5 % of the metric's median."""
    if metric == "hit_rate":
        return MARGIN
    if metric == "loads_per_token" and accesses is not None:
        return MARGIN * accesses
    ratios_P = numerators_PXX.sum((1, 2)) / denominators_PXX.sum((1, 2))
    return MARGIN * float(np.median(ratios_P))


def pair_rows(
    rows: pd.DataFrame,
    *,
    metrics: Sequence[str] = METRICS,
    against: str | None = None,
    experiment: str = EXPERIMENT,
    source: str = "capacity_sweep",
) -> pa.Table:
    """Rows of `experiment` for every point and metric of the `source` rows: metric, unit, policy a, baseline b, value a - b,
    lo, hi, p_value, verdict. `against` compares one policy with each other only."""
    chosen = rows[(rows["experiment"] == source) & rows["domain"].isna() & rows["metric"].isin(list(metrics))]
    columns = (*POINT, "policy", "kind", "metric", "unit", "sequence", "order", "numerator", "denominator")
    plain = pd.DataFrame({c: chosen[c].astype(float if c in _NUMBERS else object) for c in columns})
    parts: list[pa.Table] = []
    for _, point in plain.groupby(list(POINT), dropna=False):
        fixed = fixed_of(chosen, point.index[0])
        parts += _point(point, fixed, metrics, against, experiment)
    return pa.concat_tables(parts) if parts else SCHEMA.empty_table()


def fixed_of(rows: pd.DataFrame, index: Any) -> dict[Any, Any]:
    """The columns that a derived row takes over from a row it follows from."""
    own: dict[Any, Any] = rows.loc[index, [*POINT, *KEPT]].to_dict()
    return {c: None if pd.isna(v) else v for c, v in own.items()}


def _point(
    point: pd.DataFrame, fixed: dict[Any, Any], metrics: Sequence[str], against: str | None, experiment: str
) -> Iterator[pa.Table]:
    kinds = kinds_of(point["policy"], point["kind"])
    accesses = None
    for metric in metrics:
        cells = counts_of(point, metric, against)
        if metric == "hit_rate" and cells:
            denominators = next(iter(cells.values()))[1]
            loads = counts_of(point, "loads_per_token", against)
            if loads:
                accesses = float(denominators.sum() / next(iter(loads.values()))[1].sum())
        names = [p for p in contenders(kinds) if p in cells]
        if metric in DEMAND_ONLY:
            names = [p for p in names if kinds[p] == "demand"]
        if len(names) < 2 or (against is not None and against not in names):
            continue
        numerators, denominators = (np.stack([cells[p][i] for p in names]) for i in (0, 1))
        if numerators.shape[1:] == (1, 1) and point["sequence"].notna().any():
            continue  # totals beside metrics with sequences: bytes at one expert size say nothing that loads do not
        found = compare_pairs(
            names, numerators, denominators, margin=margin_of(metric, numerators, denominators, accesses),
            higher_is_better=metric in HIGHER_IS_BETTER, against=against,
        )  # fmt: skip
        unit = str(point.loc[point["metric"] == metric, "unit"].iloc[0])
        yield table(
            {
                **fixed, "experiment": experiment, "metric": metric, "unit": unit, "count": numerators.shape[-1],
                "policy": [p.a for p in found], "kind": [kinds[p.a] for p in found], "baseline": [p.b for p in found],
                "value": np.array([p.difference.estimate for p in found]),
                "lo": np.array([p.difference.lo for p in found]), "hi": np.array([p.difference.hi for p in found]),
                "p_value": np.array([p.p for p in found]), "verdict": [p.verdict for p in found],
            }
        )  # fmt: skip
