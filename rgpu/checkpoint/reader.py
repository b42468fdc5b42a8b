"""`ExpertReader`: experts out of a checkpoint in the arrays of a storage format, one expert at a time.

Legend: I expert width, D hidden size.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

import torch

from rgpu.checkpoint.expert_tensors import ExpertTensors
from rgpu.checkpoint.module import Module
from rgpu.errors import InputError
from rgpu.quant.format import Arrays, QuantFormat
from rgpu.quant.layout import ExpertArrays, SlotLayout


class ExpertReader(Protocol):
    """The routed experts of one checkpoint. `layer_ids`: the model's layer numbers that hold experts; `experts` a layer
    of `intermediate` x `hidden`; `bias`: whether the projections have biases. A context manager: `close` lets go of the
    files. `format` is that of gate and up in the first layer; `layout` is every layer's (`InputError` where layers
    differ, as in some GGUF files), `layout_of` one layer's.
    """

    @property
    def format(self) -> QuantFormat: ...

    @property
    def layer_ids(self) -> tuple[int, ...]: ...

    @property
    def experts(self) -> int: ...

    @property
    def intermediate(self) -> int: ...

    @property
    def hidden(self) -> int: ...

    @property
    def bias(self) -> bool: ...

    @property
    def layout(self) -> SlotLayout: ...

    def layout_of(self, layer: int) -> SlotLayout: ...

    def read(self, layer: int, expert: int) -> ExpertArrays:
        """One expert as it is stored, bits moved but none changed. `InputError` for tensors that are missing, damaged or
        of another layout than the rest, naming the tensor and what was expected."""
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class Matrix:
    """One projection: `arrays` of a [rows, cols] matrix, and `order` int32 [cols] where its columns are sorted by group
    (see `ExpertArrays`)."""

    arrays: Arrays
    rows: int
    cols: int
    order: torch.Tensor | None = None


class Codec(Protocol):
    """How a kind of checkpoint stores one projection: made from its settings and its first expert, so that `format` is
    known before anything else is read."""

    @property
    def format(self) -> QuantFormat: ...

    def matrix(self, module: Module) -> Matrix: ...


Modules = tuple[Module, Module, Module]
MakeCodec = Callable[[Mapping[str, Any], Modules], Codec]


class SafetensorsExperts:
    """An `ExpertReader` of a safetensors checkpoint: `tensors` finds the experts, `codec` reads a projection."""

    def __init__(self, tensors: ExpertTensors, codec: Codec) -> None:
        self.tensors = tensors
        self.codec = codec
        self.format = codec.format
        self.layer_ids, self.experts = tensors.layer_ids, tensors.experts
        modules = tensors.modules(self.layer_ids[0], 0)
        gate = self._matrix(modules[0])
        self.intermediate, self.hidden = gate.rows, gate.cols
        self.bias = modules[0].bias() is not None
        self.layout = SlotLayout(self.intermediate, self.hidden, self.format, self.bias)
        self.layout.nbytes  # noqa: B018  (a width that the format cannot hold is refused here, not at the first expert)

    def layout_of(self, layer: int) -> SlotLayout:
        """See `ExpertReader`: the same for every layer."""
        return self.layout

    def read(self, layer: int, expert: int) -> ExpertArrays:
        """See `ExpertReader.read`."""
        modules = self.tensors.modules(layer, expert)
        gate, up, down = (self._matrix(module) for module in modules)
        sizes = ((self.intermediate, self.hidden), (self.intermediate, self.hidden), (self.hidden, self.intermediate))
        for module, matrix, size in zip(modules, (gate, up, down), sizes, strict=True):
            if (matrix.rows, matrix.cols) != size:
                raise InputError(
                    f"cannot read the {module.title}: got a matrix {[matrix.rows, matrix.cols]} in {module.stem}; expected "
                    f"{list(size)} as in every other expert"
                )
        biases = modules[0].bias(), modules[1].bias(), modules[2].bias()
        for module, bias, (rows, _) in zip(modules, biases, sizes, strict=True):
            if (bias is not None) != self.bias or (bias is not None and tuple(bias.shape) != (rows,)):
                got = "no bias" if bias is None else f"a bias {list(bias.shape)}"
                raise InputError(
                    f"cannot read the {module.title}: got {got} in {module.stem}; expected "
                    f"{f'one of [{rows}]' if self.bias else 'none'} as in the first expert"
                )
        if gate.order is not None and (up.order is None or not torch.equal(gate.order, up.order)):
            raise InputError(
                f"cannot read the {modules[1].title}: got another order of columns in {modules[1].stem} than in "
                f"{modules[0].stem}; expected one order for gate and up (quantise them together)"
            )
        return ExpertArrays(gate.arrays, up.arrays, down.arrays, *biases, gate.order, down.order)

    def _matrix(self, module: Module) -> Matrix:
        try:
            return self.codec.matrix(module)
        except InputError as error:
            if module.title in str(error):
                raise
            raise InputError(f"cannot read the {module.title} ({module.stem}): {error}") from None

    def close(self) -> None:
        """Drops the file handles (and their mappings)."""
        self.tensors.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
