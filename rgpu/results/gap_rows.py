"""Rows of the gap decomposition, from the rows of a capacity sweep that holds both kinds of Belady.

Legend: O sequence orders, S sequences. Parts and their meaning: `rgpu.replay.gaps`.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from rgpu.replay.gaps import decompose
from rgpu.results.derive import counts_of, kinds_of
from rgpu.results.pairs import POINT, contenders, fixed_of
from rgpu.results.rows import SCHEMA, table
from rgpu.results.statistics import interval_of, ratio

EXPERIMENT = "gap_decomposition"
METRIC = "loads_per_token"
BYPASS, FORCED, COLD = "belady_bypass", "belady", "cold_per_token"
_NUMBERS = {"slots", "capacity_share", "sequence", "order", "numerator", "denominator"}


def gap_rows(rows: pd.DataFrame) -> pa.Table:
    """Rows of `gap_decomposition`: one a policy, point and part (`case`), loads per token with an interval."""
    chosen = rows[(rows["experiment"] == "capacity_sweep") & rows["domain"].isna() & rows["slots"].notna()]
    chosen = chosen[chosen["metric"].isin([METRIC, COLD])]
    columns = (*POINT, "policy", "kind", "metric", "sequence", "order", "numerator", "denominator")
    plain = pd.DataFrame({c: chosen[c].astype(float if c in _NUMBERS else object) for c in columns})
    parts: list[pa.Table] = []
    for _, point in plain.groupby(list(POINT), dropna=False):
        fixed = fixed_of(chosen, point.index[0])
        parts += _point(point, fixed)
    return pa.concat_tables(parts) if parts else SCHEMA.empty_table()


def _point(point: pd.DataFrame, fixed: dict[Any, Any]) -> Iterator[pa.Table]:
    loads, cold = counts_of(point, METRIC, BYPASS), counts_of(point, COLD, BYPASS)
    if not {BYPASS, FORCED} <= set(loads) or BYPASS not in cold:
        return
    tokens, first_uses = loads[BYPASS][1], cold[BYPASS][0]
    if first_uses.shape != tokens.shape:
        return
    kinds = kinds_of(point["policy"], point["kind"])
    for policy in (p for p in contenders(kinds) if p in loads):
        found = decompose(loads[policy][0], first_uses, loads[BYPASS][0], loads[FORCED][0],
                          divides=kinds[policy] == "demand")  # fmt: skip
        for name, part in found.parts():
            value, _ = interval_of(ratio, np.stack([part, tokens]))
            yield table(
                {
                    **fixed, "experiment": EXPERIMENT, "policy": policy, "kind": kinds[policy], "metric": METRIC,
                    "unit": "loads/token", "case": name, "value": value.estimate, "lo": value.lo, "hi": value.hi,
                    "numerator": part.sum(), "denominator": tokens.sum(), "count": tokens.shape[-1],
                }
            )  # fmt: skip
