"""mxfp4: e2m1 numbers with a power of two for every 32 columns (gpt-oss and other MX checkpoints).

w = e2m1 * 2**(scale - 127), exact in float32. Source: OCP Microscaling Formats (MX) 1.0, table 1 and section 5.

Legend: N rows, K columns.
"""

from dataclasses import dataclass

import torch

from rgpu.quant.fields import block_columns, pack_fields, unpack_fields
from rgpu.quant.floats import check_e8m0, decode_e2m1, decode_e8m0
from rgpu.quant.format import Arrays, Part, check_arrays, check_codes, check_columns
from rgpu.quant.rounding import grouped

MIDDLES = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)  # between e2m1's magnitudes 0, 0.5, 1, 1.5, 2, 3, 4 and 6


@dataclass(frozen=True, slots=True)
class Mxfp4:
    """`q` int16 [N, K/4] (fields of 4 bits, e2m1), `scale` uint8 [N, K/32] (e8m0)."""

    name: str = "mxfp4"
    bits: int = 4
    group: int = 32

    def parts(self, rows: int, cols: int) -> tuple[Part, ...]:
        """See `QuantFormat.parts`."""
        check_columns("mxfp4", cols, block_columns(4))
        return Part("q", torch.int16, (rows, cols // 4)), Part("scale", torch.uint8, (rows, cols // 32))

    def store(self, codes_NK: torch.Tensor, scale_NG: torch.Tensor) -> dict[str, torch.Tensor]:
        """Arrays from e2m1 codes in 0..15 [N, K] and e8m0 scales (uint8 bits or float8_e8m0fnu) [N, K/32]: bits move, none
        changes. `InputError` for codes out of range, scales of another dtype or shape, NaN, or too large for float32."""
        check_codes("mxfp4", codes_NK, 4)
        bits_NG = scale_NG.view(torch.uint8) if scale_NG.dtype == torch.float8_e8m0fnu else scale_NG
        arrays = {"q": pack_fields(codes_NK, 4), "scale": bits_NG.contiguous()}
        check_arrays(self, arrays, *codes_NK.shape)
        check_e8m0("mxfp4", bits_NG)
        return arrays

    def quantize(self, weight_NK: torch.Tensor) -> dict[str, torch.Tensor]:
        """Arrays of a float matrix by the conversion of OCP MX 1.0, section 6.3: the scale is the power of two of the
        largest magnitude, less the 2 of e2m1's own largest exponent; elements round to nearest, ties to even, and
        magnitudes above 6 saturate. (GGUF and torchao's floor mode choose the scale alike; GGUF breaks ties towards 0.)
        Below 2**-127 the scale stops. `InputError` for weights that are not finite."""
        weight_NGC = grouped(self, weight_NK, 32)
        reach_NG = weight_NGC.abs().amax(-1)
        # frexp's exponent is that of a mantissa in [0.5, 1): one more than floor(log2)
        power_NG = torch.where(reach_NG == 0, -127, torch.frexp(reach_NG).exponent - 1 - 2).clamp(min=-127)
        size = torch.ldexp(weight_NGC.abs().double(), -power_NG.unsqueeze(-1))
        codes = torch.bucketize(size, torch.tensor(MIDDLES, dtype=torch.float64))
        for code, middle in enumerate(MIDDLES):
            codes += (size == middle) & (code % 2 == 1)  # bucketize puts a tie below; below is odd for every second one
        codes |= torch.signbit(weight_NGC).int() << 3
        return self.store(codes.to(torch.uint8).reshape(weight_NK.shape), (power_NG + 127).to(torch.uint8))

    def codes(self, arrays: Arrays) -> torch.Tensor:
        """uint8 [N, K] e2m1 codes in 0..15."""
        return unpack_fields(arrays["q"], 4)

    def unpack(self, arrays: Arrays) -> torch.Tensor:
        """See `QuantFormat.unpack`."""
        return decode_e2m1(self.codes(arrays)) * decode_e8m0(arrays["scale"]).repeat_interleave(32, 1)
