"""nvfp4: e2m1 numbers with an e4m3 scale for every 16 columns and one float32 scale for the matrix.

w = (e2m1 * e4m3) * global: the first product is exact in float32, so w is the exact product rounded once.

Legend: N rows, K columns.
"""

from dataclasses import dataclass

import torch

from rgpu.quant.fields import block_columns, pack_fields, unpack_fields
from rgpu.quant.floats import check_e4m3, decode_e2m1, decode_e4m3
from rgpu.quant.format import Arrays, Part, check_arrays, check_codes, check_columns


@dataclass(frozen=True, slots=True)
class Nvfp4:
    """`q` int16 [N, K/4] (fields of 4 bits, e2m1), `scale` uint8 [N, K/16] (e4m3fn bits), `global` float32 [1].

    Gate and up may have different global scales: their layout holds both.
    """

    name: str = "nvfp4"
    bits: int = 4
    group: int = 16

    def parts(self, rows: int, cols: int) -> tuple[Part, ...]:
        """See `QuantFormat.parts`."""
        check_columns("nvfp4", cols, block_columns(4))
        return (
            Part("q", torch.int16, (rows, cols // 4)),
            Part("scale", torch.uint8, (rows, cols // 16)),
            Part("global", torch.float32, (1,)),
        )

    def store(
        self, codes_NK: torch.Tensor, scale_NG: torch.Tensor, global_scale: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Arrays from e2m1 codes in 0..15 [N, K], e4m3fn scales (uint8 bits or float8_e4m3fn) [N, K/16] and the factor
        `global_scale` float32 [1] or []: bits move, none changes. `InputError` for codes out of range, NaN scales, a
        factor that is not finite, and wrong dtypes or shapes."""
        bits_NG = scale_NG.view(torch.uint8) if scale_NG.dtype == torch.float8_e4m3fn else scale_NG
        check_codes("nvfp4", codes_NK, 4)
        factor = global_scale.reshape(1) if global_scale.dim() == 0 else global_scale
        arrays = {"q": pack_fields(codes_NK, 4), "scale": bits_NG.contiguous(), "global": factor}
        check_arrays(self, arrays, *codes_NK.shape)
        check_e4m3("nvfp4", "scales", bits_NG)
        return arrays

    def codes(self, arrays: Arrays) -> torch.Tensor:
        """uint8 [N, K] e2m1 codes in 0..15."""
        return unpack_fields(arrays["q"], 4)

    def unpack(self, arrays: Arrays) -> torch.Tensor:
        """See `QuantFormat.unpack`."""
        scale_NK = decode_e4m3(arrays["scale"]).repeat_interleave(16, 1)
        return decode_e2m1(self.codes(arrays)) * scale_NK * arrays["global"]
