"""Random experts in slots at a model's real size, and which of them every call of a benchmark uses.

Legend: T tokens, D hidden size, K top-k, S slots, B bytes of a slot.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from rgpu.errors import InputError
from rgpu.kernels.shapes import FAMILIES, MODELS, ModelShape
from rgpu.quant.format import QuantFormat
from rgpu.quant.int4 import Int4
from rgpu.quant.layout import SlotLayout
from rgpu.types import Gate

FORMATS: dict[str, QuantFormat] = {"int4-g32": Int4(32), "int4-g64": Int4(64), **dict(FAMILIES)}
# the largest code by which a scale is multiplied, so that weights come out of the order of 1 / sqrt(columns)
_REACH = {"nf4": 1, "int8": 120, "q8_0": 120, "fp8_block": 200, "q4_k": 600, "q6_k": 1200}


@dataclass(frozen=True)
class Pool:
    """The slots of one layer's experts in a format, all of them filled."""

    model: str
    format: str
    layout: SlotLayout
    gate: Gate
    top_k: int
    slots_SB: torch.Tensor


@dataclass(frozen=True)
class Routed:
    """One call: `x_TD` bfloat16, `slot_TK` int32, `weight_TK` float32; `expert_TK` int64 and `plain_TK` bfloat16 are the
    same for those who want them so; `distinct`: how many different experts it reads."""

    x_TD: torch.Tensor
    slot_TK: torch.Tensor
    weight_TK: torch.Tensor
    expert_TK: torch.Tensor
    plain_TK: torch.Tensor
    distinct: int


def model_of(name: str) -> ModelShape:
    """The model's shape by name; `InputError` for an unknown one."""
    return _one(name, {model.name: model for model in MODELS}, "models")


def format_of(name: str) -> QuantFormat:
    """The storage format by name; `InputError` for an unknown one."""
    return _one(name, FORMATS, "formats")


def _one(name: str, known: dict[str, Any], key: str) -> Any:
    if name not in known:
        raise InputError(f"{key}: got {name!r}; expected some of {', '.join(known)}; leave {key} out for the defaults")
    return known[name]


def make_pool(model: ModelShape, name: str, device: torch.device, working_set: int, most_bytes: int, seed: int) -> Pool:
    """A layer's experts, or more where together they take less than `working_set` bytes, or fewer where they would take
    more than `most_bytes`. `InputError` where the format does not fit the model's widths or one token's experts not the
    memory."""
    layout = model.layout(format_of(name))
    wanted = max(model.experts, -(-working_set // layout.stride))
    count = min(wanted, most_bytes // layout.stride)
    if count < model.top_k:
        raise InputError(
            f"{model.name} {name}: got room for {count} experts of {layout.stride} bytes; expected {model.top_k} or more; "
            "free memory"
        )
    raw = torch.empty(count * layout.stride + 128, dtype=torch.uint8, device=device)
    start = -raw.data_ptr() % 128
    slots_SB = raw[start : start + count * layout.stride].view(count, layout.stride)
    fill(layout, slots_SB, torch.Generator(device).manual_seed(seed))
    return Pool(model.name, name, layout, model.gate, model.top_k, slots_SB)


def fill(layout: SlotLayout, slots_SB: torch.Tensor, make: torch.Generator) -> None:
    """Writes random values that are legal for the format into every array of every slot, in place."""
    slots_SB.zero_()
    for key, section in layout.sections.items():
        matrix, _, name = key.partition(".")
        cols = next(cols for other, _, cols in layout.matrices if other == matrix)
        raw = slots_SB[:, section.offset : section.offset + section.part.nbytes]
        array = raw.view(section.part.dtype)
        fmt = layout.format_of(matrix).name
        if name == "order":
            for row in array:
                row.copy_(torch.randperm(cols, generator=make, device=row.device))
        elif name == "bias":
            array.normal_(0, 0.3, generator=make)
        elif section.part.dtype.is_floating_point:
            top = 1.7 if fmt == "bf16" else 1.0 / _REACH.get(fmt, 8)
            low = -top if fmt == "bf16" else top / 3
            array.uniform_(low / cols**0.5, top / cols**0.5, generator=make)
        else:
            array.random_(*_codes(fmt, name), generator=make)
            if fmt == "fp8_block":
                array.bitwise_and_(0xF7F7 - (1 << 16))  # 0x7f and 0xff would be NaN


def _codes(fmt: str, name: str) -> tuple[int, int]:
    """The values, end excluded, that an array of integers may hold."""
    if name in ("q", "high"):
        return -(1 << 15), 1 << 15
    if name == "zero":
        return 0, 16
    return {"mxfp4": (118, 123), "nvfp4": (40, 64), "q6_k": (-40, 41)}.get(fmt, (0, 64))


def free_bytes(device: torch.device) -> int:
    """Memory that nothing uses now; 8 GiB where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if "SC_AVPHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 8 * 2**30


def calls(pool: Pool, rows: int, count: int, seed: int, device: torch.device) -> Iterator[Routed]:
    """`count` calls of `rows` tokens, each token with K different experts drawn evenly from all slots."""
    make = torch.Generator().manual_seed(seed)
    slots = len(pool.slots_SB)
    for _ in range(count):
        chosen_TK = torch.rand(rows, slots, generator=make).topk(pool.top_k, dim=1).indices
        weight_TK = torch.rand(rows, pool.top_k, generator=make) + 0.1
        weight_TK = (weight_TK / weight_TK.sum(1, keepdim=True)).to(device)
        x_TD = torch.randn(rows, pool.layout.hidden, generator=make).bfloat16().to(device)
        distinct, expert_TK = chosen_TK.unique().numel(), chosen_TK.to(device)
        yield Routed(x_TD, expert_TK.int(), weight_TK, expert_TK, weight_TK.bfloat16(), distinct)
