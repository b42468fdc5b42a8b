"""`Stored`: what a kernel must know of one matrix of a slot, as one compile-time constant.

Kernels read it through the `constexpr` functions below, so that a launch passes one argument instead of twenty.
"""

from dataclasses import dataclass

import torch
import triton

from rgpu.quant.fields import BLOCK_WORDS
from rgpu.quant.layout import SlotLayout

SCALE_NAMES = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.uint8: "u8",
    torch.int8: "i8",
}


@dataclass(frozen=True, slots=True)
class Stored:
    """One matrix [rows, cols] of a slot: its format, the byte at which each array starts, and the slots' distance.

    `bits`: width of a field of its words. `paired`: rows 2i and 2i + 1 are row i of gate and of up. `scale`: dtype of the
    scales. `at`: (array, first byte).
    """

    format: str
    bits: int
    group: int
    rows: int
    cols: int
    paired: bool
    scale: str
    stride: int
    at: tuple[tuple[str, int], ...]


def stored(layout: SlotLayout, matrix: str, stride: int = 0) -> Stored:
    """The constants of `gate_up` or `down` in `layout`, in slots `stride` bytes apart (0: the layout's own)."""
    rows, cols = next((rows, cols) for name, rows, cols in layout.matrices if name == matrix)
    fmt = layout.format_of(matrix)
    sections = {name.partition(".")[2]: s for name, s in layout.sections.items() if name.startswith(f"{matrix}.")}
    scale = SCALE_NAMES[sections["scale"].part.dtype] if "scale" in sections else ""
    at = tuple((name, section.offset) for name, section in sections.items())
    name = {"q8_0": "int8"}.get(fmt.name, fmt.name)  # the same arrays
    bits = 4 if "high" in sections else fmt.bits  # q6_k: low and high bits lie apart
    return Stored(name, bits, fmt.group or cols, rows, cols, matrix == "gate_up", scale, stride or layout.stride, at)


@triton.constexpr_function
def get(M, name):
    """A field of `Stored`."""
    return getattr(M, name)


@triton.constexpr_function
def has(M, array):
    """Whether the matrix has the array."""
    return array in dict(M.at)


@triton.constexpr_function
def at(M, array):
    """The byte of a slot at which the array starts."""
    return dict(M.at)[array]


@triton.constexpr_function
def fields(M):
    """Codes in a 16-bit word."""
    return 16 // M.bits


@triton.constexpr_function
def blocks(M):
    """Blocks of eight 16-bit words in a row."""
    return M.cols // (BLOCK_WORDS * (16 // M.bits))


@triton.constexpr_function
def parts_of_block(M):
    """How many scales the columns of one block have: 2 where a group is half a block, else 1."""
    return 2 if M.group == 16 and M.bits == 4 else 1
