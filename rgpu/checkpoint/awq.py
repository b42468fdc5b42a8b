"""AWQ checkpoints of AutoAWQ's `gemm` kind with 4 bits.

A matrix is `qweight` int32 [K, N/8], `qzeros` int32 [K/G, N/8] and `scales` [K/G, N]. Words are packed along the rows N:
nibble i of word w belongs to row 8w + (0, 2, 4, 6, 1, 3, 5, 7)[i]. Zero points are stored as they are.

Legend: N rows, K columns, G columns of a group.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from rgpu.checkpoint.module import Module
from rgpu.checkpoint.packing import bytes_of, nibbles
from rgpu.checkpoint.reader import Matrix, Modules
from rgpu.errors import InputError
from rgpu.quant.int4 import Int4

_SCALES = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True, slots=True)
class Awq:
    """The codec of AWQ experts in `format`."""

    format: Int4

    def matrix(self, module: Module) -> Matrix:
        """See `Codec.matrix`."""
        module.only(("qweight", "qzeros", "scales"))
        words = module.matrix("qweight", torch.int32)
        cols, rows = words.shape[0], 8 * words.shape[1]
        groups = cols // self.format.group
        zeros = module.shaped("qzeros", (groups, rows // 8), torch.int32)
        scale = module.shaped("scales", (groups, rows), self.format.scale_dtype)
        return Matrix(self.format.store(_rows(words), scale.T, _rows(zeros)), rows, cols)


def _rows(words_KW: torch.Tensor) -> torch.Tensor:
    """uint8 [N, K]: the codes of int32 words [K, N/8]."""
    cols, per_row = words_KW.shape
    # nibble 4p + j of a word is row 2j + p of its eight
    return nibbles(bytes_of(words_KW)).reshape(cols, per_row, 2, 4).permute(1, 3, 2, 0).reshape(8 * per_row, cols)


def awq(settings: Mapping[str, Any], first: Modules) -> Awq:
    """The codec of an AWQ checkpoint; `InputError` for other widths, groups and layouts than rgpu can hold."""
    first[0].unstacked("awq")
    bits, group = settings.get("bits", settings.get("w_bit")), settings.get("group_size", settings.get("q_group_size"))
    version = str(settings.get("version") or settings.get("format") or "gemm").lower()
    if bits != 4 or version != "gemm" or not isinstance(group, int):
        raise InputError(
            f"cannot read an AWQ checkpoint: got bits {bits}, group_size {group} and version {version!r}; expected 4 bits, "
            "groups of 32, 64 or 128 and version gemm"
        )
    return Awq(Int4(group, True, first[0].matrix("scales", *_SCALES).dtype))
