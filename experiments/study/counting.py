"""Rows counted straight from traces: popularity of experts, reuse between tokens."""

import numpy as np
import pyarrow as pa

from rgpu.results.rows import Context
from rgpu.traces import stats
from rgpu.traces.trace import Trace

LAGS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)


def popularity(context: Context, trace: Trace) -> list[pa.Table]:
    """Share of its layer's assignments that goes to each expert."""
    at = context.at(experiment="popularity", method="counted")
    counts_LE = stats.counts(trace)
    experts = np.arange(trace.header.num_experts)
    tables = []
    for layer, row in enumerate(counts_LE):
        total = float(row.sum())
        columns = {"layer": layer, "expert": experts, "numerator": row, "denominator": total}
        tables.append(at.rows("assignment_share", "share", row / total, **columns))
    return tables


def reuse(context: Context, trace: Trace) -> list[pa.Table]:
    """Share of a token's experts that the token `lag` before used too, beside independent draws from popularity."""
    at = context.at(experiment="reuse", method="counted")
    alone_L = stats.independence(stats.popularity(trace), trace.header.top_k)
    layers = np.arange(trace.layers)
    tables = []
    for lag, row_L in zip(LAGS, stats.reuse(trace, LAGS), strict=True):
        tables.append(at.rows("reuse", "share", row_L, layer=layers, lag=lag))
        tables.append(at.rows("reuse_independent", "share", alone_L, layer=layers, lag=lag))
    return tables
