"""How one expert lies in memory: the same bytes in the store file and in a slot, so that a load is one copy.

Float experts keep the arrangement of the model's own module (`ExpertLayout`), so that a matrix product over them is bit for
bit the model's; quantised ones have `rgpu.quant.layout.SlotLayout`, made for the kernels. Legend: I expert width, D hidden
size.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import torch

from rgpu.checkpoint.float_expert import FloatExpert
from rgpu.errors import InputError
from rgpu.quant.formats import by_name, named
from rgpu.quant.layout import SlotLayout

ALIGNMENT = 128
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def aligned(size: int, to: int = ALIGNMENT) -> int:
    """`size` rounded up to a multiple of `to` bytes."""
    return -(-size // to) * to


class RowLayout(Protocol):
    """What store and pools need to know of an expert's bytes: `payload_bytes` counts in results, `nbytes` are copied,
    `stride` bytes lie between the starts of two experts."""

    @property
    def intermediate(self) -> int: ...

    @property
    def hidden(self) -> int: ...

    @property
    def payload_bytes(self) -> int: ...

    @property
    def nbytes(self) -> int: ...

    @property
    def stride(self) -> int: ...


class ExpertWeights(NamedTuple):
    """Views of one expert's arrays as its module holds them; biases or None."""

    gate_up: torch.Tensor
    down: torch.Tensor
    gate_up_bias: torch.Tensor | None = None
    down_bias: torch.Tensor | None = None


@dataclass(frozen=True)
class ExpertLayout:
    """One contiguous buffer an expert: gate_up [2I, D], then down [D, I], each starting 128-byte aligned; `transposed`
    ones are [D, 2I] and [I, D]. `interleaved`: gate and up alternate in gate_up (both as in gpt-oss), else gate comes first.
    `bias`: gate_up's [2I] and down's [D] follow, in the same dtype."""

    intermediate: int
    hidden: int
    dtype: torch.dtype
    bias: bool = False
    transposed: bool = False
    interleaved: bool = False

    @cached_property
    def _sections(self) -> tuple[tuple[int, tuple[int, ...]], ...]:
        """(byte at which an array starts, its shape) of each array, in the order of `ExpertWeights`."""
        wide, narrow = (2 * self.intermediate, self.hidden), (self.hidden, self.intermediate)
        shapes: list[tuple[int, ...]] = [wide[::-1], narrow[::-1]] if self.transposed else [wide, narrow]
        if self.bias:
            shapes += [(2 * self.intermediate,), (self.hidden,)]
        placed, end = [], 0
        for shape in shapes:
            start = aligned(end)
            placed.append((start, shape))
            end = start + _numbers(shape) * self.dtype.itemsize
        return tuple(placed)

    @property
    def payload_bytes(self) -> int:
        """Bytes of the weights alone: the size of an expert as results count it."""
        return sum(_numbers(shape) for _, shape in self._sections) * self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes a load copies."""
        start, shape = self._sections[-1]
        return start + _numbers(shape) * self.dtype.itemsize

    @property
    def stride(self) -> int:
        """Bytes from one expert to the next, in the store and in a pool."""
        return aligned(self.nbytes)

    def views(self, row: torch.Tensor) -> ExpertWeights:
        """The arrays over a uint8 `row` of `nbytes` or more."""
        return ExpertWeights(*(
            row[start : start + _numbers(shape) * self.dtype.itemsize].view(self.dtype).view(shape)
            for start, shape in self._sections
        ))  # fmt: skip

    def fill(self, row: torch.Tensor, expert: FloatExpert) -> None:
        """Write one expert into a uint8 `row`, converted to the layout's dtype."""
        views, (gate, up, down) = self.views(row), expert.matrices
        wide, narrow = (views.gate_up.T, views.down.T) if self.transposed else (views.gate_up, views.down)
        self._half(wide, 0).copy_(gate)
        self._half(wide, 1).copy_(up)
        narrow.copy_(down)
        if self.bias:
            assert views.gate_up_bias is not None and views.down_bias is not None and expert.biases is not None
            self._half(views.gate_up_bias, 0).copy_(expert.biases[0])
            self._half(views.gate_up_bias, 1).copy_(expert.biases[1])
            views.down_bias.copy_(expert.biases[2])

    def _half(self, rows: torch.Tensor, which: int) -> torch.Tensor:
        """Gate's (0) or up's (1) rows of gate_up."""
        return rows[which::2] if self.interleaved else rows[which * self.intermediate : (which + 1) * self.intermediate]


def _numbers(shape: tuple[int, ...]) -> int:
    return shape[0] if len(shape) == 1 else shape[0] * shape[1]


def described(layout: "ExpertLayout | SlotLayout") -> dict[str, Any]:
    """The layout as JSON; `layout_of` is the inverse."""
    sizes = {"intermediate": layout.intermediate, "hidden": layout.hidden, "bias": layout.bias}
    if isinstance(layout, ExpertLayout):
        return {
            **sizes,
            "dtype": dtype_name(layout.dtype),
            "transposed": layout.transposed,
            "interleaved": layout.interleaved,
        }
    down = None if layout.down_format is None else named(layout.down_format)
    return {**sizes, "format": named(layout.format), "down_format": down}


def layout_of(data: Mapping[str, Any]) -> "ExpertLayout | SlotLayout":
    """The layout that `described` wrote."""
    sizes = (int(data["intermediate"]), int(data["hidden"]))
    if "dtype" in data:
        flags = (bool(data[name]) for name in ("bias", "transposed", "interleaved"))
        return ExpertLayout(*sizes, DTYPES[data["dtype"]], *flags)
    down = None if data["down_format"] is None else by_name(**data["down_format"])
    return SlotLayout(*sizes, by_name(**data["format"]), bool(data["bias"]), down)


def dtype_name(dtype: torch.dtype) -> str:
    """The name that `DTYPES` has for it; `InputError` for another dtype."""
    for name, known in DTYPES.items():
        if known == dtype:
            return name
    raise InputError(f"unsupported dtype {dtype}: expected one of {', '.join(DTYPES)}")
