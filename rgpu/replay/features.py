"""What a policy's `on_event` sees beside ids and weights: one float32 vector an event, reduced in a fixed order.

"hidden": mean router input of the event's tokens. "router": the router's probabilities where logits were recorded, else
the gate weights of the routed experts (mean over tokens). "routing": the latter always. Live and replay share this code.
"""

from typing import Any

import numpy as np
from numba import njit

from rgpu.errors import TraceError
from rgpu.policies.calibration import routing_vectors


@njit(cache=True, nogil=True)
def mean_rows(x_TF):  # type: ignore[no-untyped-def]
    """float32 [F]: mean over rows, summed in row order in float64."""
    total = np.zeros(x_TF.shape[1], np.float64)
    for t in range(x_TF.shape[0]):
        for d in range(x_TF.shape[1]):
            total[d] += x_TF[t, d]
    return (total / max(1, x_TF.shape[0])).astype(np.float32)


@njit(cache=True, nogil=True)
def mean_softmax(logits_TE):  # type: ignore[no-untyped-def]
    """float32 [E]: mean over rows of the softmax of each row."""
    tokens, experts = logits_TE.shape
    total = np.zeros(experts, np.float64)
    for t in range(tokens):
        top = -np.inf
        for e in range(experts):
            top = max(top, logits_TE[t, e])
        norm = 0.0
        for e in range(experts):
            norm += np.exp(logits_TE[t, e] - top)
        for e in range(experts):
            total[e] += np.exp(logits_TE[t, e] - top) / norm
    return (total / max(1, tokens)).astype(np.float32)


@njit(cache=True, nogil=True)
def mean_routing(ids_TK, weights_TK, experts, missing):  # type: ignore[no-untyped-def]
    """float32 [E]: gate weights scattered to their experts (1/k where there are none), mean over rows."""
    tokens, k = ids_TK.shape
    total = np.zeros(experts, np.float64)
    for t in range(tokens):
        for r in range(k):
            e = np.int64(ids_TK[t, r])
            if e != missing:
                total[e] += weights_TK[t, r] if weights_TK.shape[0] else 1.0 / k
    return (total / max(1, tokens)).astype(np.float32)


def available(wanted: str, trace: Any, who: str) -> str:
    """The form of the feature this trace can give: "hidden" falls back to "routing", "router" to the gate weights."""
    if wanted == "hidden":
        return "hidden" if trace.hidden is not None else "routing"
    if wanted == "router" and trace.router_logits is None and trace.weights is None:
        raise TraceError(
            f"policy {who} needs the array 'weights' or 'router_logits': got a trace with "
            f"{', '.join(trace.arrays())}; record it with weights, or choose another policy"
        )
    return wanted


def event_feature(
    kind: str, ids_TK: np.ndarray, weights_TK: np.ndarray, hidden_TD: Any, logits_TE: Any, experts: int, missing: int
) -> np.ndarray:
    """float32 [F] of one event; inputs are float32 values already rounded to what a trace stores."""
    if kind == "hidden":
        return mean_rows(hidden_TD)  # type: ignore[no-any-return]
    if kind == "router" and logits_TE is not None:
        return mean_softmax(logits_TE)  # type: ignore[no-any-return]
    return mean_routing(ids_TK, weights_TK, experts, missing)  # type: ignore[no-any-return]


def trace_features(kind: str, trace: Any, order: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """float32 [G * L, F] of consecutive passes, pass by pass and layer by layer, as `build_events` orders them."""
    if not kind:
        return np.zeros((1, 0), np.float32)
    missing, experts = trace.missing, trace.header.num_experts
    if len(starts) - 1 == starts[-1] - starts[0]:  # one token a pass: nothing to reduce
        at = order[starts[0] : starts[-1]]
        if kind == "hidden":
            return np.ascontiguousarray(trace.hidden[at], np.float32).reshape(-1, trace.hidden.shape[2])
        if kind != "router" or trace.router_logits is None:
            return np.stack([routing_vectors(trace, layer, at) for layer in range(trace.layers)], 1).reshape(
                -1, experts
            )
    rows = []
    empty = np.zeros((0, trace.header.top_k), np.float32)
    for g in range(len(starts) - 1):
        at = order[starts[g] : starts[g + 1]]
        hidden = trace.hidden[at].astype(np.float32) if kind == "hidden" else None
        logits = (
            trace.router_logits[at].astype(np.float32) if kind == "router" and trace.router_logits is not None else None
        )
        weights = trace.weights[at].astype(np.float32) if trace.weights is not None else None
        for layer in range(trace.layers):
            rows.append(
                event_feature(
                    kind, np.ascontiguousarray(trace.expert_ids[at, layer]),
                    empty if weights is None else np.ascontiguousarray(weights[:, layer]),
                    None if hidden is None else np.ascontiguousarray(hidden[:, layer]),
                    None if logits is None else np.ascontiguousarray(logits[:, layer]), experts, missing,
                )
            )  # fmt: skip
    return np.stack(rows) if rows else np.zeros((1, 0), np.float32)
