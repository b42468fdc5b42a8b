"""What gate look-ahead may know of the way from one router to the next, and what it takes of checkpoint and trace.

A router's input is x_l = n_l * w_l: the residual stream after attention, scaled to unit mean square (n_l), times the
norm's weight. Forms: `raw` applies router m to x_l. The others apply it to (n_l + added) * w_m:
- `next_norm` adds nothing; exact but for what the layers between add to the stream.
- `quasi_hidden` adds the mean expert output of layers l..m-1, `quasi_hidden_routed` for layer l the gate-weighted means
  of the experts that were just routed (Speculating Experts, arXiv 2603.19289, "default vectors").
- `two_step` adds the output of layer l's shared expert, computed exactly (JustVugg/colibri pull request 204).
Approximated, in all: attention between the layers is left out, and the sum is not normed again (which would scale a
row's logits, not reorder them). A trace stores x_l, which hides the length of the stream that outputs are added to:
one scale a layer is fitted by least squares of n_{l+1} on n_l and the layer's real output, on calibration rows.

Legend: N rows, L MoE layers, E experts, K top-k, D hidden size, I intermediate size.
"""

from pathlib import Path

import numpy as np

from rgpu.contracts import LinearForecast
from rgpu.errors import InputError
from rgpu.predictors.checkpoint_parts import LayerParts
from rgpu.predictors.hidden import linear_reference
from rgpu.traces.trace import PADDING, Trace

FROM_TRACE = ("quasi_hidden", "quasi_hidden_routed", "two_step")
FORMS = ("raw", "next_norm", *FROM_TRACE)
ROWS = 1024  # calibration rows whose expert outputs are computed, evenly spaced
SHARED = ("mlp.shared_expert", "mlp.shared_experts")
SHARED_PARTS = ("gate_LDI", "up_LDI", "down_LID", "chance_LD2")
ONE, FAR = np.float32(1), np.float32(80)


def form_tensors(form: str, model: str | Path, trace: Trace | None) -> dict[str, np.ndarray]:
    """What a form needs beside the routers: `norm_LD`; then `mean_LD`, `expert_mean_LED` or the shared experts' weights,
    and the `scale_L` that outputs are added with. `InputError` where the checkpoint lacks a part."""
    if form == "raw":
        return {}
    why = f"gate_lookahead's form {form}"
    parts = LayerParts.of(model)
    norm_LD = parts.norms(why)
    if not norm_LD.all():
        raise InputError(f"{model} has a norm weight of 0: {why} cannot undo it; choose form raw")
    if form == "next_norm" or trace is None:
        return {"norm_LD": norm_LD}
    rows = _rows(trace)
    hidden_NLD = trace.require("hidden", why)[rows].astype(np.float32)
    if form == "two_step":
        return {"norm_LD": norm_LD, **_shared(parts, hidden_NLD, norm_LD, why)}
    weights_NLK = None if trace.weights is None else trace.weights[rows].astype(np.float32)
    found = _means(parts, hidden_NLD, trace.expert_ids[rows], weights_NLK, norm_LD, trace.header.num_experts)
    if form == "quasi_hidden":
        del found["expert_mean_LED"]
    return {"norm_LD": norm_LD, **found}


def _rows(trace: Trace) -> np.ndarray:
    real = np.arange(trace.tokens) if trace.phase is None else np.flatnonzero(trace.phase != PADDING)
    return real[np.unique(np.linspace(0, len(real) - 1, min(ROWS, len(real))).astype(np.int64))]


def _means(
    parts: LayerParts, hidden_NLD: np.ndarray, ids_NLK: np.ndarray, weights_NLK: np.ndarray | None,
    norm_LD: np.ndarray, experts: int,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Mean output of every expert over the rows routed to it, [L, E, D] (of one never routed: the mean over routed pairs),
    of the whole layer a row, [L, D], and `scale_L`; 0 for the last layer, which nothing follows."""
    rows, layers, size = hidden_NLD.shape
    mean_LED, mean_LD = np.zeros((layers, experts, size), np.float32), np.zeros((layers, size), np.float32)
    scale_L = np.zeros(layers, np.float32)
    for layer in range(layers - 1):
        output_ND, seen_E = np.zeros((rows, size), np.float32), np.zeros(experts, np.int64)
        for expert in np.unique(ids_NLK[:, layer]):
            if expert >= experts:  # not recorded
                continue
            at_P, rank_P = np.nonzero(ids_NLK[:, layer] == expert)
            y_PD = gated(hidden_NLD[at_P, layer], *parts.gated(layer, f"mlp.experts.{expert}", "form quasi_hidden"))
            mean_LED[layer, expert], seen_E[expert] = y_PD.mean(0), len(at_P)
            share_P = np.full(len(at_P), 1 / ids_NLK.shape[2], np.float32)
            share_P = share_P if weights_NLK is None else weights_NLK[at_P, layer, rank_P]
            output_ND[at_P] += share_P[:, None] * y_PD
        mean_LED[layer, seen_E == 0] = seen_E @ mean_LED[layer] / max(1, seen_E.sum())
        mean_LD[layer], scale_L[layer] = output_ND.mean(0), _scale(hidden_NLD, output_ND, norm_LD, layer)
    return {"mean_LD": mean_LD, "expert_mean_LED": mean_LED, "scale_L": scale_L}


def _shared(parts: LayerParts, hidden_NLD: np.ndarray, norm_LD: np.ndarray, why: str) -> dict[str, np.ndarray]:
    found = [name for name in SHARED if f"{parts.prefixes[0]}{name}.up_proj.weight" in parts.where]
    if not found:
        raise InputError(
            f"{parts.folder} has no shared experts: {why} needs them; choose form raw, next_norm or quasi_hidden"
        )
    layers = range(len(parts.prefixes))
    weights = [parts.gated(layer, found[0], why) for layer in layers]
    chance = [f"{prefix}mlp.shared_expert_gate.weight" for prefix in parts.prefixes]
    # without a gate of its own the shared expert always counts whole
    chance_LD = [parts.get(n, why)[0] if n in parts.where else np.full(norm_LD.shape[1], np.nan) for n in chance]
    gates, ups, downs = (np.ascontiguousarray(np.stack(w).transpose(0, 2, 1)) for w in zip(*weights, strict=True))
    chance_LD2 = np.stack([np.stack(chance_LD)] * 2, 2).astype(np.float32)
    stacked = {
        "shared_gate_LDI": gates,
        "shared_up_LDI": ups,
        "shared_down_LID": downs,
        "shared_chance_LD2": chance_LD2,
    }
    nothing = np.zeros(gates.shape[2], np.float32), np.zeros(gates.shape[1], np.float32)
    scales = []
    for layer in layers:
        gate_DI, up_DI, down_ID, chance_D2 = (array[layer] for array in stacked.values())
        output_ND = shared_output(hidden_NLD[:, layer], gate_DI, up_DI, down_ID, chance_D2, nothing, linear_reference)
        scales.append(_scale(hidden_NLD, output_ND, norm_LD, layer))
    return stacked | {"scale_L": np.array(scales, np.float32)}


def _scale(hidden_NLD: np.ndarray, output_ND: np.ndarray, norm_LD: np.ndarray, layer: int) -> np.float32:
    """How long the layer's output is beside n_l: least squares of n_{l+1} = a n_l + b output gives b / a, never below 0;
    the last layer, which nothing follows, gets 0."""
    if layer + 1 == len(norm_LD):
        return np.float32(0)
    now_X, after_X = ((hidden_NLD[:, i] / norm_LD[i]).ravel().astype(np.float64) for i in (layer, layer + 1))
    both_X2 = np.stack([now_X, output_ND.ravel().astype(np.float64)], 1)
    (a, b), *_ = np.linalg.lstsq(both_X2, after_X, rcond=None)
    return np.float32(max(0.0, b / a) if a > 0 else 0.0)


def gated(x_ND: np.ndarray, gate_ID: np.ndarray, up_ID: np.ndarray, down_DI: np.ndarray) -> np.ndarray:
    """A gated expert with silu, float32 [N, D]; for calibration, where the order of sums does not matter."""
    gate_NI = x_ND @ gate_ID.T
    hidden: np.ndarray = gate_NI / (ONE + np.exp(np.minimum(-gate_NI, FAR))) * (x_ND @ up_ID.T)
    return hidden @ down_DI.T


def shared_output(
    x_ND: np.ndarray, gate_DI: np.ndarray, up_DI: np.ndarray, down_ID: np.ndarray, chance_D2: np.ndarray,
    nothing: tuple[np.ndarray, np.ndarray], apply_by: LinearForecast,
) -> np.ndarray:  # fmt: skip
    """The shared expert's output times the sigmoid of its gate (NaN: no gate), float32 [N, D], through `apply_by` in a
    fixed order of sums. `chance_D2` is the gate twice: one column alone would be summed in pairs. `nothing`: biases of 0
    for [I] and [D]."""
    none_I, none_D = nothing
    gate_NI = apply_by(x_ND, gate_DI, none_I)
    hidden_NI = gate_NI / (ONE + np.exp(np.minimum(-gate_NI, FAR))) * apply_by(x_ND, up_DI, none_I)
    y_ND = apply_by(hidden_NI, down_ID, none_D)
    if np.isnan(chance_D2[0, 0]):
        return y_ND
    return y_ND / (ONE + np.exp(np.minimum(-apply_by(x_ND, chance_D2, none_D[:2])[:, :1], FAR)))


def routed_mean(mean_ED: np.ndarray, experts_NK: np.ndarray, weights_NK: np.ndarray | None) -> np.ndarray:
    """Gate-weighted sum of the means of routed experts, in rank order; ids outside 0..E-1 add nothing: float32 [N, D]."""
    added_ND = np.zeros((len(experts_NK), mean_ED.shape[1]), np.float32)
    for k in range(experts_NK.shape[1]):
        ids_N = experts_NK[:, k].astype(np.int64)
        known_N = (ids_N >= 0) & (ids_N < len(mean_ED))
        share_N = np.full(len(ids_N), 1 / experts_NK.shape[1], np.float32) if weights_NK is None else weights_NK[:, k]
        added_ND += np.where(known_N, share_N, np.float32(0))[:, None] * mean_ED[np.where(known_N, ids_N, 0)]
    return added_ND
