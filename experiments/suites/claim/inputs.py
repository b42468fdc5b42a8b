"""Traces for the claims: the reference model's with every hidden state, and gpt-oss-20b's routing.

The shipped traces hold token ids but (for size) no hidden states. Reading the recorded text through the model once gives
them back: the router's input at every token and layer, whole sequences at a time. The recorded experts are kept; how many
of them the states just read would route to again is measured and reported. Legend: N tokens, L MoE layers, D hidden.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from rgpu.errors import InputError
from rgpu.experiments.loading import load_model
from rgpu.predictors.gate_lookahead import read_routers
from rgpu.traces.moe_layers import moe_layers
from rgpu.traces.split import split
from rgpu.traces.storage import load_trace
from rgpu.traces.trace import Trace

GPT_OSS = "traces/gpt-oss-20b_decode_mixedqa_w.npz"


@dataclass(frozen=True, slots=True)
class Material:
    """A trace cut once: `calibration` and `scored` share no document. `agreement`: share of recorded experts that the
    re-read hidden states route to as well (None where nothing was re-read)."""

    name: str
    source: str
    whole: Trace
    calibration: Trace
    scored: Trace
    agreement: float | None = None


def read_hidden(model: Any, trace: Trace) -> np.ndarray:
    """float16 [N, L, D]: input of every router for the recorded tokens, each sequence read in one pass."""
    layers = moe_layers(model)
    tokens = trace.require("token_ids", "reading hidden states back")
    width = int(layers[0].router.weight.shape[1])
    hidden = np.empty((trace.tokens, len(layers), width), np.float16)
    span = slice(0, 0)

    def keep(index: int) -> Any:
        def hook(_module: Any, args: tuple[Any, ...]) -> None:
            hidden[span, index] = args[0].reshape(-1, width).to(torch.float16).numpy()

        return hook

    handles = [layer.router.register_forward_pre_hook(keep(i)) for i, layer in enumerate(layers)]
    try:
        with torch.inference_mode():
            for s in tqdm(range(trace.sequences), desc="hidden states", unit="text", disable=None):
                span = slice(int(trace.seq_offsets[s]), int(trace.seq_offsets[s + 1]))
                model(input_ids=torch.as_tensor(tokens[span], dtype=torch.long)[None], use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return hidden


def with_hidden(model: Any, folder: str, trace: Trace) -> tuple[Trace, float]:
    """The trace with hidden states and router logits read back, and the share of experts they agree on."""
    hidden = read_hidden(model, trace)
    weight_LED, bias_LE = read_routers(folder)
    logits = np.empty((trace.tokens, trace.layers, trace.header.num_experts), np.float16)
    same = 0
    for layer in range(trace.layers):
        scores = hidden[:, layer].astype(np.float32) @ weight_LED[layer].T + bias_LE[layer]
        logits[:, layer] = scores
        top = np.argpartition(-scores, trace.header.top_k - 1, axis=1)[:, : trace.header.top_k]
        same += int((trace.expert_ids[:, layer, :, None] == top[:, None, :]).sum())
    return replace(trace, hidden=hidden, router_logits=logits), same / trace.expert_ids.size


def halves(
    name: str, source: str, trace: Trace, agreement: float | None = None, sequences: int | None = None
) -> Material:
    """Calibration and scored halves by document; at most `sequences` of each."""
    parts = split(trace)
    if not len(parts.calibration) or not len(parts.scored):
        raise InputError(f"trace {name}: got too few documents to calibrate on some and score others; record more")
    calibration, scored = (trace.select(ids[:sequences]) for ids in (parts.calibration, parts.scored))
    return Material(name, source, trace, calibration, scored, agreement)


@dataclass(frozen=True, slots=True)
class Inputs:
    """What the claims are tested on. `switch`: A to B and A to B to A texts; what calibrates for it is disjoint from
    its documents. `routing` is gpt-oss-20b's trace, None where it is not there."""

    reference: Material
    switch: Material
    routing: Material | None


def gather(model_folder: str, traces: str, shared: str, sequences: int | None) -> Inputs:
    """Load and complete everything; `sequences` bounds each half of each trace (None: all)."""
    model, _ = load_model(model_folder)
    torch.set_num_threads(1)  # small matrices: a second thread costs more than it gives
    recorded = load_trace(Path(traces) / "reference.safetensors")
    if sequences:
        recorded = recorded.select(np.arange(min(recorded.sequences, 4 * sequences)))
    whole, agreement = with_hidden(model, model_folder, recorded)
    source = "rgpu reference model, sampled continuations of held-out prompts; hidden states read back from the text"
    reference = halves("reference", source, whole, agreement, sequences)
    moving = load_trace(Path(traces) / "reference_switch.safetensors")
    if sequences:
        moving = moving.select(np.arange(min(moving.sequences, 2 * sequences)))
    moving, moved = with_hidden(model, model_folder, moving)
    used = {d for s in moving.header.sequences for d in s["document"]}
    free = [i for i, s in enumerate(whole.header.sequences) if s["document"] not in used]
    if sequences:
        free = free[:sequences]
    text = "rgpu reference model reading held-out text token by token (not on-policy); hidden states read back"
    switch = Material("reference_switch", text, moving, whole.select(np.array(free)), moving, moved)
    path = Path(shared) / GPT_OSS
    routing = None
    if path.exists():
        trace = load_trace(path)
        if sequences:
            few = np.random.default_rng(0).permutation(trace.sequences)[: 2 * sequences]
            trace = trace.select(np.sort(few))
        routing = halves(
            "gpt-oss-20b",
            "openai/gpt-oss-20b decode on mixed QA, routing only, no prefill recorded "
            "(AmanPriyanshu/GPT-OSS-MoE-ExpertFingerprinting, Apache-2.0)",
            trace,
        )
    return Inputs(reference, switch, routing)
