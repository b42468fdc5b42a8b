"""Statistics of routing: how skewed expert popularity is, and how often a token reuses the experts of an earlier one.

Legend: N tokens, L MoE layers, K top-k, E experts, S sequences. Padding rows and ids "not recorded" never count.
"""

from collections.abc import Sequence

import numpy as np

from rgpu.traces.trace import PADDING, Trace

_CHUNK = 1 << 16


def _recorded(trace: Trace, start: int, stop: int) -> np.ndarray:
    """bool [n, L, K]: assignments of rows start..stop that are recorded and no padding."""
    known: np.ndarray = trace.expert_ids[start:stop] != trace.missing
    if trace.phase is not None:
        known &= (trace.phase[start:stop] != PADDING)[:, None, None]
    return known


def counts(trace: Trace) -> np.ndarray:
    """Assignments by layer and expert: int64 [L, E]."""
    layers, experts = trace.layers, trace.header.num_experts
    total = np.zeros(layers * experts, np.int64)
    base = (np.arange(layers, dtype=np.int32) * experts)[None, :, None]
    for start in range(0, trace.tokens, _CHUNK):
        stop = start + _CHUNK
        keys = trace.expert_ids[start:stop] + base
        total += np.bincount(keys[_recorded(trace, start, stop)], minlength=layers * experts)
    return total.reshape(layers, experts)


def popularity(trace: Trace) -> np.ndarray:
    """Share of a layer's assignments that each expert takes: float64 [L, E], rows sum to 1 (0: layer never seen)."""
    total = counts(trace)
    share: np.ndarray = total / np.maximum(total.sum(1, keepdims=True), 1)
    return share


def normalised_entropy(share_LE: np.ndarray) -> np.ndarray:
    """Entropy of popularity over its maximum log E: float64 [L]; 1 is uniform, 0 a single expert."""
    experts = share_LE.shape[1]
    if experts == 1:
        return np.zeros(len(share_LE))
    logs = np.log(share_LE, out=np.zeros_like(share_LE), where=share_LE > 0)
    entropy: np.ndarray = -(share_LE * logs).sum(1) / np.log(experts)
    return entropy


def top_share(share_LE: np.ndarray, fraction: float = 0.25) -> np.ndarray:
    """Share that the most popular `fraction` of experts (at least one) takes: float64 [L]."""
    width = max(1, round(fraction * share_LE.shape[1]))
    top: np.ndarray = np.sort(share_LE, axis=1)[:, -width:].sum(1)
    return top


def independence(share_LE: np.ndarray, top_k: int) -> np.ndarray:
    """Reuse if every token drew its experts from popularity alone: sum of (k p)^2 over k, float64 [L]."""
    value: np.ndarray = ((top_k * share_LE) ** 2).sum(1) / top_k
    return value


def reuse(trace: Trace, lags: Sequence[int] = (1, 2, 4, 8)) -> np.ndarray:
    """Share of a token's experts that the token `lag` before it in the same sequence used too: float64 [lags, L].

    Pairs never cross a sequence's boundary; NaN where no pair exists.
    """
    result = np.full((len(lags), trace.layers), np.nan)
    sequence_N = np.repeat(np.arange(trace.sequences), np.diff(trace.seq_offsets))
    for i, lag in enumerate(lags):
        same, pairs = np.zeros(trace.layers, np.int64), np.zeros(trace.layers, np.int64)
        for start in range(lag, trace.tokens, _CHUNK):
            stop = min(start + _CHUNK, trace.tokens)
            within = sequence_N[start:stop] == sequence_N[start - lag : stop - lag]
            now, before = trace.expert_ids[start:stop], trace.expert_ids[start - lag : stop - lag]
            earlier = _recorded(trace, start - lag, stop - lag).any(2)  # the earlier token is known in this layer
            counted = _recorded(trace, start, stop) & (within[:, None] & earlier)[:, :, None]
            hit = np.zeros(now.shape, bool)
            for k in range(before.shape[2]):
                hit |= now == before[:, :, k : k + 1]
            same += (hit & counted).sum((0, 2))
            pairs += counted.sum((0, 2))
        result[i] = np.divide(same, pairs, out=np.full(trace.layers, np.nan), where=pairs > 0)
    return result


def by_sequence(trace: Trace, values_N: np.ndarray) -> np.ndarray:
    """Sum of a per-token quantity over each sequence: [S], the cluster totals of a bootstrap."""
    sums: np.ndarray = np.add.reduceat(values_N, trace.seq_offsets[:-1])
    return sums
