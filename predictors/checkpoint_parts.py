"""The few tensors that predictors read of a checkpoint directory: routers, norms, single experts.

Legend: L MoE layers, E experts, D hidden size, I intermediate size.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from rgpu.errors import InputError
from rgpu.predictors.schema import Schema

ROUTER = re.compile(r"layers\.(\d+)\.(?:mlp\.gate|mlp\.router|block_sparse_moe\.gate)\.weight$")
FROM_ONE = ("qwen3_next", "qwen3_5_moe", "qwen3_5_moe_text")  # norms that multiply by 1 + weight
NORM = "post_attention_layernorm.weight"


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


def config_of(folder: Path) -> dict[str, Any]:
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


@dataclass(frozen=True, slots=True)
class LayerParts:
    """Where the parts of MoE layers are: `prefixes[l]`, such as `model.layers.3.`, and the file of every tensor."""

    folder: Path
    prefixes: list[str]
    where: dict[str, Path]

    @classmethod
    def of(cls, model: str | Path) -> "LayerParts":
        where = _tensor_files(Path(model))
        found = {int(match[1]): name[: match.start(1)] for name in where if (match := ROUTER.search(name))}
        return cls(Path(model), [f"{before}{number}." for number, before in sorted(found.items())], where)

    def get(self, name: str, why: str) -> np.ndarray:
        """The tensor in float32, or `InputError` naming it and what needs it."""
        if name not in self.where:
            raise InputError(
                f"{self.folder} holds no {name}: {why} needs it; choose another form or a checkpoint that has it"
            )
        return _read(self.where[name], name)

    def norms(self, why: str) -> np.ndarray:
        """What the norm before each layer's router multiplies by, float32 [L, D]."""
        norm_LD = np.stack([self.get(prefix + NORM, why) for prefix in self.prefixes])
        return norm_LD + np.float32(1) if config_of(self.folder).get("model_type") in FROM_ONE else norm_LD

    def norms_if_there(self) -> np.ndarray | None:
        """`norms`, or None for a checkpoint that has none of that name."""
        there = all(prefix + NORM in self.where for prefix in self.prefixes)
        return self.norms("a norm") if there else None

    def gated(self, layer: int, part: str, why: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Gate and up projections [I, D] and down projection [D, I] of an expert, `part` being `mlp.experts.7` or so."""
        act = config_of(self.folder).get("hidden_act", "silu")
        if act != "silu":
            raise InputError(f"{self.folder} has activation {act}: {why} expects silu; choose form raw or next_norm")
        names = [f"{self.prefixes[layer]}{part}.{projection}_proj.weight" for projection in ("gate", "up", "down")]
        gate_ID, up_ID, down_DI = (self.get(name, why) for name in names)
        return gate_ID, up_ID, down_DI
