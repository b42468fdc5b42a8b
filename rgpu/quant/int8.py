"""int8: 8-bit codes with one scale a row or one a group of columns.

w = (code - 128) * scale.

Legend: N rows, K columns, G columns of a group.
"""

from dataclasses import dataclass

import torch

from rgpu.errors import InputError
from rgpu.quant.fields import block_columns, pack_fields, unpack_fields
from rgpu.quant.format import Arrays, Part, check_arrays, check_codes, check_columns
from rgpu.quant.rounding import codes_of, grouped, hold_scale

GROUPS = (0, 32, 64, 128)
SCALES = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True, slots=True)
class Int8:
    """`q` int16 [N, K/2] (fields of 8 bits), `scale` [N, K/G], or [N, 1] where `group` is 0: one scale a row.

    `scale_dtype` is the checkpoint's, so that no bit of a scale is lost.
    """

    group: int = 0
    scale_dtype: torch.dtype = torch.float16
    name: str = "int8"
    bits: int = 8

    def __post_init__(self) -> None:
        if self.group not in GROUPS or self.scale_dtype not in SCALES:
            raise InputError(
                f"int8: got group {self.group} with {self.scale_dtype} scales; expected a group of 0 (one scale a row), 32, "
                "64 or 128 and float16, bfloat16 or float32 scales"
            )

    def parts(self, rows: int, cols: int) -> tuple[Part, ...]:
        """See `QuantFormat.parts`."""
        return parts_of(self.name, self.group, self.scale_dtype, rows, cols)

    def store(self, codes_NK: torch.Tensor, scale_NG: torch.Tensor) -> dict[str, torch.Tensor]:
        """Arrays from codes in 0..255 (value + 128) [N, K] and scales [N, K/G]: bits move, none changes. `InputError`
        for codes out of range and scales of another dtype or shape, or not finite."""
        check_codes(self.name, codes_NK, 8)
        arrays = {"q": pack_fields(codes_NK, 8), "scale": scale_NG.contiguous()}
        check_arrays(self, arrays, *codes_NK.shape)
        return arrays

    def quantize(self, weight_NK: torch.Tensor) -> dict[str, torch.Tensor]:
        """Arrays of a float matrix by rounding to nearest. The scale is the largest magnitude / 127.5: the smallest one,
        before it is itself rounded, that leaves every weight within half a step of its code. `InputError` for weights
        not finite or beyond the scale's dtype."""
        weight_NGC = grouped(self, weight_NK, self.group)
        reach_NG = weight_NGC.abs().amax(-1).double()
        scale_NG = hold_scale(self.name, reach_NG / 127.5, self.scale_dtype, 128)
        return self.store(codes_of(weight_NGC, scale_NG, torch.full_like(scale_NG, 128), 255), scale_NG)

    def codes(self, arrays: Arrays) -> torch.Tensor:
        """uint8 [N, K] codes, value + 128."""
        return unpack_fields(arrays["q"], 8)

    def unpack(self, arrays: Arrays) -> torch.Tensor:
        """See `QuantFormat.unpack`."""
        return numbers_of(arrays)


def parts_of(name: str, group: int, scale_dtype: torch.dtype, rows: int, cols: int) -> tuple[Part, ...]:
    """The arrays of 8-bit codes with a scale for every `group` columns (0: every row)."""
    check_columns(name, cols, max(group, block_columns(8)))
    groups = cols // group if group else 1
    return Part("q", torch.int16, (rows, cols // 2)), Part("scale", scale_dtype, (rows, groups))


def numbers_of(arrays: Arrays) -> torch.Tensor:
    """float32 [N, K]: (code - 128) * scale; the group is K over the scales of a row."""
    codes = unpack_fields(arrays["q"], 8).float()
    group = codes.shape[1] // arrays["scale"].shape[1]
    return (codes - 128.0) * arrays["scale"].float().repeat_interleave(group, 1)
