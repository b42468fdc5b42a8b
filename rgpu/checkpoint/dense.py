"""The dense part of a quantised checkpoint in plain numbers: what transformers loads beside experts that stay quantised."""

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from rgpu.checkpoint.files import TensorFiles
from rgpu.checkpoint.module import Module
from rgpu.checkpoint.open import CODECS, quantisation
from rgpu.checkpoint.reader import Codec
from rgpu.errors import InputError

_EXPERT = re.compile(r"\.experts\.|block_sparse_moe\.(input|output)_linear")
_CODES = ("qweight", "weight_packed", "weight_scale", "weight_scale_inv", "weight.absmax")  # of a quantised projection
_KEPT = ("*.json", "*.jinja", "*.model", "*.txt")
SHARD_BYTES = 2 << 30


def write_dense(model_dir: Path, out: Path) -> None:
    """Write the model folder `out`: config without its quantisation, every tensor that belongs to no routed expert, quantised
    projections as the numbers they stand for (bfloat16 where these are exact in it, else float32).

    Holds at most a shard in memory. `InputError` for a quantisation that rgpu does not read.
    """
    config = json.loads((model_dir / "config.json").read_text())
    for part in (config, config.get("text_config", {})):
        for name in ("quantization_config", "compression_config"):
            part.pop(name, None)
    for pattern in _KEPT:
        for file in model_dir.glob(pattern):
            if not file.name.endswith(".index.json"):
                shutil.copy2(file, out / file.name)
    (out / "config.json").write_text(json.dumps(config, indent=2))
    places: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}
    count, held = 0, 0
    for name, tensor in dense_tensors(model_dir):
        if held and held + tensor.nbytes > SHARD_BYTES:
            count, held = count + 1, 0
            places |= _write(shard, out / f"model-{count:05d}.safetensors")
            shard = {}
        shard[name] = tensor
        held += tensor.nbytes
    places |= _write(shard, out / f"model-{count + 1:05d}.safetensors")
    (out / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def _write(shard: dict[str, torch.Tensor], path: Path) -> dict[str, str]:
    save_file(shard, path, metadata={"format": "pt"})
    return dict.fromkeys(shard, path.name)


def dense_tensors(model_dir: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) of everything but the routed experts, in plain numbers."""
    settings = quantisation(model_dir)
    files = TensorFiles(model_dir)
    try:
        stems: dict[str, dict[str, str]] = {}
        for name in files:
            if not _EXPERT.search(name):
                stem, suffix = _cut(name)
                stems.setdefault(stem, {})[suffix] = name
        for stem, names in sorted(stems.items()):
            tensors = {suffix: files.read(name) for suffix, name in names.items()}
            if any(suffix in tensors for suffix in _CODES):
                yield f"{stem}.weight", _numbers(settings, Module(stem, stem, tensors, names))
                tensors = {suffix: tensor for suffix, tensor in tensors.items() if suffix == "bias"}
            for suffix, tensor in tensors.items():
                yield names[suffix], tensor.clone(memory_format=torch.contiguous_format)
    finally:
        files.close()


def _cut(name: str) -> tuple[str, str]:
    """(module, suffix): bitsandbytes' suffixes have several parts, `weight.quant_state.bitsandbytes__nf4`."""
    stem, found, rest = name.partition(".weight.")
    if found:
        return stem, f"weight.{rest}"
    stem, _, suffix = name.rpartition(".")
    return stem, suffix


def _numbers(settings: Mapping[str, Any], module: Module) -> torch.Tensor:
    """What a quantised projection stands for, [N, K]."""
    method = str(settings.get("quant_method"))
    kind = next((name for name in CODECS if method == name or method.startswith(f"{name}_")), None)
    if kind is None:
        raise InputError(f"cannot read {module.stem}: got quant_method {method!r}; expected one of {', '.join(CODECS)}")
    codec: Codec = CODECS[kind](settings, (module, module, module))
    matrix = codec.matrix(module)
    numbers = codec.format.unpack(matrix.arrays)
    if matrix.order is not None:
        numbers = numbers[:, torch.argsort(matrix.order)]
    half = numbers.to(torch.bfloat16)
    return half if torch.equal(half.float(), numbers) else numbers
