"""NF4 checkpoints of bitsandbytes.

A matrix is `weight` uint8 [N*K/2, 1] (the codes row by row, the HIGH nibble of a byte first), `weight.absmax` float32 [N*K/64],
`weight.quant_map` float32 [16] and `weight.quant_state.bitsandbytes__nf4`, json in uint8. With double quantisation
`weight.absmax` is uint8, and the scale of a block is nested_quant_map[absmax] * nested_absmax[block of 256] + nested_offset
in float32, each operation rounded, as bitsandbytes' own CPU code computes it.

Legend: N rows, K columns.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from rgpu.checkpoint.module import Module
from rgpu.checkpoint.packing import nibbles_high_first
from rgpu.checkpoint.reader import Matrix, Modules
from rgpu.errors import InputError
from rgpu.quant.nf4 import NF4, Nf4

_STATE = "weight.quant_state.bitsandbytes__nf4"
_KNOWN = ("weight", "weight.absmax", "weight.quant_map", "weight.nested_absmax", "weight.nested_quant_map", _STATE)


@dataclass(frozen=True, slots=True)
class BitsAndBytes:
    """The codec of NF4 experts."""

    format: Nf4

    def matrix(self, module: Module) -> Matrix:
        """See `Codec.matrix`."""
        module.only(_KNOWN)
        state = _state(module)
        rows, cols = state["shape"]
        numbers = rows * cols
        packed = module.take("weight", torch.uint8).flatten()
        if packed.numel() != numbers // 2 or cols % 64:
            raise InputError(
                f"cannot read the {module.title}: got {packed.numel()} bytes in {module.name('weight')} for a matrix "
                f"{[rows, cols]}; expected {numbers // 2} bytes and a multiple of 64 columns"
            )
        table = module.shaped("weight.quant_map", (16,), torch.float32)
        if not torch.equal(table, torch.tensor(NF4, dtype=torch.float32)):
            raise InputError(
                f"cannot read the {module.title}: got another table in {module.name('weight.quant_map')}; expected that of NF4"
            )
        scale = _scales(module, state, numbers // 64).reshape(rows, cols // 64)
        return Matrix(self.format.store(nibbles_high_first(packed).reshape(rows, cols), scale), rows, cols)


def bitsandbytes(settings: Mapping[str, Any], first: Modules) -> BitsAndBytes:
    """The codec of a bitsandbytes checkpoint; `InputError` for other kinds than NF4."""
    first[0].unstacked("bitsandbytes")
    if settings.get("load_in_8bit") or settings.get("bnb_4bit_quant_type", "nf4") != "nf4":
        kind = "int8" if settings.get("load_in_8bit") else settings.get("bnb_4bit_quant_type")
        raise InputError(f"cannot read a bitsandbytes checkpoint: got {kind}; expected nf4; quantise it to nf4")
    return BitsAndBytes(Nf4())


def _state(module: Module) -> dict[str, Any]:
    raw = module.take(_STATE, torch.uint8).flatten()
    try:
        state = json.loads(bytes(raw.tolist()))
        state["shape"] = [int(size) for size in state["shape"]]
        fits = state["quant_type"] == "nf4" and int(state["blocksize"]) == 64 and len(state["shape"]) == 2
    except (ValueError, KeyError, TypeError):
        state, fits = {}, False
    if not fits or min(state["shape"]) <= 0:
        got = ", ".join(f"{key} {value}" for key, value in state.items()) or "no readable json"
        raise InputError(
            f"cannot read the {module.title}: got {got} in {module.name(_STATE)}; expected nf4 in "
            "blocks of 64 and the shape of a matrix"
        )
    return dict(state)


def _scales(module: Module, state: Mapping[str, Any], blocks: int) -> torch.Tensor:
    """float32 [blocks]."""
    if "nested_absmax" not in " ".join(module.tensors):
        return module.shaped("weight.absmax", (blocks,), torch.float32)
    try:
        size, offset = int(state["nested_blocksize"]), float(state["nested_offset"])
    except (KeyError, TypeError, ValueError):
        size, offset = 0, 0.0
    if size <= 0:
        raise InputError(
            f"cannot read the {module.title}: got no nested_blocksize and nested_offset in {module.name(_STATE)}; expected "
            "both beside nested_absmax"
        )
    codes = module.shaped("weight.absmax", (blocks,), torch.uint8)
    table = module.shaped("weight.nested_quant_map", (256,), torch.float32)
    outer = module.shaped("weight.nested_absmax", (-(-blocks // size),), torch.float32)
    return table[codes.int()] * outer.repeat_interleave(size)[:blocks] + torch.tensor(offset, dtype=torch.float32)
