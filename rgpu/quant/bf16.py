"""bf16: the numbers themselves, no codes.

Legend: N rows, K columns.
"""

from dataclasses import dataclass

import torch

from rgpu.errors import InputError
from rgpu.quant.format import Arrays, Part, check_arrays, check_columns


@dataclass(frozen=True, slots=True)
class Bf16:
    """`q` bfloat16 [N, K]; K is a multiple of 8, one 128-bit load."""

    name: str = "bf16"
    bits: int = 16
    group: int = 0

    def parts(self, rows: int, cols: int) -> tuple[Part, ...]:
        """See `QuantFormat.parts`."""
        check_columns("bf16", cols, 8)
        return (Part("q", torch.bfloat16, (rows, cols)),)

    def store(self, weight_NK: torch.Tensor) -> dict[str, torch.Tensor]:
        """Arrays from a bfloat16 matrix; `InputError` for another dtype or numbers that are not finite."""
        if weight_NK.dim() != 2:
            raise InputError(f"bf16: got weights of shape {list(weight_NK.shape)}; expected a matrix [N, K]")
        arrays = {"q": weight_NK.contiguous()}
        check_arrays(self, arrays, *weight_NK.shape)
        return arrays

    def quantize(self, weight_NK: torch.Tensor) -> dict[str, torch.Tensor]:
        """Arrays of a float matrix, each number rounded to the nearest bfloat16; those that are bfloat16 stay as they are."""
        return self.store(weight_NK.to(torch.bfloat16))

    def codes(self, arrays: Arrays) -> torch.Tensor:
        """bfloat16 [N, K]: the numbers are their own codes."""
        return arrays["q"]

    def unpack(self, arrays: Arrays) -> torch.Tensor:
        """See `QuantFormat.unpack`."""
        return arrays["q"].float()
