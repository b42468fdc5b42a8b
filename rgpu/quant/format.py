"""What a storage format is: the arrays of one stored matrix and the exact way back to numbers.

Legend: N rows, K columns of a weight matrix (a row produces one output), G columns of a group.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from rgpu.errors import InputError

Arrays = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Part:
    """One array of a stored matrix: its `name`, `dtype` and `shape`.

    The first dimension goes with the rows of the matrix: gate and up are stored row beside row, and so is every part.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return math.prod(self.shape) * self.dtype.itemsize


class QuantFormat(Protocol):
    """How a matrix [N, K] is stored. Instances are frozen and hashable; equal instances store alike.

    `name`: the format's name, as configs and kernels know it. `bits`: width of one code (16: no codes, plain floats).
    `group`: columns that share one scale (0: the format has none).
    """

    @property
    def name(self) -> str: ...

    @property
    def bits(self) -> int: ...

    @property
    def group(self) -> int: ...

    def parts(self, rows: int, cols: int) -> tuple[Part, ...]:
        """The arrays of a matrix [rows, cols], in the order in which they are stored. `InputError` where the shape does
        not fit the format (K not a multiple of the group or of a block of codes)."""
        ...

    def unpack(self, arrays: Arrays) -> torch.Tensor:
        """float32 [N, K]: exactly the numbers that the arrays stand for."""
        ...


def check_columns(name: str, cols: int, multiple: int) -> None:
    """`InputError` unless `cols` is a positive multiple of `multiple`."""
    if cols <= 0 or cols % multiple:
        raise InputError(
            f"{name}: got a matrix of {cols} columns; expected a multiple of {multiple}; use another format"
        )


def check_codes(name: str, codes_NK: torch.Tensor, bits: int) -> None:
    """`InputError` unless `codes_NK` is an integer matrix with values in [0, 2**bits)."""
    if codes_NK.dim() != 2 or codes_NK.dtype.is_floating_point:
        raise InputError(
            f"{name}: got codes {codes_NK.dtype} {list(codes_NK.shape)}; expected an integer matrix [N, K]"
        )
    exact = codes_NK.dtype == torch.uint8 and bits == 8
    if not exact and codes_NK.numel() and not 0 <= int(codes_NK.min()) <= int(codes_NK.max()) < 1 << bits:
        raise InputError(
            f"{name}: got codes from {int(codes_NK.min())} to {int(codes_NK.max())}; expected 0 to {(1 << bits) - 1}"
        )


def check_arrays(fmt: QuantFormat, arrays: Arrays, rows: int, cols: int) -> None:
    """`InputError` unless `arrays` are the parts of a [rows, cols] matrix, of the right dtypes, with finite floats."""
    parts = fmt.parts(rows, cols)
    if set(arrays) != {part.name for part in parts}:
        wanted = ", ".join(part.name for part in parts)
        raise InputError(f"{fmt.name}: got arrays {', '.join(sorted(arrays))}; expected {wanted}")
    for part in parts:
        array = arrays[part.name]
        if tuple(array.shape) != part.shape or array.dtype != part.dtype:
            raise InputError(
                f"{fmt.name}: got {part.name} {array.dtype} {list(array.shape)}; expected {part.dtype} {list(part.shape)}"
            )
        if part.dtype.is_floating_point and not bool(torch.isfinite(array.float()).all()):
            raise InputError(
                f"{fmt.name}: got values in {part.name} that are not finite; expected finite numbers; the checkpoint is damaged"
            )
