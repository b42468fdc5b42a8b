"""What is said of a predictor: every metric at a width and horizon, by layer, domain and distance from a topic switch, the
difference between two predictors, and rows of results. The counting itself is `rgpu.replay.scores`.

Legend: S sequences, N tokens.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from rgpu.errors import InputError
from rgpu.replay.prediction import evaluate
from rgpu.replay.scores import Row, calibration_statistic, over_layers, ratio
from rgpu.results.rows import Context
from rgpu.results.statistics import Interval, bootstrap, interval_of, paired_difference
from rgpu.traces.split import documents_of, origins, sharing
from rgpu.traces.trace import Trace

METRICS: dict[str, tuple[str, str]] = {  # of `evaluate`: (metric, unit) of result rows (docs/results.md)
    "recall": ("recall", "share"),
    "precision": ("precision", "share"),
    "f1_micro": ("f1_micro", "f1"),
    "accuracy": ("accuracy", "share"),
    "exact": ("exact_match", "share"),
    "mass": ("mass_recall", "share"),
    "miss_bytes": ("miss_bytes", "bytes/token"),
    "top1": ("top1", "share"),
    "f1": ("f1", "f1"),
    "log_loss": ("log_loss", "nats/pair"),
    "ece": ("ece", "share"),
    "tied": ("tied", "share"),
    "ceiling": ("ceiling", "share"),
}
DISTANCES = (-40, 0, 4, 8, 16, 32, 64)  # tokens from a switch; a cell from each to the next, the last one open


def pick(rows: Sequence[Row], **wanted: Any) -> list[Row]:
    """The rows whose columns have these values."""
    return [r for r in rows if all(r[name] == value for name, value in wanted.items())]


def interval(row: Row) -> Interval:
    """Cluster bootstrap over the row's sequences; without any where it is not a function of summed counts (f1)."""
    if row["bins"] is not None:
        statistic, values_XS = calibration_statistic(row["bins"][:, :, row["bins"][0].sum(0) > 0])
        if values_XS.shape[1]:
            return interval_of(statistic, values_XS)[0]
    if row["numerators"] is None or not (kept := row["denominators"] > 0).any():
        return Interval(row["value"], np.nan, np.nan)
    return bootstrap(row["numerators"][kept], row["denominators"][kept])


def difference(one: Row, other: Row, margin: float = 0.0) -> tuple[Interval, float]:
    """(value of `one` less that of `other` on the same resampled sequences, p-value of "within the margin")."""
    for row in (one, other):
        if row["numerators"] is None:
            raise InputError(
                f"cannot compare {row['metric']}: got a value that is no ratio of sums; expected another metric, such as recall"
            )
    counts = (one["numerators"], one["denominators"], other["numerators"], other["denominators"])
    return paired_difference(*counts, margin=margin)


def of_sequences(rows: Sequence[Row], which_S: np.ndarray) -> list[Row]:
    """The same rows counted over some sequences (bool [S]); f1, which is no sum over sequences, is left out."""
    out = []
    for row in rows:
        if row["bins"] is not None:
            bins = row["bins"][:, :, which_S]
            statistic, values_XS = calibration_statistic(bins)
            value = float(statistic(values_XS.sum(1)[:, None])[0])
            out.append(row | {"bins": bins, "value": value})
        elif row["numerators"] is not None:
            sums = {name: row[name][which_S] for name in ("numerators", "denominators")}
            out.append(row | sums | {"value": ratio(sums["numerators"], sums["denominators"])})
    return out


def domains_of(trace: Trace) -> np.ndarray:
    """Domain of every sequence, "" where the trace does not say."""
    metas = trace.header.sequences or [{}] * trace.sequences
    return np.array([str(meta.get("domain") or "") for meta in metas])


def by_domain(rows: Sequence[Row], trace: Trace) -> dict[str, list[Row]]:
    """Rows of each domain; of the trace that was scored."""
    domain_S = domains_of(trace)
    return {str(name): of_sequences(rows, domain_S == name) for name in sorted(set(domain_S)) if name}


def switch_cells(trace: Trace) -> np.ndarray:
    """int64 [N]: which of `DISTANCES` a token's distance from its topic switch falls into; -1 for tokens further before.

    A token belongs to the last switch before it, or to the first one where none is; tokens without a switch get -1.
    """
    cell_N = np.full(trace.tokens, -1, np.int64)
    for s, meta in enumerate(trace.header.sequences):
        switches = np.asarray(meta.get("switches") or [], np.int64)
        if not len(switches):
            continue
        start, stop = int(trace.seq_offsets[s]), int(trace.seq_offsets[s + 1])
        token_N = np.arange(stop - start)
        own_N = switches[np.maximum(np.searchsorted(switches, token_N, side="right") - 1, 0)]
        cell_N[start:stop] = np.searchsorted(DISTANCES, token_N - own_N, side="right") - 1
    return cell_N


def cell_name(cell: int) -> str:
    """Tokens from the switch, as people read them: "-40..-1", "0..3", "64..".."""
    last = f"{DISTANCES[cell + 1] - 1}" if cell + 1 < len(DISTANCES) else ""
    return f"{DISTANCES[cell]}..{last}"


def around_switches(
    predictor: Any, trace: Trace, calibrating: Trace, horizons: int, widths: Sequence[int] | None = None
) -> tuple[list[Row], list[str]]:
    """(rows by cell over all layers, documents that were left out because the predictor was fitted on them)."""
    part, cells_N, left = unseen_switches(trace, calibrating)
    return over_layers(evaluate(predictor, part, widths, horizons, cells_N=cells_N)), left


def unseen_switches(trace: Trace, calibrating: Trace) -> tuple[Trace, np.ndarray, list[str]]:
    """(sequences that share no document or content with what calibrates, `switch_cells` of their tokens, documents that both
    traces name); `InputError` where nothing is left, or no switch."""
    known = origins(calibrating)
    free = np.flatnonzero(~sharing(trace, known))
    if not len(free):
        raise InputError(
            "switches: got no text that shares nothing with the calibration half; expected some; use another"
        )
    part = trace.select(free)
    cells_N = switch_cells(part)
    if (cells_N < 0).all():
        raise InputError(
            "switches: got a trace whose header names no topic switch; expected reference_switch or one like it"
        )
    return part, cells_N, sorted({d for meta in trace.header.sequences for d in documents_of(meta)} & known)


def summary(rows: Sequence[Row], width: int, experts: int, top_k: int, bins: bool = False) -> dict[str, Any]:
    """Every metric at one width, by horizon, of rows of one layer or pooled over layers: value and 95 % interval; null
    where not counted. With `bins` what the calibration error is made of."""
    out: dict[str, Any] = {}
    for horizon in sorted({r["horizon"] for r in rows}):
        own = {
            r["metric"]: r for r in pick(rows, horizon=horizon) if r["width"] in (width, None) or r["metric"] == "top1"
        }
        said = out[horizon_name(horizon)] = {name: _said(own.get(name)) for name in METRICS}
        said["accuracy_of_naming_none"] = round(1 - top_k / experts, 4)
        if bins:
            said["reliability"] = reliability(own["ece"]) if "ece" in own else None
    return out


def details(rows: Sequence[Row], scored: Trace, width: int) -> dict[str, Any]:
    """Summaries of everything (`all`, over layers), by layer and by domain, of the rows of `evaluate` on `scored`."""
    sizes = (width, scored.header.num_experts, scored.header.top_k)
    domains = by_domain(rows, scored)
    return {
        "all": summary(over_layers(rows), *sizes, bins=True),
        "by_layer": {n: summary(pick(rows, layer=n), *sizes) for n in range(scored.layers)},
        "by_domain": {name: summary(over_layers(own), *sizes) for name, own in domains.items()},
    }


def reliability(row: Row) -> list[dict[str, float | int]]:
    """Bins of an `ece` row that hold any pair: how many, their mean chance, and the share that was routed."""
    count_B, chances_B, routed_B = row["bins"].sum(2)
    seen = np.flatnonzero(count_B)
    return [
        {"pairs": int(count_B[b]), "chance": round(chances_B[b] / count_B[b], 4), "routed": round(routed_B[b] / count_B[b], 4)}
        for b in seen
    ]  # fmt: skip


def horizon_name(horizon: int) -> str:
    """What a summary calls a horizon."""
    return f"{horizon}" if horizon else "next_token"


def _said(row: Row | None) -> dict[str, float | None] | None:
    if row is None:
        return None
    found = interval(row)
    digits = 1 if row["metric"] == "miss_bytes" else 5
    sure = np.isfinite(found.lo)
    lo, hi = (round(v, digits) if sure else None for v in (found.lo, found.hi))
    return {"value": round(row["value"], digits), "lo": lo, "hi": hi}


def result_rows(at: Context, row: Row, **columns: Any) -> pa.Table:
    """One row of `evaluate` (or pooled) as a row of results, with its interval."""
    horizon = row["horizon"] or None
    fixed = {"case": row["case"], "width": row["width"], "layer": row["layer"], "horizon": horizon}
    fixed |= {"lag": None if horizon else 1} | columns
    metric, unit = METRICS[row["metric"]]
    if row["numerators"] is None:
        found = interval(row)
        return at.rows(metric, unit, found.estimate, lo=found.lo, hi=found.hi, count=row["count"], **fixed)
    keep = row["denominators"] > 0
    if not keep.any():
        return at.rows(metric, unit, np.nan, count=0, **fixed)
    return at.ratio(metric, row["numerators"][keep], row["denominators"][keep], unit=unit, keep=False, **fixed)
