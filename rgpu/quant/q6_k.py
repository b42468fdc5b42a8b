"""q6_k: GGUF's 6-bit format: 16 columns to an 8-bit scale, 256 columns to its factor.

w = (d * scale) * (code - 32), in float32 with each product rounded, as ggml's own dequantisation of Q6_K does.

Legend: N rows, K columns.
"""

from dataclasses import dataclass

import torch

from rgpu.quant.fields import pack_fields, unpack_fields
from rgpu.quant.format import Arrays, Part, check_arrays, check_codes, check_columns


@dataclass(frozen=True, slots=True)
class Q6K:
    """`q` int16 [N, K/4] (low 4 bits of the codes), `high` int16 [N, K/8] (their high 2 bits), `scale` int8 [N, K/16],
    `d` float16 [N, K/256]."""

    name: str = "q6_k"
    bits: int = 6
    group: int = 16

    def parts(self, rows: int, cols: int) -> tuple[Part, ...]:
        """See `QuantFormat.parts`."""
        check_columns("q6_k", cols, 256)
        return (
            Part("q", torch.int16, (rows, cols // 4)),
            Part("high", torch.int16, (rows, cols // 8)),
            Part("scale", torch.int8, (rows, cols // 16)),
            Part("d", torch.float16, (rows, cols // 256)),
        )

    def store(self, codes_NK: torch.Tensor, scale_NG: torch.Tensor, d_NS: torch.Tensor) -> dict[str, torch.Tensor]:
        """Arrays from codes in 0..63 (value + 32) [N, K], scales int8 [N, K/16] and factors float16 [N, K/256]: bits
        move, none changes. `InputError` for codes out of range, factors not finite, and wrong dtypes or shapes."""
        check_codes("q6_k", codes_NK, 6)
        low, high = pack_fields(codes_NK & 15, 4), pack_fields(codes_NK >> 4, 2)
        arrays = {"q": low, "high": high, "scale": scale_NG.contiguous(), "d": d_NS.contiguous()}
        check_arrays(self, arrays, *codes_NK.shape)
        return arrays

    def codes(self, arrays: Arrays) -> torch.Tensor:
        """uint8 [N, K] codes in 0..63."""
        return unpack_fields(arrays["q"], 4) | unpack_fields(arrays["high"], 2) << 4

    def unpack(self, arrays: Arrays) -> torch.Tensor:
        """See `QuantFormat.unpack`."""
        scale_NG = arrays["d"].float().repeat_interleave(16, 1) * arrays["scale"].float()
        return scale_NG.repeat_interleave(16, 1) * (self.codes(arrays).float() - 32.0)
