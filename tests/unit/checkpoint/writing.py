"""Small checkpoints in the layouts that people download, and their experts read back as numbers.

Every checkpoint also holds what a reader must pass over: a dense layer, a router, shared experts and an extra prediction
layer whose experts carry a layer number of the model.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from rgpu.checkpoint.reader import ExpertReader
from rgpu.quant.layout import DenseExpert

LAYERS, EXPERTS, WIDTH, HIDDEN = (1, 3), 3, 128, 256
ROLES = {"gate_proj": (WIDTH, HIDDEN), "up_proj": (WIDTH, HIDDEN), "down_proj": (HIDDEN, WIDTH)}
Tensors = dict[str, torch.Tensor]


def stem_of(layer: int, expert: int, role: str) -> str:
    """The name of a projection's module."""
    return f"model.layers.{layer}.mlp.experts.{expert}.{role}"


def stems() -> Iterator[tuple[str, int, int]]:
    """(name, rows, columns) of every projection of every expert."""
    for layer in LAYERS:
        for expert in range(EXPERTS):
            for role, (rows, cols) in ROLES.items():
                yield stem_of(layer, expert, role), rows, cols


def every(make: Callable[[str, int, int], Mapping[str, torch.Tensor]]) -> Tensors:
    """The tensors that `make(stem, rows, cols)` gives by suffix, for every projection."""
    return {
        f"{stem}.{suffix}": tensor for stem, rows, cols in stems() for suffix, tensor in make(stem, rows, cols).items()
    }


def write(folder: Path, tensors: Mapping[str, torch.Tensor], quantization: Any = None, **config: Any) -> Path:
    """A model folder of two safetensors files with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    noise = {
        "model.embed_tokens.weight": torch.zeros(4, HIDDEN),
        "model.layers.0.mlp.gate_proj.weight": torch.zeros(8, HIDDEN),
        "model.layers.1.mlp.gate.weight": torch.zeros(EXPERTS, HIDDEN),
        "model.layers.1.mlp.shared_experts.gate_proj.weight": torch.zeros(8, HIDDEN),
        "mtp.layers.1.mlp.experts.0.gate_proj.weight": torch.zeros(8, HIDDEN),
        "model.layers.4.mlp.experts.0.gate_proj.weight": torch.zeros(8, HIDDEN),
    }
    all_tensors = {name: tensor.contiguous() for name, tensor in (noise | dict(tensors)).items()}
    names = sorted(all_tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, inside in parts.items():
        save_file({name: all_tensors[name] for name in inside}, folder / file)
    index = {"weight_map": {name: file for file, inside in parts.items() for name in inside}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    settings = {"quantization_config": quantization} if quantization is not None else {}
    whole = {"model_type": "qwen3_moe", "num_hidden_layers": 4} | config | settings
    (folder / "config.json").write_text(json.dumps(whole))
    return folder


def rng_of(seed: int) -> torch.Generator:
    """A generator of its own for every seed."""
    return torch.Generator().manual_seed(seed)


def words(rng: torch.Generator, *shape: int) -> torch.Tensor:
    """int32 words of random bits."""
    return torch.randint(-(1 << 31), 1 << 31, shape, generator=rng, dtype=torch.int64).to(torch.int32)


def scales(rng: torch.Generator, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Scales of both signs around 0.02."""
    sign = 1.0 - 2.0 * torch.randint(0, 2, shape, generator=rng)
    return (sign * (0.01 + 0.02 * torch.rand(shape, generator=rng))).to(dtype)


def numbers(reader: ExpertReader, layer: int, expert: int) -> DenseExpert:
    """One expert through its slot: read, packed, and unpacked to float32 in natural order."""
    layout = reader.layout_of(layer)
    row = torch.zeros(layout.stride, dtype=torch.uint8)
    layout.pack(reader.read(layer, expert), row)
    return layout.unpack(row)


def check_experts(reader: ExpertReader, wanted: Callable[[str], torch.Tensor]) -> None:
    """That every projection reads as `wanted(stem)`, to the bit (+0 and -0 count as equal), and the geometry is right."""
    assert (reader.layer_ids, reader.experts) == (LAYERS, EXPERTS)
    assert (reader.intermediate, reader.hidden) == (WIDTH, HIDDEN)
    for layer in LAYERS:
        for expert in range(EXPERTS):
            found = numbers(reader, layer, expert)
            for role, matrix in zip(ROLES, (found.gate, found.up, found.down), strict=True):
                assert torch.equal(matrix, wanted(stem_of(layer, expert, role))), (layer, expert, role)
