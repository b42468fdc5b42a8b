"""How one expert lies in memory: the same bytes in the store file and in a slot, so that a load is one copy.

Legend: I expert width, D hidden size.
"""

from dataclasses import dataclass

import torch

ALIGNMENT = 128
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def aligned(size: int, to: int = ALIGNMENT) -> int:
    """`size` rounded up to a multiple of `to` bytes."""
    return -(-size // to) * to


@dataclass(frozen=True, slots=True)
class ExpertLayout:
    """One contiguous buffer an expert: gate_up [2I, D], then down [D, I], each starting 128-byte aligned."""

    intermediate: int
    hidden: int
    dtype: torch.dtype

    @property
    def payload_bytes(self) -> int:
        """Bytes of the weights alone: the size of an expert as results count it."""
        return 3 * self.intermediate * self.hidden * self.dtype.itemsize

    @property
    def down_offset(self) -> int:
        """Byte at which the down projection starts."""
        return aligned(2 * self.intermediate * self.hidden * self.dtype.itemsize)

    @property
    def nbytes(self) -> int:
        """Bytes a load copies."""
        return self.down_offset + self.intermediate * self.hidden * self.dtype.itemsize

    @property
    def stride(self) -> int:
        """Bytes from one expert to the next, in the store and in a pool."""
        return aligned(self.nbytes)

    def views(self, row: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`gate_up` [2I, D] and `down` [D, I] over a uint8 `row` of `nbytes` or more."""
        values = 2 * self.intermediate * self.hidden * self.dtype.itemsize
        gate_up = row[:values].view(self.dtype).view(2 * self.intermediate, self.hidden)
        down = row[self.down_offset : self.nbytes].view(self.dtype).view(self.hidden, self.intermediate)
        return gate_up, down
