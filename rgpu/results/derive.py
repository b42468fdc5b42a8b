"""Rows that follow from other rows: share of a gap closed, and each policy against LRU with a verdict.

Legend: P policies, O sequence orders, S sequences. Reads only `capacity_sweep` rows; everything is paired by sequence.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from rgpu.results.rows import SCHEMA, frame, table
from rgpu.results.statistics import SAMPLES, Interval, compare, gap_closed, interval_of

BASELINE = "lru"
MARGIN = 0.005  # a difference counts beyond this share of accesses (hits), or this many loads per access of a token
KINDS = {
    "lru": "demand",
    "fifo": "demand",
    "lfu": "demand",
    "random": "demand",
    "ring": "proactive",
    "on_demand": "staged",
    "static_hot": "proactive",
    "rotary": "proactive",
    "router_lag": "proactive",
}  # for rows that do not say; only "demand" (always admits, loads nothing ahead) has Belady's hit rate as its bound
OFFLINE = {"belady": "clairvoyant", "size_aware_farthest": "clairvoyant", "belady_bypass": "bound"}  # whatever rows say
CEILINGS = ("bound", "clairvoyant")  # kinds that could not run: never contenders
_POINT = ["model", "trace", "scope", "reset", "slots", "capacity_share"]
_COUNTED = ["policy", "kind", "metric", "sequence", "order", "numerator", "denominator"]
_NUMBERS = {"slots", "capacity_share", "sequence", "order", "numerator", "denominator"}
_KEPT = [
    "trace_tokens", "source", "synthetic", "simulated", "method", "staging",
    "seed", "config_hash", "commit", "versions", "hardware", "date",
]  # fmt: skip


def kind_of(traits: Any) -> str:
    """The `kind` column of a policy from its traits (`rgpu.policies.policy.Traits`)."""
    if traits.bound:
        return "bound"
    if traits.needs_future:
        return "clairvoyant"
    if not traits.demand:
        return "proactive"
    return "staged" if traits.staging else "demand"


def kinds_of(policies: Iterable[Any], said: Iterable[Any]) -> dict[str, str]:
    """The kind of each policy: known offline ones by name, else what its rows say, else what is known of it, else ""."""
    kinds = {str(p): k for p, k in zip(policies, said, strict=True)}
    return {p: OFFLINE.get(p) or (k if isinstance(k, str) else KINDS.get(p, "")) for p, k in kinds.items()}


def complete(rows: pd.DataFrame) -> pd.DataFrame:
    """`rows` with the derived rows of `capacity_sweep`, of pairs and of the gap added where the table has none yet."""
    from rgpu.results import gap_rows, pairs  # they build on this module

    metrics, experiments = set(rows["metric"]), set(rows["experiment"])
    parts = []
    if not {"gap_closed", "load_gap_closed", "hit_rate_difference"} & metrics:
        parts.append(derive(rows))
    if pairs.EXPERIMENT not in experiments:
        parts.append(pairs.pair_rows(rows))
    if gap_rows.EXPERIMENT not in experiments:
        parts.append(gap_rows.gap_rows(rows))
    parts = [part for part in parts if part.num_rows]
    if not parts:
        return rows
    whole = pd.concat([rows, *(frame(part) for part in parts)], ignore_index=True)
    return whole.astype({f.name: "category" for f in SCHEMA if pa.types.is_string(f.type)})


def derive(rows: pd.DataFrame) -> pa.Table:
    """Rows of `gap_closed`, `load_gap_closed`, `hit_rate_difference` and `loads_per_token_difference`, to append."""
    sweep = rows[(rows["experiment"] == "capacity_sweep") & rows["domain"].isna()]
    plain = {c: sweep[c].astype(float if c in _NUMBERS else object) for c in (*_POINT, *_COUNTED)}
    parts: list[pa.Table] = []
    for _, point in pd.DataFrame(plain).groupby(_POINT, dropna=False):
        hits, loads = counts_of(point, "hit_rate"), counts_of(point, "loads_per_token")
        own = sweep.loc[point.drop_duplicates("policy").index, [*_POINT, *_KEPT, "policy", "kind"]]
        first = {str(r["policy"]): r for r in own.to_dict("records")}
        kinds = kinds_of(point["policy"], point["kind"])
        demand = [p for p in hits if kinds[p] == "demand"]
        parts += _gap(first, hits, "gap_closed", "belady", demand)
        parts += _gap(first, loads, "load_gap_closed", "belady_bypass", list(loads))
        parts += _differences(first, kinds, hits, "hit_rate", "share", MARGIN)
        if BASELINE in hits and BASELINE in loads:
            per_token = hits[BASELINE][1].sum() / loads[BASELINE][1].sum()
            parts += _differences(first, kinds, loads, "loads_per_token", "loads/token", MARGIN * per_token)
    return pa.concat_tables(parts) if parts else SCHEMA.empty_table()


def counts_of(
    point: pd.DataFrame, metric: str, like: str | None = BASELINE
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Numerators and denominators [O, S] by policy: one a sequence where the rows have them, else the totals [1, 1].

    Only policies scored on the same sequences as `like` are kept (None: as most of them are).
    """
    found = point[(point["metric"] == metric) & point["numerator"].notna()]
    if (each := found[found["sequence"].notna()]).empty:
        each = found.assign(sequence=0)
    cells: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    keys: dict[str, Any] = {}
    for policy, own in each.assign(order=each["order"].fillna(0)).groupby("policy"):
        own = own.drop_duplicates(["order", "sequence"], keep="last").sort_values(["order", "sequence"])
        orders, sequences = own["order"].nunique(), own["sequence"].nunique()
        if len(own) != orders * sequences:
            continue
        keys[str(policy)] = (orders, tuple(own["sequence"]))
        shape = (orders, sequences)
        numerators, denominators = own["numerator"].to_numpy(float), own["denominator"].to_numpy(float)
        cells[str(policy)] = (numerators.reshape(shape), denominators.reshape(shape))
    shared = keys.get(like) if like is not None else Counter(keys.values()).most_common(1)[0][0] if keys else None
    return {p: c for p, c in cells.items() if keys[p] == shared}


def _gap(
    first: dict[str, dict[Any, Any]],
    counts: dict[str, tuple[np.ndarray, np.ndarray]],
    metric: str,
    optimum: str,
    policies: list[str],
) -> Iterator[pa.Table]:
    if BASELINE not in counts or optimum not in counts:
        return
    for policy in policies:
        if policy in (BASELINE, optimum):
            continue
        values = np.stack([counts[p][0] for p in (policy, BASELINE, optimum)])
        found, _ = interval_of(gap_closed, values, samples=SAMPLES)
        if np.isfinite(found.estimate):
            yield _row(first[policy], policy, metric, "share of gap", found, baseline=f"{BASELINE}..{optimum}")


def _differences(
    first: dict[str, dict[Any, Any]],
    kinds: dict[str, str],
    counts: dict[str, tuple[np.ndarray, np.ndarray]],
    metric: str,
    unit: str,
    margin: float,
) -> Iterator[pa.Table]:
    names = [p for p in counts if kinds[p] not in CEILINGS]
    if BASELINE not in names or len(names) < 2:
        return
    numerators, denominators = (np.stack([counts[p][i] for p in names]) for i in (0, 1))
    for found in compare(names, numerators, denominators, margin=margin, baseline=BASELINE):
        extra = {"baseline": BASELINE, "p_value": found.p, "verdict": found.verdict, "count": numerators.shape[-1]}
        yield _row(first[found.a], found.a, f"{metric}_difference", unit, found.difference, **extra)


def _row(own: dict[Any, Any], policy: str, metric: str, unit: str, found: Interval, **extra: Any) -> pa.Table:
    fixed = {c: None if pd.isna(own[c]) else own[c] for c in (*_POINT, *_KEPT, "kind")}
    value = {"value": found.estimate, "lo": found.lo, "hi": found.hi}
    return table(
        {**fixed, "experiment": "capacity_sweep", "policy": policy, "metric": metric, "unit": unit, **value, **extra}
    )
