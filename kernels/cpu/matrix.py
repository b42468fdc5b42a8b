"""`Matrix`: what a CPU kernel must know of one stored matrix of a slot, and how it reads its arrays.

Legend: N rows, K columns, G columns of a group.
"""

from dataclasses import dataclass

import torch

from rgpu.kernels.cpu.emit import F16, F32, I8, I16, I32, LANES, Emitter, Value
from rgpu.quant.layout import SlotLayout

KINDS = {
    torch.float16: F16, torch.float32: F32, torch.int16: I16, torch.bfloat16: I16, torch.uint8: I8, torch.int8: I8,
    torch.int32: I32,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Matrix:
    """One matrix [rows, cols] of a slot. `paired`: rows 2i and 2i + 1 are row i of gate and of up.

    `arrays`: (name, first byte in the slot, columns of the array, its dtype). `group` is `cols` where a row has one scale.
    """

    format: str
    rows: int
    cols: int
    group: int
    paired: bool
    arrays: tuple[tuple[str, int, int, torch.dtype], ...]

    @property
    def word_bits(self) -> int:
        """Bits of `q` that one column takes."""
        return next(8 * columns * dtype.itemsize for name, _, columns, dtype in self.arrays if name == "q") // self.cols

    def has(self, name: str) -> bool:
        """Whether the matrix has the array."""
        return any(name == array[0] for array in self.arrays)


def matrix_of(layout: SlotLayout, name: str) -> Matrix:
    """`gate_up` or `down` of `layout`."""
    rows, cols = next((rows, cols) for matrix, rows, cols in layout.matrices if matrix == name)
    fmt = layout.format_of(name)
    sections = {key.partition(".")[2]: s for key, s in layout.sections.items() if key.startswith(f"{name}.")}
    arrays = tuple((key, s.offset, s.part.shape[-1], s.part.dtype) for key, s in sections.items())
    return Matrix(fmt.name, rows, cols, fmt.group or cols, name == "gate_up", arrays)


def padded_groups(matrix: Matrix) -> int:
    """Groups of a row, rounded up to whole vectors."""
    return -(-matrix.cols // matrix.group // LANES) * LANES


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads the arrays of `matrix` in the slot at address `slot`; rows and columns are those of the array read."""

    emit: Emitter
    matrix: Matrix
    slot: Value

    def at(self, name: str, row: Value, column: Value) -> Value:
        """The byte of the slot at which [row, column] of an array lies."""
        _, offset, columns, dtype = self._array(name)
        emit, size = self.emit, dtype.itemsize
        return emit.add(emit.mul(row, columns * size), emit.add(offset, emit.mul(column, size)))

    def words(self, name: str, row: Value, column: Value) -> Value:
        """Eight int16 words; `column` is a multiple of eight."""
        return self.emit.load(I16, self.slot, self.at(name, row, column), align=16)

    def numbers(self, name: str, row: Value, column: Value, lanes: int) -> Value:
        """`lanes` neighbours as float32 (float16, bfloat16 or float32 as numbers, uint8 and int8 as integers)."""
        emit, dtype = self.emit, self._array(name)[3]
        raw = emit.load(KINDS[dtype], self.slot, self.at(name, row, column), lanes=lanes)
        if dtype == torch.float32:
            return raw
        if dtype == torch.bfloat16:
            return emit.as_floats(emit.left(emit.wide(raw), 16))
        if dtype == torch.float16:
            return emit.floats(raw)
        return emit.floats(emit.wide(raw, signed=dtype == torch.int8))

    def one(self, name: str, row: Value, column: Value, lanes: int) -> Value:
        """One float16 or float32 number, as float32 in every lane."""
        dtype = self._array(name)[3]
        scalar = self.emit.load(KINDS[dtype], self.slot, self.at(name, row, column), lanes=0)
        return self.emit.splat(self.emit.ir.fpext(scalar, F32) if dtype == torch.float16 else scalar, lanes)

    def bytes(self, name: str, row: Value, column: Value, lanes: int) -> Value:
        """`lanes` neighbouring bytes as they are."""
        return self.emit.load(I8, self.slot, self.at(name, row, column), lanes=lanes)

    def _array(self, name: str) -> tuple[str, int, int, torch.dtype]:
        return next(array for array in self.matrix.arrays if array[0] == name)
