"""How good a forecast is: every metric of `scores`, by layer, horizon and width, with sums a sequence.

Legend: P passes, L MoE layers, H rows of a forecast, E experts, K top-k, S sequences, N tokens, C cells.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from rgpu.errors import InputError
from rgpu.replay.scores import Tally, Target
from rgpu.replay.stream import routing_events, tell
from rgpu.traces.trace import DECODE, PADDING, Trace, batched

CHUNK = 4096  # passes scored together: bounds memory


def evaluate(
    predictor: Any,
    trace: Trace,
    widths: Sequence[int] | None = None,
    horizons: int = 4,
    events: bool = False,
    cells_N: np.ndarray | None = None,
) -> list[dict[str, Any]]:
    """Score a fitted predictor on every sequence of a batch-1 trace, reset at each; tidy rows, one metric each.

    A pass counts once, through the row the predictor speaks from (the decode row, or the last row of a prompt). A row
    has `layer` (the MoE layer forecast), `case` "layer" with `horizon` 1.. layers ahead or "token" with horizon 0 (same
    layer, next pass), `width` (experts named, most likely first, ties by lowest id; None where every chance counts),
    `cell`, `metric`, `value`, `count` (of forecasts) and per sequence `numerators`, `denominators` (float64 [S], for a
    cluster bootstrap; None for f1 and ece), `bins` (None but for ece: float64 [3, BINS, S], pairs, chances, routed).

    By width: `recall` share of the routed experts that were named; `precision` share of the named that were routed;
    `f1_micro` of the two; `accuracy` share of all experts rightly named or rightly not; `exact` share of forecasts naming
    all of them; `mass` recall weighted by gate weights (where the trace has weights); `miss_bytes` bytes of routed
    experts not named, a forecast (where it has sizes). Then `top1` the first named is the router's first; `f1`
    macro-averaged over experts at width K; `log_loss` nats a (token, expert) pair; `ece` expected calibration error; where
    the trace has router logits `tied`, the share of assignments that an unrouted expert's stored logit equals, and
    `ceiling`, the recall of ranking by the stored logits themselves.

    `widths` default K, K+2, 2K, 3K, 4K. `events`: step through observe/predict even where the predictor has
    `predict_trace` (same numbers, slower). `cells_N` int [N], 0 and up: a cell for each token of the trace, scored apart
    by the token that is forecast (below 0: left out). Raises `InputError` for batched traces, and passes with several
    decode rows.
    """
    if not trace.tokens:
        raise InputError("cannot score a forecast: got an empty trace; expected at least one token; use another")
    if batched(trace):
        raise InputError(
            "cannot score a forecast: got passes that mix sequences; expected batch 1; record with batch=1"
        )
    if cells_N is not None and (np.shape(cells_N) != (trace.tokens,) or np.max(cells_N) < 0):
        raise InputError(
            f"cannot score a forecast: got cells of shape {np.shape(cells_N)}; expected one for each of {trace.tokens} "
            "tokens, some of them 0 or more"
        )
    cells_N = np.zeros(trace.tokens, np.int64) if cells_N is None else np.asarray(cells_N, np.int64)
    cells = int(cells_N.max()) + 1
    top_k, experts = trace.header.top_k, trace.header.num_experts
    chosen = sorted(
        {w for w in (widths or (top_k, top_k + 2, 2 * top_k, 3 * top_k, 4 * top_k)) if w <= experts} | {top_k}
    )
    if chosen[0] < 1:
        raise InputError(f"cannot score a forecast: got width {chosen[0]}; expected 1 or more; change widths")
    tallies: dict[tuple[int, int], Tally] = {}
    for part, sequences, tokens in _chunks(trace):
        rows_P, sequence_P = speaking_passes(part)
        forecasts = (
            _by_event(predictor, part, rows_P, sequence_P) if events else _by_trace(predictor, part, rows_P, sequence_P)
        )
        for layer, probs_PHE, ahead_H in forecasts:
            for h in range(probs_PHE.shape[1]):
                horizon = 0 if ahead_H[h] else h + 1
                if horizon > horizons:
                    continue
                passes, at = _targets(part, rows_P, sequence_P, layer + horizon, horizon)
                cell_P = cells_N[tokens[at]]
                passes, at, cell_P = passes[cell_P >= 0], at[cell_P >= 0], cell_P[cell_P >= 0]
                key = (layer + horizon, horizon)
                if key not in tallies:
                    tallies[key] = Tally(chosen, experts, top_k, trace.sequences, cells)
                cluster_P = sequences[sequence_P[passes]] * cells + cell_P
                tallies[key].add(probs_PHE[passes, h], _target(part, at, layer + horizon, cluster_P, cell_P))
    sizes = trace.header.expert_bytes or [0] * trace.layers
    flags = (trace.weights is not None, trace.router_logits is not None)
    return [row for key in sorted(tallies) for row in tallies[key].rows(*key, *flags, sizes[key[0]])]


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


def _chunks(trace: Trace) -> Iterator[tuple[Trace, np.ndarray, np.ndarray]]:
    """Parts of whole sequences with about CHUNK rows, the numbers of their sequences, and of their tokens."""
    sizes = np.diff(trace.seq_offsets)
    group = np.cumsum(sizes) // CHUNK
    for number in np.unique(group):
        sequences = np.flatnonzero((group == number) & (sizes > 0))
        if len(sequences):
            spans = [np.arange(trace.seq_offsets[s], trace.seq_offsets[s + 1]) for s in sequences]
            yield trace.select(sequences), sequences, np.concatenate(spans)


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
    tell(predictor, part)
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
) -> tuple[np.ndarray, np.ndarray]:
    """Passes whose target exists and was recorded, and the token [P'] that each of their forecasts speaks of."""
    at_P = rows_P
    keep_P = np.ones(len(rows_P), bool)
    if horizon == 0:
        at_P = np.r_[rows_P[1:], rows_P[:1]]
        keep_P = np.r_[sequence_P[1:] == sequence_P[:-1], False]
    passes = np.flatnonzero(keep_P & (part.expert_ids[at_P, layer] < part.header.num_experts).all(1))
    return passes, at_P[passes]


def _target(part: Trace, at_P: np.ndarray, layer: int, cluster_P: np.ndarray, cell_P: np.ndarray) -> Target:
    ids_PK = part.expert_ids[at_P, layer].astype(np.int64)
    logits_PE = None if part.router_logits is None else part.router_logits[at_P, layer]
    if part.weights is None:
        return Target(ids_PK, None, logits_PE, cluster_P, cell_P)
    weights_PK = part.weights[at_P, layer].astype(np.float64)
    total_P1 = weights_PK.sum(1, keepdims=True)
    share_PK = np.divide(
        weights_PK, total_P1, out=np.full_like(weights_PK, 1 / weights_PK.shape[1]), where=total_P1 > 0
    )
    return Target(ids_PK, share_PK, logits_PE, cluster_P, cell_P)
