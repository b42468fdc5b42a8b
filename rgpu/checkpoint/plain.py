"""Float experts, as bf16 or quantised on the fly.

Legend: N rows, K columns.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from rgpu.checkpoint.module import Module
from rgpu.checkpoint.reader import Matrix, Modules
from rgpu.errors import InputError
from rgpu.quant.bf16 import Bf16
from rgpu.quant.format import QuantFormat

FLOATS = (torch.bfloat16, torch.float16, torch.float32)


class Quantizer(QuantFormat, Protocol):
    """A format that floats can be rounded to."""

    def quantize(self, weight_NK: torch.Tensor) -> dict[str, torch.Tensor]:
        """The arrays nearest to a float matrix [N, K]."""
        ...


@dataclass(frozen=True, slots=True)
class Plain:
    """bfloat16 weights, kept; or weights in any of `FLOATS`, rounded to `format` by its `quantize` where `rounding`."""

    format: QuantFormat
    rounding: Quantizer | None = None

    def matrix(self, module: Module) -> Matrix:
        """See `Codec.matrix`."""
        module.only(("weight",))
        if self.rounding is not None:
            weight_NK = module.matrix("weight", *FLOATS)
            return Matrix(self.rounding.quantize(weight_NK.float()), *weight_NK.shape)
        weight_NK = module.matrix("weight", torch.bfloat16)
        return Matrix(Bf16().store(weight_NK), *weight_NK.shape)


def plain(settings: Mapping[str, Any], first: Modules, rounding: Quantizer | None = None) -> Plain:
    """The codec of float experts. `InputError` for other floats than bfloat16 without a format to round to: they do not
    fit it without loss, and nothing is lost in silence."""
    dtype = first[0].matrix("weight", *FLOATS).dtype
    if rounding is None and dtype != torch.bfloat16:
        raise InputError(
            f"cannot keep {first[0].name('weight')} as it is: got {str(dtype).removeprefix('torch.')}; expected bfloat16 "
            "weights; give quantize= a format to round to"
        )
    if getattr(rounding, "act_order", False):
        raise InputError(
            "cannot round float experts: got a format with act_order; expected one without: rounding to nearest "
            "orders no columns"
        )
    return Plain(Bf16() if rounding is None else rounding, rounding)
