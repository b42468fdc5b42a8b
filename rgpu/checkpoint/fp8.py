"""FP8 checkpoints with one scale for every block of 128 x 128 (DeepSeek-V3, Qwen3 FP8).

A matrix is `weight` float8_e4m3fn [N, K] and `weight_scale_inv` [ceil(N/128), ceil(K/128)], a factor in spite of its name,
in float32, bfloat16 or as a power of two (e8m0), all exact in float32. Stacked experts are `gate_up_proj` [E, 2I, D] with
`gate_up_proj_scale_inv`, and `down_proj` alike.

Legend: N rows, K columns, E experts, I expert width, D hidden size.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from rgpu.checkpoint.module import Module
from rgpu.checkpoint.reader import Matrix, Modules
from rgpu.errors import InputError
from rgpu.quant.fp8_block import Fp8Block

_SCALES = (torch.float32, torch.bfloat16, torch.float8_e8m0fnu)


@dataclass(frozen=True, slots=True)
class Fp8:
    """The codec of FP8 experts."""

    format: Fp8Block

    def matrix(self, module: Module) -> Matrix:
        """See `Codec.matrix`."""
        module.only(("weight", "weight_scale_inv"), ignored=("input_scale", "activation_scale"))
        weight_NK = module.matrix("weight", torch.float8_e4m3fn)
        rows, cols = weight_NK.shape
        if module.joined and rows % 128 and rows > 64:
            # of 2I rows in blocks of 128, one block would hold rows of gate and of up
            raise InputError(
                f"cannot read the {module.title}: got {rows} rows in a stacked {module.name('weight')}; expected a multiple of "
                "128, so that no block holds rows of gate and of up"
            )
        blocks = (-(-rows // 128), -(-cols // 128))
        scale = module.shaped("weight_scale_inv", blocks, *_SCALES)
        return Matrix(self.format.store(weight_NK.contiguous(), scale.float()), rows, cols)


def fp8(settings: Mapping[str, Any], first: Modules) -> Fp8:
    """The codec of an FP8 checkpoint; `InputError` for other blocks than 128 x 128."""
    block = settings.get("weight_block_size")
    if not isinstance(block, list | tuple) or list(block) != [128, 128]:
        raise InputError(
            f"cannot read an FP8 checkpoint: got weight_block_size {block}; expected [128, 128] (one scale for a tensor or a "
            "row is not read)"
        )
    return Fp8(Fp8Block())
