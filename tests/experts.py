"""Random experts in any storage format, in slots, for tests of what computes them."""

from collections.abc import Sequence

import torch

from rgpu.quant.format import QuantFormat
from rgpu.quant.layout import DenseExpert, ExpertArrays, SlotLayout


def random_arrays(fmt: QuantFormat, rows: int, cols: int, seed: int) -> dict[str, torch.Tensor]:
    """Arrays of a [rows, cols] matrix in which every code occurs and weights are of the order of 1 / sqrt(cols)."""
    make = torch.Generator().manual_seed(seed)
    arrays = {}
    for part in fmt.parts(rows, cols):
        if part.name == "q" and fmt.name == "bf16":
            array = torch.randn(part.shape, generator=make) / cols**0.5
        elif part.name in ("q", "high"):
            array = torch.randint(-(1 << 15), 1 << 15, part.shape, generator=make)
            if fmt.name == "fp8_block":  # 0x7f and 0xff are NaN
                for byte in (0, 8):
                    array = torch.where((array >> byte) & 0x7F == 0x7F, array ^ (1 << byte), array)
        elif part.dtype.is_floating_point:
            spread = {"int8": 60, "q8_0": 60, "fp8_block": 100, "q4_k": 300, "q6_k": 600}.get(fmt.name, 5)
            array = (0.5 + torch.rand(part.shape, generator=make)) / spread / cols**0.5
            array = torch.where(torch.rand(part.shape, generator=make) < 0.2, -array, array)
            if part.name == "global":
                array = array * 0.2
        elif part.dtype == torch.int8:
            array = torch.randint(-40, 41, part.shape, generator=make)
        elif fmt.name == "mxfp4":
            array = torch.randint(118, 123, part.shape, generator=make)
            array[torch.rand(part.shape, generator=make) < 0.1] = 0  # 2**-127
        elif fmt.name == "nvfp4":
            array = torch.randint(40, 64, part.shape, generator=make)
            odd = torch.rand(part.shape, generator=make)  # subnormal and negative scales
            array = torch.where(odd < 0.1, array % 8, torch.where(odd < 0.3, array + 128, array))
        elif part.name == "zero":
            array = torch.randint(0, 16, part.shape, generator=make)
        else:
            array = torch.randint(0, 64, part.shape, generator=make)
        arrays[part.name] = array.to(part.dtype)
    return arrays


def random_expert(layout: SlotLayout, seed: int) -> ExpertArrays:
    """An expert of random codes, scales, biases and column orders."""
    wide, narrow = (layout.intermediate, layout.hidden), (layout.hidden, layout.intermediate)
    up_fmt, down_fmt = layout.format_of("gate_up"), layout.format_of("down")
    make = torch.Generator().manual_seed(seed)
    biases = [torch.randn(n, generator=make) * 0.3 for n in (wide[0], wide[0], wide[1])] if layout.bias else [None] * 3
    orders = (
        [torch.randperm(n, generator=make).int() for n in wide[::-1]] if getattr(up_fmt, "act_order", False) else []
    )
    return ExpertArrays(
        random_arrays(up_fmt, *wide, seed), random_arrays(up_fmt, *wide, seed + 1),
        random_arrays(down_fmt, *narrow, seed + 2), *biases, *orders,
    )  # fmt: skip


def filled_slots(layout: SlotLayout, count: int, seed: int = 0) -> torch.Tensor:
    """uint8 [count, stride], 128-byte aligned, an expert in every slot."""
    raw = torch.full((count * layout.stride + 128,), 0xA5, dtype=torch.uint8)
    start = -raw.data_ptr() % 128
    slots = raw[start : start + count * layout.stride].view(count, layout.stride)
    for slot in range(count):
        layout.pack(random_expert(layout, seed + 10 * slot), slots[slot])
    return slots


def routing(tokens: int, top_k: int, slots: Sequence[int], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """(slot_TK int32 drawn from `slots`, weight_TK float32 that sums to 1 over K)."""
    make = torch.Generator().manual_seed(seed)
    picks = torch.randint(0, len(slots), (tokens, top_k), generator=make)
    weight_TK = torch.rand(tokens, top_k, generator=make) + 0.1
    return torch.tensor(list(slots), dtype=torch.int32)[picks], weight_TK / weight_TK.sum(1, keepdim=True)


def dense_of(layout: SlotLayout, slots: torch.Tensor) -> list[DenseExpert]:
    """Every slot's expert in numbers."""
    return [layout.unpack(row) for row in slots]
