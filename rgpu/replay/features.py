"""What a policy's `on_event` sees beside ids and weights: one float32 vector an event, reduced in a fixed order.

"hidden": mean router input of the event's tokens. "router": the router's probabilities where logits were recorded, else
the gate weights of the routed experts (mean over tokens). "routing": the latter always. Live and replay share this code.
"""

from typing import Any

import numpy as np
from numba import njit

from rgpu.errors import TraceError
from rgpu.policies.calibration import routing_vectors

ROWS = 16384  # rows of a trace reduced at a time


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
    logits = trace.router_logits if kind == "router" else None
    width = trace.hidden.shape[2] if kind == "hidden" else experts
    out_GLF = np.empty((len(starts) - 1, trace.layers, width), np.float32)
    first = 0
    while first < len(out_GLF):  # as many passes as bring ROWS rows, or one
        last = max(first + 1, int(np.searchsorted(starts, starts[first] + ROWS, "right")) - 1)
        at, offs = order[starts[first] : starts[last]], starts[first : last + 1] - starts[first]
        part_GLF = out_GLF[first:last]
        if kind == "hidden":
            _each_rows(np.ascontiguousarray(trace.hidden[at], np.float32), offs, part_GLF)
        elif logits is not None:
            _each_softmax(np.ascontiguousarray(logits[at], np.float32), offs, part_GLF)
        else:
            given = (
                trace.weights[at].astype(np.float32) if trace.weights is not None else np.zeros((0, 1, 1), np.float32)
            )
            _each_routing(np.ascontiguousarray(trace.expert_ids[at]), given, offs, missing, part_GLF)
        first = last
    return out_GLF.reshape(-1, width)


@njit(cache=True, nogil=True)
def _each_rows(x_NLF, offs, out_GLF):  # type: ignore[no-untyped-def]
    """`mean_rows` of every pass and layer; pass g has rows offs[g] to offs[g + 1] of x."""
    for g in range(out_GLF.shape[0]):
        for layer in range(out_GLF.shape[1]):
            out_GLF[g, layer] = mean_rows(x_NLF[offs[g] : offs[g + 1], layer])


@njit(cache=True, nogil=True)
def _each_softmax(x_NLE, offs, out_GLE):  # type: ignore[no-untyped-def]
    for g in range(out_GLE.shape[0]):
        for layer in range(out_GLE.shape[1]):
            out_GLE[g, layer] = mean_softmax(x_NLE[offs[g] : offs[g + 1], layer])


@njit(cache=True, nogil=True)
def _each_routing(ids_NLK, weights_NLK, offs, missing, out_GLE):  # type: ignore[no-untyped-def]
    experts = out_GLE.shape[2]
    for g in range(out_GLE.shape[0]):
        for layer in range(out_GLE.shape[1]):
            a, b = offs[g], offs[g + 1]
            weights_TK = weights_NLK[a:b, layer] if weights_NLK.shape[0] else weights_NLK[:, 0]
            out_GLE[g, layer] = mean_routing(ids_NLK[a:b, layer], weights_TK, experts, missing)
