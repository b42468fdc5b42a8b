"""Gate look-ahead: the routers of the next layers applied to the current router's input; nothing is trained.

Source: Eliseev and Mazur 2023 (arXiv 2312.17238, section 3.2, "speculative loading"); Fate (arXiv 2502.12224) and
MoE-APEX (arXiv 2411.01433, figure 8) measure it. It works because residual streams change slowly from layer to layer.
Without training the current hidden says nothing better about the next token than the current layer's own router, so
that row is its output: the top-k is what was just routed, continued beyond k by the near misses.
"""

import json
import re
from pathlib import Path
from typing import Any, Self

import numpy as np
from safetensors import SafetensorError, safe_open

from rgpu.errors import InputError
from rgpu.predictors.base import Schema
from rgpu.predictors.hidden import HiddenPredictor, top_k_share
from rgpu.traces.split import Split
from rgpu.traces.trace import Trace

ROUTER = re.compile(r"layers\.(\d+)\.(?:mlp\.gate|mlp\.router|block_sparse_moe\.gate)\.weight$")


class GateLookahead(HiddenPredictor):
    """Probabilities are K times the softmax of the router's logits, at most 1. Needs hidden states.

    `model`: transformers checkpoint directory whose routers are read (softmax top-k routers without selection bias).
    `fit` without a trace takes everything from that directory.
    """

    name = "gate_lookahead"
    learns = False

    def __init__(self, model: str | Path = "assets/reference", horizon: int = 4) -> None:
        super().__init__(horizon)
        self.model = str(model)

    def fit(self, trace: Trace | None = None, split: Split | None = None, checkpoint: Path | None = None) -> Self:
        if trace is not None:
            return super().fit(trace, split, checkpoint)
        self._check_parameters()
        weight_LED, bias_LE = read_routers(self.model)
        layers, experts, hidden = weight_LED.shape
        top_k = int(_config(Path(self.model))["num_experts_per_tok"])
        self.schema_ = Schema(self.model, "", layers, experts, top_k, hidden)
        self.tensors_ = {"router_LED": weight_LED, "bias_LE": bias_LE}
        self.reset()
        return self

    def _fit(self, part: Trace, checkpoint: Path | None) -> dict[str, np.ndarray]:
        weight_LED, bias_LE = routers_of(self.model, self.schema_)
        return {"router_LED": weight_LED, "bias_LE": bias_LE}

    def _map(self, layer: int) -> tuple[np.ndarray, np.ndarray]:
        layers, _ = self.targets(layer)
        weight_MD = self.tensors_["router_LED"][layers].reshape(-1, self.schema_.hidden)
        return weight_MD.T, self.tensors_["bias_LE"][layers].ravel()

    def _activate(self, logits_NHE: np.ndarray) -> np.ndarray:
        return top_k_share(logits_NHE, self.schema_.top_k)


def routers_of(model: str | Path, own: Schema) -> tuple[np.ndarray, np.ndarray]:
    """`read_routers`, or `InputError` where they have another shape than the trace that `own` describes."""
    weight_LED, bias_LE = read_routers(model)
    if weight_LED.shape != (own.layers, own.experts, own.hidden):
        layers, experts, hidden = weight_LED.shape
        raise InputError(
            f"{model} has routers of {layers} layers x {experts} experts x {hidden}, "
            f"the trace of {own.model} {own.layers} x {own.experts} x {own.hidden}; "
            "set predictor.model to the trace's model"
        )
    return weight_LED, bias_LE


def read_routers(model: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Router weights float32 [L, E, D] and biases [L, E] (0 where there are none) of a checkpoint, in layer order.

    Reads only those tensors, of one file or of shards, bf16, f16 or f32. `InputError` for a directory that is missing,
    unreadable, not of an MoE model, or whose routers choose with a correction bias (DeepSeek-V3 style: the top-k is not
    that of the softmax).
    """
    folder = Path(model)
    where = _tensor_files(folder)
    if any(name.endswith("e_score_correction_bias") for name in where):
        raise InputError(
            f"{folder} routes with a selection bias: got e_score_correction_bias, expected softmax top-k routers"
        )
    names = {int(found[1]): name for name in where if (found := ROUTER.search(name))}
    if not names:
        raise InputError(
            f"{folder} holds no router (…layers.N.mlp.gate.weight): expected an MoE checkpoint; set model=DIR"
        )
    weights, biases = [], []
    for _, name in sorted(names.items()):
        weights.append(_read(where[name], name))
        bias = name.removesuffix("weight") + "bias"
        biases.append(_read(where[bias], bias) if bias in where else np.zeros(len(weights[-1]), np.float32))
    return np.stack(weights), np.stack(biases)


def _config(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / "config.json").read_text()))
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot read {folder}/config.json: {error}; expected a transformers checkpoint directory"
        ) from None


def _tensor_files(folder: Path) -> dict[str, Path]:
    """File of every tensor, by name."""
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    try:
        if index.exists():
            return {name: folder / file for name, file in json.loads(index.read_text())["weight_map"].items()}
        with safe_open(single, framework="pt") as file:
            return dict.fromkeys(file.keys(), single)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise InputError(f"cannot read {single}: {error}; expected a transformers checkpoint directory") from None


def _read(path: Path, name: str) -> np.ndarray:
    try:
        with safe_open(path, framework="pt") as file:  # numpy has no bf16
            array: np.ndarray = file.get_tensor(name).float().numpy()
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot read {name} of {path}: {error}; expected a complete checkpoint") from None
    return array
