"""int4: unsigned 4-bit codes with a scale and, if asymmetric, a zero point for every group of columns.

w = (code - zero) * scale, with zero = 8 where the format is symmetric.

Legend: N rows, K columns, G columns of a group.
"""

from dataclasses import dataclass

import torch

from rgpu.errors import InputError
from rgpu.quant.fields import pack_fields, unpack_fields
from rgpu.quant.format import Arrays, Part, check_arrays, check_codes, check_columns
from rgpu.quant.rounding import codes_of, grouped, hold_scale

GROUPS = (32, 64, 128)
SCALES = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True, slots=True)
class Int4:
    """`q` int16 [N, K/4] (fields of 4 bits), `scale` [N, K/G], `zero` uint8 [N, K/G] where `asymmetric`.

    `scale_dtype` is the checkpoint's, so that no bit of a scale is lost. `act_order`: columns are stored sorted by group
    (GPTQ's g_idx); the order is kept by the expert's layout, once for gate and up and once for down.
    """

    group: int = 128
    asymmetric: bool = False
    scale_dtype: torch.dtype = torch.float16
    act_order: bool = False
    name: str = "int4"
    bits: int = 4

    def __post_init__(self) -> None:
        if self.group not in GROUPS or self.scale_dtype not in SCALES:
            raise InputError(
                f"int4: got group {self.group} with {self.scale_dtype} scales; expected a group of 32, 64 or 128 and "
                "float16, bfloat16 or float32 scales"
            )

    def parts(self, rows: int, cols: int) -> tuple[Part, ...]:
        """See `QuantFormat.parts`."""
        check_columns("int4", cols, self.group)
        groups = cols // self.group
        parts = (Part("q", torch.int16, (rows, cols // 4)), Part("scale", self.scale_dtype, (rows, groups)))
        return (*parts, Part("zero", torch.uint8, (rows, groups))) if self.asymmetric else parts

    def store(
        self, codes_NK: torch.Tensor, scale_NG: torch.Tensor, zero_NG: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """Arrays from codes in 0..15 [N, K], scales of `scale_dtype` [N, K/G] and, where asymmetric, integer zero points in
        0..15 [N, K/G]: bits move, none changes. `InputError` for codes or zero points out of range, zero points missing or
        too many, and scales of another shape or dtype, or not finite."""
        check_codes("int4", codes_NK, 4)
        arrays = {"q": pack_fields(codes_NK, 4), "scale": scale_NG.contiguous()}
        if (zero_NG is None) == self.asymmetric:
            got, expected = ("none", "some") if self.asymmetric else ("some", "none")
            raise InputError(f"int4: got {got} zero points; expected {expected}; set asymmetric to match")
        if zero_NG is not None:
            check_codes("int4 zero points", zero_NG, 4)
            arrays["zero"] = zero_NG.to(torch.uint8).contiguous()
        check_arrays(self, arrays, *codes_NK.shape)
        return arrays

    def quantize(self, weight_NK: torch.Tensor) -> dict[str, torch.Tensor]:
        """Arrays of a float matrix (columns in stored order) by rounding to nearest.

        Symmetric: the scale is the largest magnitude / 7.5, the smallest one, before it is itself rounded, that leaves
        every weight within half a step of its code.
        Asymmetric: 15 steps from the smallest weight to the largest, 0 included, and the zero point rounded, which may
        cost the smallest or the largest weight a step. `InputError` for weights not finite or beyond the scale's dtype.
        """
        weight_NGC = grouped(self, weight_NK, self.group)
        low_NG = weight_NGC.amin(-1).double().clamp(max=0)
        high_NG = weight_NGC.amax(-1).double().clamp(min=0)
        if not self.asymmetric:
            scale_NG = hold_scale(self.name, torch.maximum(-low_NG, high_NG) / 7.5, self.scale_dtype, 8)
            return self.store(codes_of(weight_NGC, scale_NG, torch.full_like(scale_NG, 8), 15), scale_NG)
        scale_NG = hold_scale(self.name, (high_NG - low_NG) / 15, self.scale_dtype, 15)
        zero_NG = (-low_NG / torch.where(scale_NG == 0, 1.0, scale_NG.double())).round().clamp(0, 15)
        return self.store(codes_of(weight_NGC, scale_NG, zero_NG, 15), scale_NG, zero_NG.to(torch.uint8))

    def codes(self, arrays: Arrays) -> torch.Tensor:
        """uint8 [N, K] codes in 0..15."""
        return unpack_fields(arrays["q"], 4)

    def unpack(self, arrays: Arrays) -> torch.Tensor:
        """See `QuantFormat.unpack`."""
        codes = self.codes(arrays).to(torch.float32)
        scale = arrays["scale"].float().repeat_interleave(self.group, 1)
        if not self.asymmetric:
            return (codes - 8.0) * scale
        return (codes - arrays["zero"].float().repeat_interleave(self.group, 1)) * scale
