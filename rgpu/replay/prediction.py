"""How good a forecast is: recall, exact match, gate mass and F1, by layer, horizon and width, with sums a sequence.

What the field calls "accuracy" is at least four things; each has its own name here. Legend: P passes, L MoE layers,
H rows of a forecast, E experts, K top-k, W widths, S sequences.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rgpu.errors import InputError
from rgpu.replay.stream import routing_events
from rgpu.traces.trace import DECODE, PADDING, Trace, batched

CHUNK = 4096  # passes scored together: bounds memory
RATIOS = ("recall", "exact", "mass")


@dataclass(slots=True)
class Tally:
    """Sums of one forecast row over all passes: numerators [W, S] of each ratio, counts, and F1's parts [E]."""

    sums: dict[str, np.ndarray]
    count_S: np.ndarray
    top1_S: np.ndarray
    hit_E: np.ndarray
    named_E: np.ndarray
    true_E: np.ndarray


def evaluate(
    predictor: Any, trace: Trace, widths: Sequence[int] | None = None, horizons: int = 4, events: bool = False
) -> list[dict[str, Any]]:
    """Score a fitted predictor on every sequence of a batch-1 trace, reset at each; tidy rows, one metric each.

    A pass counts once, through the row the predictor speaks from (the decode row, or the last row of a prompt). A row
    has `layer` (the MoE layer forecast), `case` "layer" with `horizon` 1.. layers ahead or "token" with horizon 0 (same
    layer, next pass), `width` (experts named, most likely first, ties by lowest id), `metric`, `value`, `count` (of
    forecasts) and per sequence `numerators`, `denominators` (float64 [S], for a cluster bootstrap; None for f1).
    Metrics: `recall` share of the routed experts that were named; `exact` share of forecasts naming all of them; `mass`
    recall weighted by gate weights (where the trace has weights); `top1` the first named is the router's first; `f1`
    macro-averaged over experts at width K.
    `widths` default K, K+2, 2K, 3K, 4K. `events`: step through observe/predict even where the predictor has
    `predict_trace` (same numbers, slower). Raises `InputError` for batched traces, and passes with several decode rows.
    """
    if not trace.tokens:
        raise InputError("cannot score a forecast: got an empty trace; expected at least one token; use another")
    if batched(trace):
        raise InputError(
            "cannot score a forecast: got passes that mix sequences; expected batch 1; record with batch=1"
        )
    top_k, experts = trace.header.top_k, trace.header.num_experts
    chosen = sorted(
        {w for w in (widths or (top_k, top_k + 2, 2 * top_k, 3 * top_k, 4 * top_k)) if w <= experts} | {top_k}
    )
    if chosen[0] < 1:
        raise InputError(f"cannot score a forecast: got width {chosen[0]}; expected 1 or more; change widths")
    tallies: dict[tuple[int, int], Tally] = {}
    for part, sequences in _chunks(trace):
        rows_P, sequence_P = speaking_passes(part)
        forecasts = (
            _by_event(predictor, part, rows_P, sequence_P) if events else _by_trace(predictor, part, rows_P, sequence_P)
        )
        for layer, probs_PHE, ahead_H in forecasts:
            for h in range(probs_PHE.shape[1]):
                horizon = 0 if ahead_H[h] else h + 1
                if horizon > horizons:
                    continue
                tally = tallies.setdefault((layer + horizon, horizon), _empty(chosen, trace))
                target = _targets(part, rows_P, sequence_P, layer + horizon, horizon)
                _score(tally, probs_PHE[target[0], h], *target[1:], sequences[sequence_P[target[0]]], chosen, top_k)
    return [
        row for key in sorted(tallies) for row in _rows(*key, tallies[key], chosen, top_k, trace.weights is not None)
    ]


def over_layers(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same rows pooled over layers (`layer` None): sums added; f1 averaged."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["case"], row["horizon"], row["metric"], row["width"]), []).append(row)
    pooled = []
    for members in groups.values():
        row = members[0] | {"layer": None, "count": sum(m["count"] for m in members)}
        if row["numerators"] is None:
            row["value"] = float(np.mean([m["value"] for m in members]))
        else:
            row["numerators"] = np.sum([m["numerators"] for m in members], axis=0)
            row["denominators"] = np.sum([m["denominators"] for m in members], axis=0)
            row["value"] = _ratio(row["numerators"], row["denominators"])
        pooled.append(row)
    return pooled


def speaking_passes(trace: Trace) -> tuple[np.ndarray, np.ndarray]:
    """Row and sequence of each pass of a batch-1 trace, sequence by sequence, pass by pass: int64 [P] both."""
    sequence_N = np.repeat(np.arange(trace.sequences), np.diff(trace.seq_offsets))
    phase_N = np.zeros(trace.tokens, np.uint8) if trace.phase is None else trace.phase
    real = np.flatnonzero(phase_N != PADDING)
    order = real[np.lexsort((real, trace.passes[real], sequence_N[real]))]
    last = np.ones(len(order), bool)
    last[:-1] = (trace.passes[order][1:] != trace.passes[order][:-1]) | (
        sequence_N[order][1:] != sequence_N[order][:-1]
    )
    if ((phase_N[order] == DECODE) & ~last).any():
        raise InputError("cannot score a forecast: got passes of several decoded tokens; expected one token a pass")
    rows_P = order[last]
    return rows_P, sequence_N[rows_P]


def _chunks(trace: Trace) -> Iterator[tuple[Trace, np.ndarray]]:
    """Parts of whole sequences with about CHUNK rows, and the numbers of their sequences."""
    sizes = np.diff(trace.seq_offsets)
    group = np.cumsum(sizes) // CHUNK
    for number in np.unique(group):
        sequences = np.flatnonzero((group == number) & (sizes > 0))
        if len(sequences):
            yield trace.select(sequences), sequences


def _by_trace(
    predictor: Any, part: Trace, rows_P: np.ndarray, sequence_P: np.ndarray
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(layer, probs [P, H, E], tokens ahead [H]) layer by layer."""
    if not hasattr(predictor, "predict_trace"):
        yield from _by_event(predictor, part, rows_P, sequence_P)
        return
    first_P = np.r_[True, sequence_P[1:] != sequence_P[:-1]]
    for layer in range(part.layers):
        _, ahead_H = predictor.targets(layer)
        yield layer, predictor.predict_trace(part, layer, rows_P, first_P), ahead_H


def _by_event(
    predictor: Any, part: Trace, rows_P: np.ndarray, sequence_P: np.ndarray
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    made: list[list[np.ndarray]] = [[] for _ in range(part.layers)]
    ahead: list[np.ndarray] = [np.zeros(0, np.int64)] * part.layers
    passes = 0
    for event in routing_events(part):
        if event.phase_T is not None and (event.phase_T == PADDING).all():
            continue
        if event.layer == 0:
            if passes == 0 or sequence_P[passes] != sequence_P[passes - 1]:
                predictor.reset()
            passes += 1
        predictor.observe(event)
        forecast = predictor.predict()
        made[event.layer].append(forecast.probs_HE)
        ahead[event.layer] = forecast.tokens_ahead
    for layer in range(part.layers):
        yield layer, np.stack(made[layer]), ahead[layer]


def _targets(
    part: Trace, rows_P: np.ndarray, sequence_P: np.ndarray, layer: int, horizon: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Passes whose target exists and was recorded, their routed experts [P', K] and gate shares [P', K]."""
    at_P = rows_P
    keep_P = np.ones(len(rows_P), bool)
    if horizon == 0:
        at_P = np.r_[rows_P[1:], rows_P[:1]]
        keep_P = np.r_[sequence_P[1:] == sequence_P[:-1], False]
    ids_PK = part.expert_ids[at_P, layer]
    passes = np.flatnonzero(keep_P & (ids_PK < part.header.num_experts).all(1))
    if part.weights is None:
        return passes, ids_PK[passes].astype(np.int64), None
    weights_PK = part.weights[at_P[passes], layer].astype(np.float64)
    total_P1 = weights_PK.sum(1, keepdims=True)
    share_PK = np.divide(
        weights_PK, total_P1, out=np.full_like(weights_PK, 1 / weights_PK.shape[1]), where=total_P1 > 0
    )
    return passes, ids_PK[passes].astype(np.int64), share_PK


def _empty(widths: list[int], trace: Trace) -> Tally:
    shape, experts = (len(widths), trace.sequences), trace.header.num_experts
    zeros = [np.zeros(experts, np.int64) for _ in range(3)]
    return Tally({name: np.zeros(shape) for name in RATIOS}, np.zeros(shape[1]), np.zeros(shape[1]), *zeros)


def _score(
    tally: Tally, probs_PE: np.ndarray, ids_PK: np.ndarray, share_PK: np.ndarray | None, sequence_P: np.ndarray,
    widths: list[int], top_k: int,
) -> None:  # fmt: skip
    passes, experts = probs_PE.shape
    sequences = len(tally.count_S)
    true_PE = np.zeros((passes, experts), bool)
    np.put_along_axis(true_PE, ids_PK, True, axis=1)
    named_PW = np.argsort(-probs_PE, axis=1, kind="stable")[:, : widths[-1]]
    found_PW = np.take_along_axis(true_PE, named_PW, axis=1)
    hits_PW = np.cumsum(found_PW, axis=1)
    mass_PW = None
    if share_PK is not None:
        share_PE = np.zeros((passes, experts))
        np.put_along_axis(share_PE, ids_PK, share_PK, axis=1)
        mass_PW = np.cumsum(np.take_along_axis(share_PE, named_PW, axis=1), axis=1)
    for i, width in enumerate(widths):
        hits_P = hits_PW[:, width - 1]
        tally.sums["recall"][i] += np.bincount(sequence_P, hits_P, sequences)
        tally.sums["exact"][i] += np.bincount(sequence_P, hits_P == top_k, sequences)
        if mass_PW is not None:
            tally.sums["mass"][i] += np.bincount(sequence_P, mass_PW[:, width - 1], sequences)
    tally.count_S += np.bincount(sequence_P, minlength=sequences)
    tally.top1_S += np.bincount(sequence_P, named_PW[:, 0] == ids_PK[:, 0], sequences)
    named = named_PW[:, :top_k]
    tally.hit_E += np.bincount(named[found_PW[:, :top_k]], minlength=experts)
    tally.named_E += np.bincount(named.ravel(), minlength=experts)
    tally.true_E += np.bincount(ids_PK.ravel(), minlength=experts)


def _rows(
    layer: int, horizon: int, tally: Tally, widths: list[int], top_k: int, weighted: bool
) -> Iterator[dict[str, Any]]:
    count = int(tally.count_S.sum())
    common = {"layer": layer, "case": "layer" if horizon else "token", "horizon": horizon, "count": count}

    def row(metric: str, width: int, numerators: np.ndarray, denominators: np.ndarray) -> dict[str, Any]:
        sums = {"numerators": numerators, "denominators": denominators}
        return common | {"metric": metric, "width": width, "value": _ratio(numerators, denominators)} | sums

    for metric in RATIOS:
        if metric == "mass" and not weighted:
            continue
        for i, width in enumerate(widths):
            denominators = tally.count_S * (top_k if metric == "recall" else 1)
            yield row(metric, width, tally.sums[metric][i], denominators)
    yield row("top1", 1, tally.top1_S, tally.count_S)
    both_E = tally.named_E + tally.true_E
    f1_E = np.divide(2 * tally.hit_E, both_E, out=np.zeros(len(both_E)), where=both_E > 0)
    value = float(f1_E.mean()) if count else float("nan")
    yield common | {"metric": "f1", "width": top_k, "value": value, "numerators": None, "denominators": None}


def _ratio(numerators: np.ndarray, denominators: np.ndarray) -> float:
    total = float(denominators.sum())
    return float(numerators.sum()) / total if total else float("nan")
