"""Random stored matrices of every format, all codes and all legal scales possible."""

from typing import Any

import torch

from rgpu.quant.format import QuantFormat
from rgpu.quant.formats import FORMATS
from rgpu.quant.int4 import Int4
from rgpu.quant.int8 import Int8

CASES: tuple[QuantFormat, ...] = (
    *FORMATS,
    Int4(group=32, asymmetric=True, scale_dtype=torch.bfloat16),
    Int4(group=64, scale_dtype=torch.float32, act_order=True),
    Int8(group=64, scale_dtype=torch.bfloat16),
    Int8(group=128, scale_dtype=torch.float32),
)


def case_id(fmt: Any) -> str:
    """A short name of a case for pytest."""
    return "-".join(str(getattr(fmt, a)) for a in ("name", "group", "asymmetric", "act_order") if hasattr(fmt, a))


def integers(rng: torch.Generator, low: int, high: int, *shape: int, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    """Integers in low..high, both included."""
    return torch.randint(low, high + 1, shape, generator=rng).to(dtype)


def e4m3_codes(rng: torch.Generator, *shape: int) -> torch.Tensor:
    """uint8 codes of e4m3fn numbers, none of them NaN."""
    codes = integers(rng, 0, 255, *shape)
    return torch.where((codes & 127) == 127, codes ^ 1, codes)


def stored(fmt: Any, rows: int, cols: int, seed: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """(codes [rows, cols], arrays) of a random matrix in `fmt`."""
    rng = torch.Generator().manual_seed(seed)
    parts = {part.name: part for part in fmt.parts(rows, cols)}

    def floats(name: str) -> torch.Tensor:
        return torch.randn(parts[name].shape, generator=rng).to(parts[name].dtype)

    def small(name: str, low: int, high: int) -> torch.Tensor:
        return integers(rng, low, high, *parts[name].shape, dtype=parts[name].dtype)

    codes = integers(rng, 0, (1 << min(fmt.bits, 8)) - 1, rows, cols)
    match fmt.name:
        case "bf16":
            weight = torch.randn(rows, cols, generator=rng).bfloat16()
            return weight, fmt.store(weight)
        case "int4" if fmt.asymmetric:
            return codes, fmt.store(codes, floats("scale"), small("zero", 0, 15))
        case "fp8_block":
            codes = e4m3_codes(rng, rows, cols)
            return codes, fmt.store(codes, floats("scale"))
        case "mxfp4":
            return codes, fmt.store(codes, small("scale", 0, 252))
        case "nvfp4":
            return codes, fmt.store(codes, e4m3_codes(rng, rows, cols // 16), floats("global"))
        case "q4_k":
            factors = floats("d"), floats("dmin")
            return codes, fmt.store(codes, small("scale", 0, 63), small("min", 0, 63), *factors)
        case "q6_k":
            return codes, fmt.store(codes, small("scale", -128, 127), floats("d"))
        case _:
            return codes, fmt.store(codes, floats("scale"))
