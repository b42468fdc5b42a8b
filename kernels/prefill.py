"""Prefill: many tokens through the experts they chose, as grouped matrix products over pairs sorted by slot.

Each program multiplies a tile of one expert's rows by the activations of up to BM of its pairs. Weights are turned into the
compute type in registers and are the left operand of the product, so they never pass through shared memory. The outputs of
pairs are summed by the same kernel as in `decode`. A pair whose slot is -1 belongs to no block: nothing is computed for it.

Legend: T tokens, K top-k, P = T * K pairs, D hidden size, I expert width, S slots, B bytes of a slot, N rows of a weight tile,
U 16-bit words of a tile's row, M pairs of a tile.
"""

import itertools

import torch
import triton
import triton.language as tl

from rgpu.errors import InputError
from rgpu.kernels.codes import has_offset, lift, raised, raw, zero_of
from rgpu.kernels.compute_torch import TorchCompute
from rgpu.kernels.decode import MOST_PAIRS, check_flat, combine, gated, lut_of
from rgpu.kernels.gate.shipped import Shipped
from rgpu.kernels.scales import row_factor, scale_and_offset
from rgpu.kernels.shapes import NVIDIA
from rgpu.kernels.shapes import gated as gated_shapes
from rgpu.kernels.sort_pairs import SortedPairs, sort_pairs
from rgpu.kernels.stored import Stored, at, blocks, fields, get, has, parts_of_block, stored
from rgpu.quant.int4 import Int4
from rgpu.quant.layout import SlotLayout
from rgpu.types import Gate


@triton.jit
def _codes(W, H, high_shift, lut_ptr, J: tl.constexpr, M: tl.constexpr):
    """float32 [N, U]: codes of field J of 16-bit words (in int32), less the zero they share, before scales."""
    FORMAT: tl.constexpr = get(M, "format")
    BITS: tl.constexpr = get(M, "bits")
    if FORMAT == "int4" or FORMAT == "int8" or FORMAT == "q4_k" or FORMAT == "q6_k":
        code = (W >> (BITS * J)) & ((1 << BITS) - 1)
        if has(M, "high"):
            code |= ((H >> (high_shift + 2 * J)) & 3) << 4
        return code.to(tl.float32) - zero_of(M)
    elif FORMAT == "mxfp4" or FORMAT == "nvfp4" or FORMAT == "fp8_block":
        return raw(W, lut_ptr, 0, J, M) * (lift(M, 0, J) * raised(M))
    else:
        return raw(W, lut_ptr, 0, J, M)


@triton.jit
def _spread(value, N: tl.constexpr, B: tl.constexpr):
    """[N, 8B] from [N, B]: every element for the eight words of its block."""
    return tl.reshape(tl.broadcast_to(value[:, :, None], [N, B, 8]), [N, B * 8])


@triton.jit
def _grouped_kernel(
    x_ptr, slots_ptr, out_ptr, lut_ptr,  # pointers
    pair_ptr, block_slot_ptr, block_first_ptr, block_rows_ptr,  # pairs in order, work list
    stride_x, stride_out,  # strides
    K: tl.constexpr, M: tl.constexpr, GATED: tl.constexpr,  # top-k, matrix, whether gate and up
    GATE: tl.constexpr, ALPHA: tl.constexpr, LIMIT: tl.constexpr,  # activation
    ORDERED: tl.constexpr, COMPUTE: tl.constexpr,  # activations through the matrix's column order; type of the product
    BN: tl.constexpr, BM: tl.constexpr, B: tl.constexpr,  # tile: rows, pairs, blocks of a row
):  # fmt: skip
    """GATED: x is [T, D] by token, out h [P, I] by sorted position. Else: x is h, out is [P, D] by pair."""
    work = tl.program_id(1)
    slot = tl.load(block_slot_ptr + work)
    if slot < 0:
        return
    J: tl.constexpr = fields(M)
    NB: tl.constexpr = blocks(M)
    ROWS: tl.constexpr = get(M, "rows")
    PARTS: tl.constexpr = parts_of_block(M)
    base = slots_ptr + slot.to(tl.int64) * get(M, "stride")
    position = tl.load(block_first_ptr + work) + tl.arange(0, BM)
    valid = tl.arange(0, BM) < tl.load(block_rows_ptr + work)
    pair = tl.load(pair_ptr + position, mask=valid, other=0)
    source = pair // K if GATED else position
    x_rows = x_ptr + tl.where(valid, source, 0).to(tl.int64)[None, :] * stride_x
    row = (tl.program_id(0) * BN + tl.arange(0, BN))[:, None]
    word, block = tl.arange(0, 8 * B)[None, :], tl.arange(0, B)[None, :]
    word_x = tl.arange(0, 8 * B)[:, None]
    words = (base + at(M, "q")).to(tl.pointer_type(tl.int16)) + (row.to(tl.int64) * (NB * 8) + word)
    acc = tl.zeros([BN, BM], tl.float32)
    for first in range(0, NB, B):
        ok = (row < ROWS) & (first + word // 8 < NB)
        W = tl.load(words + first * 8, mask=ok, other=0).to(tl.int32)  # weights
        H, high_shift = W, word
        if has(M, "high"):
            lane_block = first + word // 8
            high = (base + at(M, "high")).to(tl.pointer_type(tl.int16)) + row.to(tl.int64) * (NB * 4)
            H = tl.load(high + ((lane_block // 2) * 8 + word % 8), mask=ok, other=0).to(tl.int32)
            high_shift = 8 * (lane_block % 2)
        for j in tl.static_range(J):
            ok_block = (row < ROWS) & (first + block < NB)
            scale, offset = scale_and_offset(base, row, first + block, ok_block, M, j * PARTS // J, True)
            w = _codes(W, H, high_shift, lut_ptr, j, M) * _spread(scale, BN, B)
            if has_offset(M):
                w += _spread(offset, BN, B)
            column = (first + word_x // 8) * (8 * J) + 8 * j + word_x % 8
            ok_x = (first + word_x // 8 < NB) & valid[None, :]
            if ORDERED:
                order = (base + at(M, "order")).to(tl.pointer_type(tl.int32))
                column = tl.load(order + column, mask=first + word_x // 8 < NB, other=0)
            x = tl.load(x_rows + column, mask=ok_x, other=0.0)
            acc = tl.dot(w.to(COMPUTE), x.to(COMPUTE), acc, input_precision="ieee")
    rows = tl.program_id(0) * BN + tl.arange(0, BN)
    acc *= row_factor(base, rows, M)[:, None]
    if has(M, "bias"):
        bias = (base + at(M, "bias")).to(tl.pointer_type(tl.float32))
        acc += tl.load(bias + rows, mask=rows < ROWS, other=0.0)[:, None]
    if GATED:
        g, u = tl.split(tl.permute(tl.reshape(acc, [BN // 2, 2, BM]), [0, 2, 1]))
        h = gated(g, u, GATE, ALPHA, LIMIT)
        column = (tl.program_id(0) * (BN // 2) + tl.arange(0, BN // 2))[:, None]
        target = out_ptr + position.to(tl.int64)[None, :] * stride_out + column
        tl.store(target, h.to(out_ptr.dtype.element_ty), mask=(column < ROWS // 2) & valid[None, :])
    else:
        target = out_ptr + pair.to(tl.int64)[None, :] * stride_out + rows[:, None]
        tl.store(target, acc, mask=(rows[:, None] < ROWS) & valid[None, :])


ROWS = 64  # of a weight tile
MATRICES = ("gate_up", "down")
_POINTERS = {torch.bfloat16: "*bf16", torch.float32: "*fp32"}
_TYPES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}


def compute_type(dtype: torch.dtype) -> tl.dtype:
    """What products are made in: the activations' type; float32 under the interpreter, whose bf16 arithmetic is wrong."""
    return tl.float32 if triton.knobs.runtime.interpret else _TYPES[dtype]


def blocks_a_step(M: Stored) -> int:
    """Blocks of a row that one step multiplies: 128 columns."""
    return M.bits


def _launch(
    layout: SlotLayout, gate: Gate, matrix: str, x: torch.Tensor, slots_SB: torch.Tensor, out: torch.Tensor, top_k: int,
    work: SortedPairs, block: int,
) -> None:  # fmt: skip
    M = stored(layout, matrix, slots_SB.stride(0))
    warps, stages = schedule_of(M, block, x.dtype, is_gfx11())
    grid = (triton.cdiv(M.rows, ROWS), work.block_slot.numel())
    _grouped_kernel[grid](
        x, slots_SB, out, lut_of(x.device), work.pair_P, work.block_slot, work.block_first, work.block_rows,
        x.stride(0), out.stride(0), K=top_k, M=M, GATED=matrix == "gate_up", GATE=gate.kind, ALPHA=gate.alpha,
        LIMIT=gate.limit, ORDERED=matrix == "gate_up" and getattr(layout.format, "act_order", False),
        COMPUTE=compute_type(x.dtype), BN=ROWS, BM=block, B=blocks_a_step(M), enable_fp_fusion=True,
        num_warps=warps, num_stages=stages,
    )  # fmt: skip


def is_gfx11() -> bool:
    """Whether the current device is of AMD's gfx11 family, with 32 lanes and small register files for matrix products."""
    return torch.version.hip is not None and "gfx11" in torch.cuda.get_device_properties().gcnArchName


def schedule_of(M: Stored, block: int, dtype: torch.dtype, gfx11: bool) -> tuple[int, int]:
    """(warps, stages): the warps and the loads in flight of a program, such that it neither spills nor exceeds shared memory
    (kernels/gate/TABLE.md)."""
    if gfx11:
        return 4, 1
    wide = dtype == torch.float32 or block == 128 or (block == 16 and M.format == "bf16")
    return 8 if wide else 4, 2 if dtype == torch.float32 else 3


def block_of(pairs: int, layout: SlotLayout, dtype: torch.dtype) -> int:
    """Pairs a program takes, as many as shared memory and registers allow on the card (kernels/gate/TABLE.md).

    It does not depend on the pool, so that no bit of a result does.
    """
    if dtype == torch.float32 or is_gfx11() or (pairs <= 512 and not getattr(layout.format, "act_order", False)):
        return 16
    plain = all(isinstance(f, Int4) and f.group == 128 and not f.asymmetric for f in map(layout.format_of, MATRICES))
    return 128 if plain and pairs > 4096 and torch.version.hip is None else 64


def prefill_pairs(
    layout: SlotLayout, gate: Gate, x_TD: torch.Tensor, slots_SB: torch.Tensor, slot_TK: torch.Tensor,
    part_PD: torch.Tensor,
) -> None:  # fmt: skip
    """Writes the output of every resident pair, before its router weight, into its row of `part_PD` (float32 [P, D]);
    other rows keep what they held. Arguments as `check_call` wants them."""
    tokens, top_k = slot_TK.shape
    if not tokens * top_k:
        return
    check_flat(x_TD, slot_TK)
    block = block_of(tokens * top_k, layout, x_TD.dtype)
    work = sort_pairs(slot_TK, slots_SB.shape[0], block)
    if work.block_slot.numel() > MOST_PAIRS:
        raise InputError(
            f"prefill: got {tokens} tokens; expected at most {MOST_PAIRS} blocks of pairs; use fewer at once"
        )
    h_PI = torch.empty(tokens * top_k, layout.intermediate, dtype=x_TD.dtype, device=x_TD.device)
    _launch(layout, gate, "gate_up", x_TD, slots_SB, h_PI, top_k, work, block)
    _launch(layout, gate, "down", h_PI, slots_SB, part_PD, top_k, work, block)


def moe_prefill(
    layout: SlotLayout, gate: Gate, x_TD: torch.Tensor, slots_SB: torch.Tensor, slot_TK: torch.Tensor,
    weight_TK: torch.Tensor,
) -> torch.Tensor:  # fmt: skip
    """[T, D] in x's dtype: every token's weighted sum of its resident experts. See `ExpertCompute`."""
    part_PD = torch.empty(slot_TK.numel(), layout.hidden, dtype=torch.float32, device=x_TD.device)
    out_TD = torch.empty_like(x_TD, memory_format=torch.contiguous_format)
    prefill_pairs(layout, gate, x_TD, slots_SB, slot_TK, part_PD)
    combine(part_PD, slot_TK, weight_TK, out_TD)
    return out_TD


def moe_prefill_ref(
    layout: SlotLayout, gate: Gate, x_TD: torch.Tensor, slots_SB: torch.Tensor, slot_TK: torch.Tensor,
    weight_TK: torch.Tensor,
) -> torch.Tensor:  # fmt: skip
    """The same by plain torch in float32."""
    return TorchCompute(layout, gate)(x_TD, slots_SB, slot_TK, weight_TK)


def shipped() -> tuple[Shipped, ...]:
    """What the compile gate checks: 16 and 64 pairs a block, 128 where `block_of` takes them, and float32 activations for
    the formats with the smallest and the largest tiles; 16 alone on gfx11, where float32 goes by pairs (`TritonCompute`)."""
    lists = ("pair_ptr", "block_slot_ptr", "block_first_ptr", "block_rows_ptr")
    found = []
    for name, layout, gate, top_k in gated_shapes():
        kinds = [(64, torch.bfloat16, False), (16, torch.bfloat16, True)]
        kinds += [] if getattr(layout.format, "act_order", False) else [(16, torch.bfloat16, False)]
        kinds += [(128, torch.bfloat16, False)] if name == "int4-g128" else []
        kinds += [(16, torch.float32, False)] if name in ("int4-g128", "bf16") else []
        for matrix, (block, dtype, gfx11) in itertools.product(MATRICES, kinds):
            M, x = stored(layout, matrix), _POINTERS[dtype]
            out = x if matrix == "gate_up" else "*fp32"
            types = {"x_ptr": x, "slots_ptr": "*u8", "out_ptr": out, "lut_ptr": "*fp32"}
            types |= {**dict.fromkeys(lists, "*i32"), "stride_x": "i32", "stride_out": "i32"}
            ordered = matrix == "gate_up" and getattr(layout.format, "act_order", False)
            constants: dict[str, object] = {
                "K": top_k, "M": M, "GATED": matrix == "gate_up", "GATE": gate.kind, "ALPHA": gate.alpha,
                "LIMIT": gate.limit, "ORDERED": ordered, "COMPUTE": _TYPES[dtype], "BN": ROWS, "BM": block,
                "B": blocks_a_step(M),
            }  # fmt: skip
            warps, stages = schedule_of(M, block, dtype, gfx11)
            suffix = "-gfx11" if gfx11 else "-f32" if dtype == torch.float32 else ""
            found.append(Shipped(
                f"prefill_{matrix}/{name}/{block}{suffix}", __name__, "_grouped_kernel", types, constants,
                num_warps=warps, num_stages=stages, weights=ROWS * 128,
                wants=("subnormals",) if dtype == torch.float32 else ("mma", "subnormals"),
                targets=("gfx1100",) if gfx11 else NVIDIA if block == 128 else (*NVIDIA, "gfx942"),
            ))  # fmt: skip
    return tuple(found)
