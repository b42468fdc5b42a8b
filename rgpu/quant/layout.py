"""How one expert lies in memory: the same bytes in the store and in a slot, so that a load is one copy.

Gate and up are one matrix `gate_up` [2I, D] whose row 2i is row i of gate and row 2i + 1 row i of up, so that the program
which computes output i reads one region. `down` is [D, I]. Every array starts at a multiple of 128 bytes.

Legend: I expert width, D hidden size.
"""

from dataclasses import dataclass
from functools import cached_property

import torch

from rgpu.errors import InputError
from rgpu.quant.format import Arrays, Part, QuantFormat, check_arrays

ALIGNMENT = 128


@dataclass(frozen=True, slots=True)
class Section:
    """An array of the buffer and the byte at which it starts."""

    offset: int
    part: Part


@dataclass(frozen=True, slots=True)
class ExpertArrays:
    """One expert as its three stored matrices, with biases float32 [I], [I], [D] or None.

    `order_D`, `order_I`: which original input column each stored column is (act-order), int32, for gate and up together
    and for down; None: natural order.
    """

    gate: Arrays
    up: Arrays
    down: Arrays
    gate_bias: torch.Tensor | None = None
    up_bias: torch.Tensor | None = None
    down_bias: torch.Tensor | None = None
    order_D: torch.Tensor | None = None
    order_I: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class DenseExpert:
    """One expert in numbers: `gate` [I, D], `up` [I, D], `down` [D, I], float32, columns in natural order; biases or None."""

    gate: torch.Tensor
    up: torch.Tensor
    down: torch.Tensor
    gate_bias: torch.Tensor | None = None
    up_bias: torch.Tensor | None = None
    down_bias: torch.Tensor | None = None


@dataclass(frozen=True)
class SlotLayout:
    """One contiguous buffer an expert of `intermediate` x `hidden` in `format`; `bias`: the projections have biases.
    `down_format`: the format of down where it is another (GGUF files mix q4_k and q6_k so).

    With `format.act_order` the rows of gate_up are stored in the order in which down wants its columns, so only the input
    of gate_up has to be permuted when it is computed (`gate_up.order`); `down.order` serves `unpack` alone.
    """

    intermediate: int
    hidden: int
    format: QuantFormat
    bias: bool = False
    down_format: QuantFormat | None = None

    def format_of(self, matrix: str) -> QuantFormat:
        """The format of `gate_up` or `down`."""
        return self.format if matrix == "gate_up" or self.down_format is None else self.down_format

    @cached_property
    def sections(self) -> dict[str, Section]:
        """`gate_up.<part>`, `gate_up.bias`, `gate_up.order`, then the same of `down`, in the order of the buffer."""
        placed: dict[str, Section] = {}
        end = 0
        for matrix, rows, cols in self.matrices:
            fmt = self.format_of(matrix)
            parts = list(_doubled(fmt.parts(rows // 2, cols)) if matrix == "gate_up" else fmt.parts(rows, cols))
            if self.bias:
                parts.append(Part("bias", torch.float32, (rows,)))
            if getattr(self.format, "act_order", False):
                parts.append(Part("order", torch.int32, (cols,)))
            for part in parts:
                start = -(-end // ALIGNMENT) * ALIGNMENT
                placed[f"{matrix}.{part.name}"] = Section(start, part)
                end = start + part.nbytes
        return placed

    @property
    def matrices(self) -> tuple[tuple[str, int, int], ...]:
        """(name, rows, columns) of the two stored matrices."""
        return ("gate_up", 2 * self.intermediate, self.hidden), ("down", self.hidden, self.intermediate)

    @property
    def payload_bytes(self) -> int:
        """Bytes of all arrays without the gaps between them: the size of an expert as results count it."""
        return sum(section.part.nbytes for section in self.sections.values())

    @cached_property
    def nbytes(self) -> int:
        """Bytes a load copies."""
        last = list(self.sections.values())[-1]
        return last.offset + last.part.nbytes

    @property
    def stride(self) -> int:
        """Bytes from one expert to the next, in the store and in a pool: a multiple of 128."""
        return -(-self.nbytes // ALIGNMENT) * ALIGNMENT

    @property
    def bits_per_weight(self) -> float:
        """Payload bits over weights, scales included."""
        return 8.0 * self.payload_bytes / (3 * self.intermediate * self.hidden)

    def views(self, row: torch.Tensor) -> dict[str, torch.Tensor]:
        """The arrays of one expert over its uint8 buffer `row` of `nbytes` or more, without copying."""
        if row.dtype != torch.uint8 or row.dim() != 1 or row.numel() < self.nbytes or not row.is_contiguous():
            raise InputError(
                f"cannot view an expert: got {row.dtype} {list(row.shape)}; expected contiguous uint8 [{self.nbytes}] or more"
            )
        if row.data_ptr() % 16:
            raise InputError(
                "cannot view an expert: got a buffer that is not 16-byte aligned; align slots to 128 bytes"
            )
        found = {}
        for name, section in self.sections.items():
            raw = row[section.offset : section.offset + section.part.nbytes]
            found[name] = raw.view(section.part.dtype).view(section.part.shape)
        return found

    def pack(self, expert: ExpertArrays, row: torch.Tensor) -> None:
        """Writes `expert` into its buffer `row`; bits are permuted, never changed. Raises `InputError` for arrays of the
        wrong shape or dtype, values that are not finite, and biases that are missing or too many."""
        self._check(expert)
        views = self.views(row)
        order = expert.order_I.long() if expert.order_I is not None else None
        for name, array in expert.gate.items():
            views[f"gate_up.{name}"][0::2] = _rows(array, order)
            views[f"gate_up.{name}"][1::2] = _rows(expert.up[name], order)
        for name, array in expert.down.items():
            views[f"down.{name}"].copy_(array)
        if self.bias:
            assert expert.gate_bias is not None and expert.up_bias is not None and expert.down_bias is not None
            views["gate_up.bias"][0::2] = _rows(expert.gate_bias, order)
            views["gate_up.bias"][1::2] = _rows(expert.up_bias, order)
            views["down.bias"].copy_(expert.down_bias)
        if expert.order_D is not None and expert.order_I is not None:
            views["gate_up.order"].copy_(expert.order_D)
            views["down.order"].copy_(expert.order_I)

    def arrays(self, row: torch.Tensor) -> ExpertArrays:
        """The exact inverse of `pack`."""
        views = self.views(row)
        ordered = "down.order" in views
        orders = (views["gate_up.order"].clone(), views["down.order"].clone()) if ordered else (None, None)
        back = None if orders[1] is None else torch.argsort(orders[1])
        names = [part.name for part in self.format.parts(self.intermediate, self.hidden)]
        gate = {name: _rows(views[f"gate_up.{name}"][0::2], back) for name in names}
        up = {name: _rows(views[f"gate_up.{name}"][1::2], back) for name in names}
        down_names = [part.name for part in self.format_of("down").parts(self.hidden, self.intermediate)]
        down = {name: views[f"down.{name}"].clone() for name in down_names}
        if not self.bias:
            return ExpertArrays(gate, up, down, None, None, None, *orders)
        gate_bias, up_bias = (_rows(views["gate_up.bias"][p::2], back) for p in (0, 1))
        return ExpertArrays(gate, up, down, gate_bias, up_bias, views["down.bias"].clone(), *orders)

    def unpack(self, row: torch.Tensor) -> DenseExpert:
        """The expert in float32 numbers, exactly those that the buffer stands for, columns in natural order."""
        arrays = self.arrays(row)
        gate, up = (self.format.unpack(matrix) for matrix in (arrays.gate, arrays.up))
        down = self.format_of("down").unpack(arrays.down)
        if arrays.order_D is not None and arrays.order_I is not None:
            back_D, back_I = torch.argsort(arrays.order_D), torch.argsort(arrays.order_I)
            gate, up, down = gate[:, back_D], up[:, back_D], down[:, back_I]
        return DenseExpert(gate, up, down, arrays.gate_bias, arrays.up_bias, arrays.down_bias)

    def _check(self, expert: ExpertArrays) -> None:
        wide = (self.intermediate, self.hidden)
        for arrays in (expert.gate, expert.up):
            check_arrays(self.format, arrays, *wide)
        check_arrays(self.format_of("down"), expert.down, *wide[::-1])
        biases = (expert.gate_bias, expert.up_bias, expert.down_bias)
        if any((bias is not None) != self.bias for bias in biases):
            raise InputError(f"cannot store an expert: got {sum(b is not None for b in biases)} of 3 biases; "
                             f"expected {3 if self.bias else 0}")  # fmt: skip
        for bias, size in zip(biases, (self.intermediate, self.intermediate, self.hidden), strict=True):
            if bias is None:
                continue
            if bias.dtype != torch.float32 or tuple(bias.shape) != (size,) or not bool(torch.isfinite(bias).all()):
                raise InputError(
                    f"cannot store an expert: got a bias {bias.dtype} {list(bias.shape)}; expected finite float32 [{size}]"
                )
        ordered = getattr(self.format, "act_order", False)
        for order, size in ((expert.order_D, self.hidden), (expert.order_I, self.intermediate)):
            if (order is not None) != ordered:
                raise InputError(
                    f"cannot store an expert: got {'no' if ordered else 'a'} column order; expected "
                    f"{'one' if ordered else 'none'} for a format {'with' if ordered else 'without'} act_order"
                )
            if order is not None and not torch.equal(order.long().sort().values, torch.arange(size)):
                raise InputError(
                    f"cannot store an expert: got another column order; expected a permutation of 0..{size - 1}"
                )


def _doubled(parts: tuple[Part, ...]) -> tuple[Part, ...]:
    return tuple(Part(part.name, part.dtype, (2 * part.shape[0], *part.shape[1:])) for part in parts)


def _rows(array: torch.Tensor, order: torch.Tensor | None) -> torch.Tensor:
    """Rows of `array` in `order` (a copy)."""
    return array.clone(memory_format=torch.contiguous_format) if order is None else array[order]
