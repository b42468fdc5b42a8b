"""q8_0: GGUF's 8-bit format, 32 columns to a float16 scale; stored exactly as int8.

w = (code - 128) * scale. Source: ggml's Q8_0 block (34 bytes: a half, 32 int8).

Legend: N rows, K columns.
"""

from dataclasses import dataclass

import torch

from rgpu.quant.fields import pack_fields, unpack_fields
from rgpu.quant.format import Arrays, Part, check_arrays, check_codes
from rgpu.quant.int8 import numbers_of, parts_of


@dataclass(frozen=True, slots=True)
class Q8_0:
    """`q` int16 [N, K/2] (fields of 8 bits), `scale` float16 [N, K/32]."""

    name: str = "q8_0"
    bits: int = 8
    group: int = 32

    def parts(self, rows: int, cols: int) -> tuple[Part, ...]:
        """See `QuantFormat.parts`."""
        return parts_of(self.name, 32, torch.float16, rows, cols)

    def store(self, codes_NK: torch.Tensor, scale_NG: torch.Tensor) -> dict[str, torch.Tensor]:
        """Arrays from codes in 0..255 (GGUF's int8 + 128) [N, K] and float16 scales [N, K/32]; errors as in `Int8.store`."""
        check_codes(self.name, codes_NK, 8)
        arrays = {"q": pack_fields(codes_NK, 8), "scale": scale_NG.contiguous()}
        check_arrays(self, arrays, *codes_NK.shape)
        return arrays

    def codes(self, arrays: Arrays) -> torch.Tensor:
        """uint8 [N, K] codes, value + 128."""
        return unpack_fields(arrays["q"], 8)

    def unpack(self, arrays: Arrays) -> torch.Tensor:
        """See `QuantFormat.unpack`."""
        return numbers_of(arrays)
