"""What policies learn from a calibration trace. Legend: E experts, F feature width, N tokens, K top-k."""

from typing import Any

import numpy as np

from rgpu.errors import TraceError


def routing_vectors(trace: Any, layer: int, rows: Any) -> np.ndarray:
    """float32 [n, E]: gate weights scattered to their experts (1/k each where the trace has no weights)."""
    ids = trace.expert_ids[rows, layer].astype(np.int64)
    n, k = ids.shape
    given = trace.weights
    values = np.full((n, k), 1.0 / k, np.float32) if given is None else given[rows, layer].astype(np.float32)
    dense = np.zeros((n, trace.header.num_experts + 1), np.float32)
    ids = np.where(ids == trace.missing, trace.header.num_experts, ids)
    np.put_along_axis(dense, ids, values, axis=1)
    return dense[:, :-1]


def mean_inputs(trace: Any, layer: int, feature: str, chunk: int = 8192) -> np.ndarray:
    """float64 [E, F]: mean feature of the tokens routed to each expert, centred on the layer's mean, of length 1.

    `feature` is "hidden" or "routing". An expert no token was routed to gets zeros.
    """
    experts = trace.header.num_experts
    width = trace.hidden.shape[2] if feature == "hidden" else experts
    total_EF, count_E = np.zeros((experts, width)), np.zeros(experts)
    mean_F, tokens = np.zeros(width), 0
    for start in range(0, trace.tokens, chunk):
        rows = slice(start, start + chunk)
        routed_NE = routing_vectors(trace, layer, rows) > 0
        x_NF = routing_vectors(trace, layer, rows) if feature == "routing" else trace.hidden[rows, layer]
        x_NF = np.asarray(x_NF, np.float64)
        total_EF += routed_NE.T.astype(np.float64) @ x_NF
        count_E += routed_NE.sum(0)
        mean_F += x_NF.sum(0)
        tokens += len(x_NF)
    if not tokens:
        raise TraceError("calibration: got an empty split; expected at least one sequence; lower calibration.share")
    centred_EF = total_EF / np.maximum(count_E, 1)[:, None] - mean_F / tokens
    centred_EF[count_E == 0] = 0.0
    length_E = np.linalg.norm(centred_EF, axis=1, keepdims=True)
    return np.divide(centred_EF, length_E, out=np.zeros_like(centred_EF), where=length_E > 0)


def activation_maps(trace: Any) -> np.ndarray:
    """float64 [S, L, E]: share of each sequence's uses in each layer that went to each expert (0 where nothing ran)."""
    maps = np.zeros((trace.sequences, trace.layers, trace.header.num_experts + 1))
    for s in range(trace.sequences):
        rows = slice(int(trace.seq_offsets[s]), int(trace.seq_offsets[s + 1]))
        for layer in range(trace.layers):
            ids = trace.expert_ids[rows, layer].ravel().astype(np.int64)
            ids[ids == trace.missing] = trace.header.num_experts
            maps[s, layer] = np.bincount(ids, minlength=maps.shape[2])
    maps = maps[:, :, :-1]
    return maps / np.maximum(maps.sum(axis=2, keepdims=True), 1)  # type: ignore[no-any-return]


def domain_rows(trace: Any, domain: str, who: str) -> np.ndarray:
    """bool [N]: tokens of the sequences whose header says `domain`. Raises TraceError if there are none."""
    named = [str(meta.get("domain", "")) for meta in trace.header.sequences]
    if domain not in named:
        known = ", ".join(sorted(set(named) - {""})) or "none"
        raise TraceError(
            f"policy {who} needs sequences of domain {domain!r} in the header's 'sequences': got domains {known} in the "
            "calibration split; choose one of them, or another policy"
        )
    return np.repeat(np.asarray(named) == domain, np.diff(trace.seq_offsets))
