"""Hidden states of a recorded trace, read back from its text.

The shipped traces hold token ids but (for size) no hidden states. Reading the recorded text through the model once gives
them back: the router's input at every token and layer, whole sequences at a time. The recorded experts are kept; how many
of them the states just read would route to again is measured and reported. Legend: N tokens, L MoE layers, D hidden.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from rgpu.predictors.gate_lookahead import read_routers
from rgpu.traces.moe_layers import moe_layers
from rgpu.traces.trace import Trace


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


def route(folder: str, hidden_NLD: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """(router logits float16 [N, L, E], experts int64 [N, L, K] in rank order) of router inputs."""
    weight_LED, bias_LE = read_routers(folder)
    layers, experts = weight_LED.shape[:2]
    logits = np.empty((len(hidden_NLD), layers, experts), np.float16)
    chosen = np.empty((len(hidden_NLD), layers, top_k), np.int64)
    for layer in range(layers):
        scores = hidden_NLD[:, layer].astype(np.float32) @ weight_LED[layer].T + bias_LE[layer]
        logits[:, layer] = scores
        chosen[:, layer] = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
    return logits, chosen


def with_hidden(model: Any, folder: str, trace: Trace) -> tuple[Trace, float]:
    """The trace with hidden states and router logits read back, and the share of experts they agree on."""
    hidden = read_hidden(model, trace)
    logits, chosen = route(folder, hidden, trace.header.top_k)
    same = int((trace.expert_ids[:, :, :, None] == chosen[:, :, None, :]).sum())
    return replace(trace, hidden=hidden, router_logits=logits), same / trace.expert_ids.size
