"""Sorting (token, expert) pairs by slot, and the list of blocks that a grouped matrix product works through.

Three kernels, no atomics and no word to the host: count the pairs of every slot (and clear the outputs), add up, then let
every slot write its own pairs and blocks. Each slot that is used reads all pairs once or twice, so work grows with
pairs * slots, memory only with pairs + slots. The sort is stable, and so the outcome repeats bit for bit.

Legend: T tokens, K top-k, P = T * K pairs, S slots, M pairs of a block at most, B = P // M + min(S, P) blocks at most.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from rgpu.errors import InputError
from rgpu.kernels.arguments import check_tensor
from rgpu.kernels.gate.shipped import Shipped

SLOTS, PAIRS, SCAN, SUMS = 8, 256, 1024, 1024  # tiles: slots and pairs of a count, pairs of a scan, slots of the sums


@dataclass(frozen=True, slots=True)
class SortedPairs:
    """Pairs in the order of their slots, and the blocks that cover them; all int32, on one device.

    `pair_P`: indices into the flattened [T, K], those with a slot first, by slot and then as they came; -1 after them.
    `block_slot`, `block_first`, `block_rows` [B]: the slot of each block, its first position in `pair_P` and its number of
    pairs (1 to M), in the order of positions; -1, 0 and 0 past the last block. No block holds pairs of two slots.
    """

    pair_P: torch.Tensor
    block_slot: torch.Tensor
    block_first: torch.Tensor
    block_rows: torch.Tensor


# Loops over pairs are written with `while`: with a bound known only at run time, `range` fails under the interpreter of
# Triton 3.6 with numpy 2.4.
@triton.jit
def _count_kernel(
    slot_ptr, count_ptr, pair_ptr, block_slot_ptr, block_first_ptr, block_rows_ptr,  # pointers
    P, S, B,  # dimensions
    BS: tl.constexpr, BP: tl.constexpr,  # tile: slots, pairs
):  # fmt: skip
    program = tl.program_id(0)
    at = program * BP + tl.arange(0, BP)
    tl.store(pair_ptr + at, -1, mask=at < P)
    tl.store(block_slot_ptr + at, -1, mask=at < B)
    tl.store(block_first_ptr + at, 0, mask=at < B)
    tl.store(block_rows_ptr + at, 0, mask=at < B)
    mine = program * BS + tl.arange(0, BS)
    if program * BS >= S:
        return
    seen = tl.zeros([BS, BP], tl.int32)
    start = 0
    while start < P:
        pair = start + tl.arange(0, BP)
        slot = tl.load(slot_ptr + pair, mask=pair < P, other=-1)
        seen += (slot[None, :] == mine[:, None]).to(tl.int32)
        start += BP
    tl.store(count_ptr + mine, tl.sum(seen, 1), mask=mine < S)


@triton.jit
def _sums_kernel(
    count_ptr, first_ptr, block_ptr,  # pointers
    S, M: tl.constexpr,  # dimensions
    BS: tl.constexpr,  # tile
):  # fmt: skip
    """One program: the first position and the first block of every slot."""
    pairs = 0
    blocks = 0
    start = 0
    while start < S:
        slot = start + tl.arange(0, BS)
        count = tl.load(count_ptr + slot, mask=slot < S, other=0)
        need = (count + M - 1) // M
        tl.store(first_ptr + slot, pairs + tl.cumsum(count, 0) - count, mask=slot < S)
        tl.store(block_ptr + slot, blocks + tl.cumsum(need, 0) - need, mask=slot < S)
        pairs += tl.sum(count)
        blocks += tl.sum(need)
        start += BS


@triton.jit
def _place_kernel(
    slot_ptr, count_ptr, first_ptr, block_ptr,  # pointers: read
    pair_ptr, block_slot_ptr, block_first_ptr, block_rows_ptr,  # pointers: written
    P, M: tl.constexpr,  # dimensions
    BP: tl.constexpr,  # tile
):  # fmt: skip
    me = tl.program_id(0)
    count = tl.load(count_ptr + me)
    if count == 0:
        return
    first = tl.load(first_ptr + me)
    block = tl.load(block_ptr + me)
    done = 0
    while done < count:  # BP blocks at a time
        row = done + tl.arange(0, BP) * M
        place = block + done // M + tl.arange(0, BP)
        tl.store(block_slot_ptr + place, me, mask=row < count)
        tl.store(block_first_ptr + place, first + row, mask=row < count)
        tl.store(block_rows_ptr + place, tl.minimum(count - row, M), mask=row < count)
        done += BP * M
    found = 0
    start = 0
    while (found < count) & (start < P):
        pair = start + tl.arange(0, BP)
        mine = (tl.load(slot_ptr + pair, mask=pair < P, other=-1) == me).to(tl.int32)
        here = tl.sum(mine)
        if here > 0:
            tl.store(pair_ptr + first + found + tl.cumsum(mine, 0) - 1, pair, mask=mine > 0)
        found += here
        start += BP


def sort_pairs(slot_TK: torch.Tensor, slots: int, block: int) -> SortedPairs:
    """Pairs sorted by slot, cut into blocks of at most `block`.

    `slot_TK` int32 [T, K]: the slot of each pair; any number outside 0..slots-1 (such as -1) means that it has none.
    Errors: `InputError` for another dtype or shape, negative `slots`, or a `block` below 1.
    """
    check_tensor("sort_pairs", "slot_TK", slot_TK, (torch.int32,), ("T", "K"))
    if slots < 0 or block < 1:
        raise InputError(
            f"sort_pairs: got slots={slots}, block={block}; expected slots of 0 or more, a block of 1 or more; change them"
        )
    pairs = slot_TK.numel()
    most = pairs // block + min(slots, pairs)
    pair_P, block_slot, block_first, block_rows, count_S, first_S, block_S = (
        torch.empty(size, dtype=torch.int32, device=slot_TK.device) for size in (pairs, *[most] * 3, *[slots] * 3)
    )
    if pairs:
        grid = (max(triton.cdiv(slots, SLOTS), triton.cdiv(max(pairs, most), PAIRS)),)
        _count_kernel[grid](
            slot_TK, count_S, pair_P, block_slot, block_first, block_rows, pairs, slots, most,
            BS=SLOTS, BP=PAIRS, num_warps=4,
        )  # fmt: skip
    if pairs and slots:
        _sums_kernel[(1,)](count_S, first_S, block_S, slots, M=block, BS=SUMS, num_warps=4)
        _place_kernel[(slots,)](
            slot_TK, count_S, first_S, block_S, pair_P, block_slot, block_first, block_rows, pairs,
            M=block, BP=SCAN, num_warps=4,
        )  # fmt: skip
    return SortedPairs(pair_P, block_slot, block_first, block_rows)


def sort_pairs_ref(slot_TK: torch.Tensor, slots: int, block: int) -> SortedPairs:
    """The same by torch's stable sort and a walk over the slots."""
    slot_P = slot_TK.flatten().long().cpu()
    pairs, resident_P = slot_P.numel(), (slot_P >= 0) & (slot_P < slots)
    order_P = torch.where(resident_P, slot_P, slots).sort(stable=True).indices
    pair_P = torch.where(torch.arange(pairs) < resident_P.sum(), order_P, -1)
    blocks, first = [], 0
    for slot, count in enumerate(torch.bincount(slot_P[resident_P], minlength=slots).tolist()):
        blocks += [(slot, first + row, min(block, count - row)) for row in range(0, count, block)]
        first += count
    blocks += [(-1, 0, 0)] * (pairs // block + min(slots, pairs) - len(blocks))
    lists = torch.tensor(blocks, dtype=torch.int32).reshape(-1, 3).T.contiguous()
    return SortedPairs(*(tensor.int().to(slot_TK.device) for tensor in (pair_P, *lists)))


@dataclass(frozen=True, slots=True)
class Case:
    """T tokens of K experts each, over `slots` slots of which `used` occur, in blocks of `block`; `absent` of the pairs,
    as a fraction, have no slot."""

    tokens: int
    top_k: int
    slots: int
    used: int
    block: int
    absent: float = 0.0


CASES = (
    Case(1, 8, 128, 128, 16),
    Case(4, 8, 64, 40, 16, 0.3),
    Case(33, 2, 8, 8, 16),
    Case(64, 4, 5, 3, 32, 0.5),
    Case(100, 16, 20, 17, 64, 0.1),
    Case(512, 8, 12, 12, 128),
    Case(7, 3, 1100, 1100, 1),
    Case(20, 10, 4, 4, 48, 1.0),
)

_I32 = "*i32"
_OUT = {"pair_ptr": _I32, "block_slot_ptr": _I32, "block_first_ptr": _I32, "block_rows_ptr": _I32}
_SCRATCH = {"count_ptr": _I32, "first_ptr": _I32, "block_ptr": _I32}
SHIPPED = (
    Shipped(
        "sort_pairs/count", __name__, "_count_kernel",
        {"slot_ptr": _I32, "count_ptr": _I32, **_OUT, "P": "i32", "S": "i32", "B": "i32"},
        {"BS": SLOTS, "BP": PAIRS}, 4, 3, 0, max_registers=128,
    ),
    Shipped("sort_pairs/sums", __name__, "_sums_kernel", {**_SCRATCH, "S": "i32"}, {"M": 64, "BS": SUMS}, 4, 3, 0),
    Shipped(
        "sort_pairs/place", __name__, "_place_kernel", {"slot_ptr": _I32, **_SCRATCH, **_OUT, "P": "i32"},
        {"M": 64, "BP": SCAN}, 4, 3, 0,
    ),
)  # fmt: skip
