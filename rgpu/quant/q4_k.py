"""q4_k: GGUF's 4-bit format: 32 columns to a 6-bit scale and minimum, 256 columns to the factors of both.

w = (d * scale) * code - dmin * min, in float32 with each product rounded, as ggml's own dequantisation of Q4_K does.

Legend: N rows, K columns.
"""

from dataclasses import dataclass

import torch

from rgpu.quant.fields import pack_fields, unpack_fields
from rgpu.quant.format import Arrays, Part, check_arrays, check_codes, check_columns


@dataclass(frozen=True, slots=True)
class Q4K:
    """`q` int16 [N, K/4] (fields of 4 bits), `scale` and `min` uint8 [N, K/32] (6 bits used), `d` and `dmin` float16
    [N, K/256]."""

    name: str = "q4_k"
    bits: int = 4
    group: int = 32

    def parts(self, rows: int, cols: int) -> tuple[Part, ...]:
        """See `QuantFormat.parts`."""
        check_columns("q4_k", cols, 256)
        return (
            Part("q", torch.int16, (rows, cols // 4)),
            Part("scale", torch.uint8, (rows, cols // 32)),
            Part("min", torch.uint8, (rows, cols // 32)),
            Part("d", torch.float16, (rows, cols // 256)),
            Part("dmin", torch.float16, (rows, cols // 256)),
        )

    def store(
        self, codes_NK: torch.Tensor, scale_NG: torch.Tensor, min_NG: torch.Tensor, d_NS: torch.Tensor,
        dmin_NS: torch.Tensor,
    ) -> dict[str, torch.Tensor]:  # fmt: skip
        """Arrays from codes in 0..15 [N, K], 6-bit scales and minima uint8 [N, K/32] and factors float16 [N, K/256]: bits
        move, none changes. `InputError` for values out of range, factors not finite, and wrong dtypes or shapes."""
        check_codes("q4_k", codes_NK, 4)
        check_codes("q4_k", scale_NG, 6)
        check_codes("q4_k", min_NG, 6)
        arrays = {"q": pack_fields(codes_NK, 4), "scale": scale_NG, "min": min_NG, "d": d_NS, "dmin": dmin_NS}
        check_arrays(self, arrays, *codes_NK.shape)
        return {name: array.contiguous() for name, array in arrays.items()}

    def codes(self, arrays: Arrays) -> torch.Tensor:
        """uint8 [N, K] codes in 0..15."""
        return unpack_fields(arrays["q"], 4)

    def unpack(self, arrays: Arrays) -> torch.Tensor:
        """See `QuantFormat.unpack`."""
        scale_NG = arrays["d"].float().repeat_interleave(8, 1) * arrays["scale"].float()
        min_NG = arrays["dmin"].float().repeat_interleave(8, 1) * arrays["min"].float()
        return scale_NG.repeat_interleave(32, 1) * self.codes(arrays).float() - min_NG.repeat_interleave(32, 1)
