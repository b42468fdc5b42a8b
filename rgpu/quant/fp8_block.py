"""fp8_block: e4m3fn numbers with a float32 scale for every block of 128 x 128, as DeepSeek-V3 and Qwen3 FP8 store them.

w = e4m3 * scale (the checkpoints' `weight_scale_inv`, in spite of its name a factor).

Legend: N rows, K columns; blocks at the edges may be smaller than 128.
"""

from dataclasses import dataclass

import torch

from rgpu.quant.fields import block_columns, pack_fields, unpack_fields
from rgpu.quant.floats import check_e4m3, decode_e4m3
from rgpu.quant.format import Arrays, Part, check_arrays, check_codes, check_columns


@dataclass(frozen=True, slots=True)
class Fp8Block:
    """`q` int16 [N, K/2] (fields of 8 bits, raw e4m3fn), `scale` float32 [ceil(N/128), ceil(K/128)]."""

    name: str = "fp8_block"
    bits: int = 8
    group: int = 128

    def parts(self, rows: int, cols: int) -> tuple[Part, ...]:
        """See `QuantFormat.parts`."""
        check_columns("fp8_block", cols, block_columns(8))
        blocks = (-(-rows // 128), -(-cols // 128))
        return Part("q", torch.int16, (rows, cols // 2)), Part("scale", torch.float32, blocks)

    def store(self, codes_NK: torch.Tensor, scale_RC: torch.Tensor) -> dict[str, torch.Tensor]:
        """Arrays from e4m3fn bits (uint8 or float8_e4m3fn) [N, K] and float32 scales [ceil(N/128), ceil(K/128)]: bits
        move, none changes. `InputError` for NaN codes and for scales of another dtype or shape, or not finite."""
        bits_NK = codes_NK.view(torch.uint8) if codes_NK.dtype == torch.float8_e4m3fn else codes_NK
        check_codes("fp8_block", bits_NK, 8)
        check_e4m3("fp8_block", "weights", bits_NK)
        arrays = {"q": pack_fields(bits_NK, 8), "scale": scale_RC.contiguous()}
        check_arrays(self, arrays, *codes_NK.shape)
        return arrays

    def codes(self, arrays: Arrays) -> torch.Tensor:
        """uint8 [N, K] e4m3fn bits."""
        return unpack_fields(arrays["q"], 8)

    def unpack(self, arrays: Arrays) -> torch.Tensor:
        """See `QuantFormat.unpack`."""
        numbers_NK = decode_e4m3(self.codes(arrays))
        rows, cols = numbers_NK.shape
        scale_NK = arrays["scale"].repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :cols]
        return numbers_NK * scale_NK
