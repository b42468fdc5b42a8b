"""Copying missing experts from mapped host memory into their slots, by the device itself and without the host.

Reads go over the link as the loads of ordinary programs, 128 bits a lane, each byte once. What to copy is a list on the
device, such as `resolve` leaves: rows past its count, and rows whose place does not exist, cost a program that returns at
once. Programs of one expert come before those of the next, so that experts arrive in the order of the list.

Legend: N rows of the list at most, E experts of the source, S slots, B bytes of a slot.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from rgpu.errors import InputError
from rgpu.kernels.arguments import check_one_device, check_tensor
from rgpu.kernels.gate.shipped import Shipped

WORDS, WARPS = 4096, 4  # 32-bit words a program copies: eight loads of 128 bits a lane on their way at once
MAX_ROWS = 65_535  # the second dimension of a CUDA grid


@triton.jit
def _gather_kernel(
    source_ptr, slots_ptr, from_ptr, to_ptr, count_ptr,  # pointers
    E, S,  # dimensions
    stride_words,  # 32-bit words of a row
    W: tl.constexpr,  # tile
):  # fmt: skip
    row = tl.program_id(1)
    if row >= tl.load(count_ptr):
        return
    source = tl.load(from_ptr + row)
    slot = tl.load(to_ptr + row)
    if (source < 0) | (source >= E) | (slot < 0) | (slot >= S):
        return
    word = tl.program_id(0) * W + tl.arange(0, W)
    here = source_ptr.to(tl.pointer_type(tl.int32)) + source.to(tl.int64) * stride_words
    there = slots_ptr.to(tl.pointer_type(tl.int32)) + slot.to(tl.int64) * stride_words
    words = tl.load(here + word, mask=word < stride_words)  # weights
    tl.store(there + word, words, mask=word < stride_words)


def _check(
    source_EB: torch.Tensor, slots_SB: torch.Tensor, from_N: torch.Tensor, to_N: torch.Tensor, count: torch.Tensor
) -> None:
    check_tensor("gather", "source_EB", source_EB, (torch.uint8,), ("E", "B"))
    stride = source_EB.shape[1]
    check_tensor("gather", "slots_SB", slots_SB, (torch.uint8,), ("S", stride))
    check_tensor("gather", "from_N", from_N, (torch.int32,), ("N",))
    check_tensor("gather", "to_N", to_N, (torch.int32,), (from_N.shape[0],))
    check_tensor("gather", "count", count, (torch.int32,), (1,))
    check_one_device("gather", slots_SB, from_N, to_N, count)
    if stride % 128 or source_EB.data_ptr() % 16 or slots_SB.data_ptr() % 16:
        raise InputError(
            f"gather: got rows of {stride} bytes, {source_EB.data_ptr() % 16} and {slots_SB.data_ptr() % 16} bytes past a "
            "multiple of 16; expected rows of a multiple of 128 bytes, aligned to 16; use a SlotLayout's stride"
        )
    if from_N.shape[0] > MAX_ROWS:
        raise InputError(f"gather: got a list of {from_N.shape[0]}; expected at most {MAX_ROWS}; copy in several calls")
    reachable = source_EB.device == slots_SB.device or (source_EB.device.type == "cpu" and source_EB.is_pinned())
    if not reachable:
        raise InputError(
            f"gather: got a source on {source_EB.device} for slots on {slots_SB.device}; expected pinned host memory or the "
            "slots' device; pin it"
        )


def gather(
    source_EB: torch.Tensor, slots_SB: torch.Tensor, from_N: torch.Tensor, to_N: torch.Tensor, count: torch.Tensor
) -> None:
    """slots[to[n]] = source[from[n]] for every n below `count`, on the slots' device.

    `source_EB` uint8 [E, B], in pinned host memory or on the slots' device; `slots_SB` uint8 [S, B]; B a multiple of 128;
    `from_N`, `to_N` int32 [N] and `count` int32 [1] on the slots' device. A row whose `from` is outside 0..E-1 (such as -1)
    or whose `to` is outside 0..S-1 touches no memory. Copied rows must have different slots: where two share one, it ends
    up with bytes of both. The source must keep its bytes until the device is done.
    Errors: `InputError` for other dtypes, shapes or devices, memory the device cannot read, or unaligned rows.
    """
    _check(source_EB, slots_SB, from_N, to_N, count)
    words, rows = source_EB.shape[1] // 4, from_N.shape[0]
    if words and rows:
        _gather_kernel[(triton.cdiv(words, WORDS), rows)](
            source_EB, slots_SB, from_N, to_N, count, source_EB.shape[0], slots_SB.shape[0], words,
            W=WORDS, num_warps=WARPS,
        )  # fmt: skip


def gather_ref(
    source_EB: torch.Tensor, slots_SB: torch.Tensor, from_N: torch.Tensor, to_N: torch.Tensor, count: torch.Tensor
) -> None:
    """The same, row by row."""
    for source, slot in list(zip(from_N.tolist(), to_N.tolist(), strict=True))[: max(0, int(count))]:
        if 0 <= source < source_EB.shape[0] and 0 <= slot < slots_SB.shape[0]:
            slots_SB[slot].copy_(source_EB[source])


@dataclass(frozen=True, slots=True)
class Case:
    """A list of N rows, `count` of them copied, from E experts of `stride` bytes into S slots."""

    rows: int
    count: int
    experts: int
    slots: int
    stride: int


CASES = (
    Case(8, 8, 16, 12, 128),
    Case(8, 3, 16, 8, 16_384),
    Case(4, 4, 6, 4, 16_384 + 128),
    Case(16, 0, 4, 16, 1280),
    Case(2, 2, 3, 2, 663_552),
    Case(1, 1, 1, 1, 2_654_208),
)

_POINTERS = {"source_ptr": "*u8", "slots_ptr": "*u8", "from_ptr": "*i32", "to_ptr": "*i32", "count_ptr": "*i32"}
SHIPPED = (
    Shipped(
        "gather", __name__, "_gather_kernel", {**_POINTERS, "E": "i32", "S": "i32", "stride_words": "i32"},
        {"W": WORDS}, WARPS, 3, WORDS, ("vector_loads",), max_registers=128, bits=32,
    ),
)  # fmt: skip
