"""Decode: a few tokens through the experts they chose, each (token, expert) pair by itself, from the slots' own bytes.

Three kernels: gate and up with the activation, down, and the sum over a token's experts with the router's weights. Each
pair's output is written once and summed in the order of K, so a result repeats bit for bit and depends neither on which
slot an expert sits in nor on which wave computed it. A pair whose slot is -1 returns at once.

Legend: T tokens, K top-k, P = T * K pairs, D hidden size, I expert width, S slots, B bytes of a slot, N rows of a tile.
"""

from dataclasses import dataclass
from functools import cache

import torch
import triton
import triton.language as tl

from rgpu.errors import InputError
from rgpu.kernels.arguments import check_tensor
from rgpu.kernels.compute_torch import TorchCompute
from rgpu.kernels.gate.shipped import Shipped
from rgpu.kernels.gemv import gemv_rows, halves_position
from rgpu.kernels.shapes import AMD, NVIDIA
from rgpu.kernels.shapes import gated as gated_shapes
from rgpu.kernels.stored import Stored, at, get, has, stored
from rgpu.quant.layout import SlotLayout
from rgpu.quant.nf4 import NF4
from rgpu.types import Gate

_LAUNCH = {"num_warps": 1, "num_stages": 1, "enable_fp_fusion": True}
MOST_PAIRS = 65_535  # programs on the second axis of a grid
_KINDS = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


@triton.jit
def gated(g, u, KIND: tl.constexpr, ALPHA: tl.constexpr, LIMIT: tl.constexpr):
    """h of `rgpu.types.Gate` from the projections g and u, float32."""
    if LIMIT > 0:
        # a NaN must not become a number here
        g = tl.minimum(g, LIMIT, propagate_nan=tl.PropagateNan.ALL)
        u = tl.maximum(u, -LIMIT, propagate_nan=tl.PropagateNan.ALL)
        u = tl.minimum(u, LIMIT, propagate_nan=tl.PropagateNan.ALL)
    if KIND == "gelu_tanh":
        inner = 0.7978845608028654 * (g + 0.044715 * g * g * g)
        # tanh by way of a sigmoid: 0.5 * (1 + tanh(x)) = sigmoid(2x)
        return g * tl.sigmoid(2.0 * inner) * u
    elif KIND == "gpt_oss":
        return g * tl.sigmoid(ALPHA * g) * (u + 1.0)
    else:
        return g * tl.sigmoid(g) * u


@triton.jit
def _gate_up_kernel(
    x_ptr, slots_ptr, slot_ptr, h_ptr, lut_ptr,  # pointers
    stride_x,  # strides
    K: tl.constexpr, M: tl.constexpr, DOWN: tl.constexpr,  # dimensions and matrices
    GATE: tl.constexpr, ALPHA: tl.constexpr, LIMIT: tl.constexpr,  # activation
    KIND: tl.constexpr, R: tl.constexpr, B: tl.constexpr, FAST: tl.constexpr,  # tile, inline assembly
):  # fmt: skip
    pair = tl.program_id(1)
    slot = tl.load(slot_ptr + pair)
    if slot < 0:
        return
    base = slots_ptr + slot.to(tl.int64) * get(M, "stride")
    BN: tl.constexpr = R * 32 // B
    first = tl.program_id(0) * BN
    x_row = x_ptr + (pair // K).to(tl.int64) * stride_x
    y = gemv_rows(x_row, base, lut_ptr, first, M, KIND, R, B, FAST)
    if has(M, "bias"):
        rows = first + tl.arange(0, BN)
        bias = (base + at(M, "bias")).to(tl.pointer_type(tl.float32))
        y += tl.load(bias + rows, mask=rows < get(M, "rows"), other=0.0)
    g, u = tl.split(tl.reshape(y, [BN // 2, 2]))
    out = first // 2 + tl.arange(0, BN // 2)
    WIDTH: tl.constexpr = get(DOWN, "cols")
    place = halves_position(out, DOWN)
    tl.store(h_ptr + pair.to(tl.int64) * WIDTH + place, gated(g, u, GATE, ALPHA, LIMIT), mask=out < WIDTH)


@triton.jit
def _down_kernel(
    h_ptr, slots_ptr, slot_ptr, part_ptr, lut_ptr,  # pointers
    M: tl.constexpr, R: tl.constexpr, B: tl.constexpr,  # matrix and tile
    FAST: tl.constexpr,  # inline assembly
):  # fmt: skip
    pair = tl.program_id(1)
    slot = tl.load(slot_ptr + pair)
    if slot < 0:
        return
    base = slots_ptr + slot.to(tl.int64) * get(M, "stride")
    BN: tl.constexpr = R * 32 // B
    first = tl.program_id(0) * BN
    h_row = h_ptr + pair.to(tl.int64) * get(M, "cols")
    y = gemv_rows(h_row, base, lut_ptr, first, M, "halves", R, B, FAST)
    rows = first + tl.arange(0, BN)
    if has(M, "bias"):
        bias = (base + at(M, "bias")).to(tl.pointer_type(tl.float32))
        y += tl.load(bias + rows, mask=rows < get(M, "rows"), other=0.0)
    tl.store(part_ptr + pair.to(tl.int64) * get(M, "rows") + rows, y, mask=rows < get(M, "rows"))


@triton.jit
def _combine_kernel(
    part_ptr, slot_ptr, weight_ptr, y_ptr,  # pointers
    D, stride_y,  # dimensions and strides
    K: tl.constexpr, BD: tl.constexpr,  # top-k and tile
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BD + tl.arange(0, BD)
    total = tl.zeros([BD], tl.float32)
    for k in range(0, K):
        pair = token * K + k
        limit = tl.where(tl.load(slot_ptr + pair) < 0, 0, D)  # nothing is read of a pair that was not computed
        part = tl.load(part_ptr + pair * D + column, mask=column < limit, other=0.0)
        total += part * tl.load(weight_ptr + pair, mask=limit > 0, other=0.0)
    tl.store(y_ptr + token * stride_y + column, total.to(y_ptr.dtype.element_ty), mask=column < D)


def check_flat(x_TD: torch.Tensor, slot_TK: torch.Tensor) -> None:
    """`InputError` for activations or slots that kernels cannot read as they lie: 16 bytes at a time, row after row."""
    check_tensor("experts", "x", x_TD, tuple(_KINDS), ("T", "D"))
    check_tensor("experts", "slot_TK", slot_TK, (torch.int32,), (x_TD.shape[0], "K"))
    if x_TD.data_ptr() % 16:
        raise InputError(f"experts: got x at {x_TD.data_ptr() % 16} bytes past a multiple of 16; expected 0; clone it")


@dataclass(frozen=True, slots=True)
class Tile:
    """R rows a lane (`rows`) and B blocks of a row at a time (`blocks`), powers of two, of `gemv_rows`."""

    rows: int
    blocks: int


def tile_of(M: Stored, amd: bool = False) -> Tile:
    """The tile for a matrix: as few idle lanes as its row length allows, then as many rows a lane as registers hold, since
    the activations a lane loads serve them all (kernels/gate/TABLE.md: what does not spill on any target)."""
    count = M.cols // (128 // M.bits)
    wide = min((32, 16, 8), key=lambda b: (-(-count // b) * b, -b))
    rows = {"int4": 16, "mxfp4": 16, "int8": 16, "fp8_block": 16, "q6_k": 4, "nf4": 4}.get(M.format, 8)
    rows = min(rows, 8) if "zero" in dict(M.at) else rows
    if "order" in dict(M.at) and M.paired:  # a lane gathers its activations one by one
        rows = 4
    return Tile(min(rows, 2 if M.format == "nf4" else 4) if amd else rows, wide)


@cache  # one copy a device: making it again in every call would end the capture of a CUDA graph
def lut_of(device: torch.device) -> torch.Tensor:
    """float32 [16]: NF4's levels on `device`."""
    return torch.tensor(NF4, dtype=torch.float32, device=device)


def kind_of(layout: SlotLayout, dtype: torch.dtype) -> str:
    """How `gemv_rows` reads the activations of gate and up."""
    return "order" if getattr(layout.format, "act_order", False) else _KINDS[dtype]


def decode_pairs(
    layout: SlotLayout, gate: Gate, x_TD: torch.Tensor, slots_SB: torch.Tensor, slot_TK: torch.Tensor,
    h_PI: torch.Tensor, part_PD: torch.Tensor, *, fast: bool = False, rows_a_lane: int | None = None,
) -> None:  # fmt: skip
    """Writes the output of every resident pair, before its router weight, into its row of `part_PD` (float32 [P, D]);
    other rows keep what they held. `h_PI` float32 [P, I] is scratch. Arguments as `check_call` wants them.

    `fast`: the inline-assembly path of `rgpu.kernels.halfword`, where the format and the card have it (see `has_fast`).
    `rows_a_lane`: another tile than `tile_of`'s.
    """
    tokens, top_k = slot_TK.shape
    if not tokens * top_k:
        return
    amd = torch.version.hip is not None
    check_flat(x_TD, slot_TK)
    if tokens * top_k > MOST_PAIRS:
        raise InputError(f"decode: got {tokens * top_k} pairs; expected {MOST_PAIRS} at most; use prefill")
    up, down = (stored(layout, matrix, slots_SB.stride(0)) for matrix in ("gate_up", "down"))
    lut, fast = lut_of(x_TD.device), fast and not amd and not triton.knobs.runtime.interpret
    rows, wide = rows_a_lane or tile_of(up, amd).rows, tile_of(up).blocks
    _gate_up_kernel[(triton.cdiv(up.rows, rows * 32 // wide), tokens * top_k)](
        x_TD, slots_SB, slot_TK, h_PI, lut, x_TD.stride(0),
        K=top_k, M=up, DOWN=down, GATE=gate.kind, ALPHA=gate.alpha, LIMIT=gate.limit,
        KIND=kind_of(layout, x_TD.dtype), R=rows, B=wide, FAST=fast and has_fast(up), **_LAUNCH,
    )  # fmt: skip
    rows, wide = rows_a_lane or tile_of(down, amd).rows, tile_of(down).blocks
    _down_kernel[(triton.cdiv(down.rows, rows * 32 // wide), tokens * top_k)](
        h_PI, slots_SB, slot_TK, part_PD, lut,
        M=down, R=rows, B=wide, FAST=fast and has_fast(down), **_LAUNCH,
    )  # fmt: skip


def has_fast(M: Stored) -> bool:
    """Whether `fast` means anything for a matrix: 4-bit integer codes, activations as they come."""
    return M.format in ("int4", "q4_k") and not (M.paired and "order" in dict(M.at))


def combine(part_PD: torch.Tensor, slot_TK: torch.Tensor, weight_TK: torch.Tensor, out_TD: torch.Tensor) -> None:
    """out[t] = sum over k, in that order, of weight[t, k] * part[t * K + k] where the pair's slot is not -1."""
    tokens, top_k = slot_TK.shape
    check_tensor("combine", "slot_TK", slot_TK, (torch.int32,), (tokens, top_k))
    check_tensor("combine", "weight_TK", weight_TK, (torch.float32,), (tokens, top_k))
    hidden, width = out_TD.shape[1], 256
    if tokens:
        _combine_kernel[(tokens, triton.cdiv(hidden, width))](
            part_PD, slot_TK, weight_TK, out_TD, hidden, out_TD.stride(0), K=top_k, BD=width, num_warps=2
        )


def moe_decode(
    layout: SlotLayout, gate: Gate, x_TD: torch.Tensor, slots_SB: torch.Tensor, slot_TK: torch.Tensor,
    weight_TK: torch.Tensor, *, fast: bool = False, rows_a_lane: int | None = None,
) -> torch.Tensor:  # fmt: skip
    """[T, D] in x's dtype: every token's weighted sum of its resident experts. See `ExpertCompute` and `decode_pairs`."""
    pairs, device = slot_TK.numel(), x_TD.device
    h_PI = torch.empty(pairs, layout.intermediate, dtype=torch.float32, device=device)
    part_PD = torch.empty(pairs, layout.hidden, dtype=torch.float32, device=device)
    out_TD = torch.empty_like(x_TD, memory_format=torch.contiguous_format)
    decode_pairs(layout, gate, x_TD, slots_SB, slot_TK, h_PI, part_PD, fast=fast, rows_a_lane=rows_a_lane)
    combine(part_PD, slot_TK, weight_TK, out_TD)
    return out_TD


def moe_decode_ref(
    layout: SlotLayout, gate: Gate, x_TD: torch.Tensor, slots_SB: torch.Tensor, slot_TK: torch.Tensor,
    weight_TK: torch.Tensor,
) -> torch.Tensor:  # fmt: skip
    """The same by plain torch in float32."""
    return TorchCompute(layout, gate)(x_TD, slots_SB, slot_TK, weight_TK)


def shipped() -> tuple[Shipped, ...]:
    """What the compile gate checks."""
    pointers = {"slots_ptr": "*u8", "slot_ptr": "*i32", "h_ptr": "*fp32", "lut_ptr": "*fp32"}
    found = []
    for name, layout, gate, top_k in gated_shapes():
        up, down = stored(layout, "gate_up"), stored(layout, "down")
        first: dict[str, object] = {
            "K": top_k, "M": up, "DOWN": down, "GATE": gate.kind, "ALPHA": gate.alpha, "LIMIT": gate.limit,
            "KIND": kind_of(layout, torch.bfloat16),
        }  # fmt: skip
        for M, kernel, types, constants in (
            (up, "_gate_up_kernel", {"x_ptr": "*bf16", **pointers, "stride_x": "i32"}, first),
            (down, "_down_kernel", {**pointers, "part_ptr": "*fp32"}, {"M": down}),
        ):
            for targets, suffix, fast in ((NVIDIA, "", False), (AMD, "-amd", False), (NVIDIA, "-asm", True)):
                tile = tile_of(M, targets == AMD)
                counted = "order" not in dict(M.at)
                if not fast or has_fast(M):
                    found.append(Shipped(
                        f"decode{kernel.removesuffix('_kernel')}/{name}{suffix}", __name__, kernel, types,
                        {**constants, "R": tile.rows, "B": tile.blocks, "FAST": fast}, num_warps=1, num_stages=1,
                        weights=tile.rows * 32 * 128 // M.bits * counted, wants=("vector_loads", "subnormals"), targets=targets,
                        bits=M.bits * counted,
                    ))  # fmt: skip
    types = {
        "part_ptr": "*fp32",
        "slot_ptr": "*i32",
        "weight_ptr": "*fp32",
        "y_ptr": "*bf16",
        "D": "i32",
        "stride_y": "i32",
    }
    combined = Shipped("decode_combine/bf16", __name__, "_combine_kernel", types, {"K": 8, "BD": 256}, 2, 3, weights=0)
    return (*found, combined)
