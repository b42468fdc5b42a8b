"""MXFP4 checkpoints of gpt-oss.

Experts are stacked: `gate_up_proj_blocks` uint8 [E, 2I, D/32, 16] (the low nibble of a byte is the even column),
`gate_up_proj_scales` uint8 [E, 2I, D/32] (e8m0) and `gate_up_proj_bias` [E, 2I], whose rows alternate between gate and up;
`down_proj_*` alike with D rows of I columns.

Legend: E experts, N rows, K columns, I expert width, D hidden size.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from rgpu.checkpoint.module import Module
from rgpu.checkpoint.packing import nibbles
from rgpu.checkpoint.reader import Matrix, Modules
from rgpu.quant.mxfp4 import Mxfp4


@dataclass(frozen=True, slots=True)
class GptOss:
    """The codec of gpt-oss experts."""

    format: Mxfp4

    def matrix(self, module: Module) -> Matrix:
        """See `Codec.matrix`."""
        module.only(("blocks", "scales"))
        scale_NG = module.matrix("scales", torch.uint8)
        rows, groups = scale_NG.shape
        blocks = module.shaped("blocks", (rows, groups, 16), torch.uint8)
        return Matrix(self.format.store(nibbles(blocks.flatten(1)), scale_NG), rows, 32 * groups)


def mxfp4(settings: Mapping[str, Any], first: Modules) -> GptOss:
    """The codec of a gpt-oss checkpoint; `InputError` for experts without blocks and scales."""
    first[0].take("blocks", torch.uint8)
    return GptOss(Mxfp4())
