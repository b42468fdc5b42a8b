"""What a router chose, told at once: the slot and float32 weight of each pair on the device, and a word on the host.

A word holds a pair's expert (upper half) and the bits of its float32 weight (lower half). The kernel writes it into page-locked
host memory by itself, where a copy would be several nodes of a CUDA graph, each waited for; 8 bytes arrive together, so a
host that finds a word changed has all of it.

Legend: T tokens, K top-k, P = T * K pairs, E experts of the layer.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from rgpu.errors import InputError
from rgpu.kernels.arguments import check_one_device, check_tensor
from rgpu.kernels.gate.shipped import Shipped

MAX_PAIRS = 1024
_IDS = {torch.int32: "*i32", torch.int64: "*i64"}
_WEIGHTS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}


@triton.jit
def _route_kernel(
    expert_ptr, weight_ptr, lookup_ptr, slot_ptr, float_ptr, word_ptr,  # pointers
    P, E,  # dimensions
    BP: tl.constexpr,  # power of two from P on
):  # fmt: skip
    pair = tl.arange(0, BP)
    expert = tl.load(expert_ptr + pair, mask=pair < P, other=-1).to(tl.int32)
    weight = tl.load(weight_ptr + pair, mask=pair < P, other=0.0).to(tl.float32)
    real = (expert >= 0) & (expert < E)
    slot = tl.maximum(tl.load(lookup_ptr + expert, mask=real, other=-1), -1)
    bits = weight.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF
    tl.store(word_ptr + pair, (expert.to(tl.int64) << 32) | bits, mask=pair < P)
    tl.store(slot_ptr + pair, slot, mask=pair < P)
    tl.store(float_ptr + pair, weight, mask=pair < P)


def _check(expert_TK: torch.Tensor, weight_TK: torch.Tensor, lookup_E: torch.Tensor, word_P: torch.Tensor) -> None:
    check_tensor("route", "expert_TK", expert_TK, tuple(_IDS), ("T", "K"))
    check_tensor("route", "weight_TK", weight_TK, tuple(_WEIGHTS), tuple(expert_TK.shape))
    check_tensor("route", "lookup_E", lookup_E, (torch.int32,), ("E",))
    check_tensor("route", "word_P", word_P, (torch.int64,), (expert_TK.numel(),))
    check_one_device("route", expert_TK, weight_TK, lookup_E)
    if expert_TK.numel() > MAX_PAIRS:
        raise InputError(
            f"route: got {list(expert_TK.shape)} experts; expected at most {MAX_PAIRS} pairs; route fewer tokens at a time"
        )
    if word_P.device != expert_TK.device and not (word_P.device.type == "cpu" and word_P.is_pinned()):
        raise InputError(
            f"route: got words on {word_P.device} for experts on {expert_TK.device}; expected page-locked host memory or the "
            "same device; pin it"
        )


def route(
    expert_TK: torch.Tensor, weight_TK: torch.Tensor, lookup_E: torch.Tensor, word_P: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(slot int32 [T, K], weight float32 [T, K]) of experts by `lookup_E` (int32 [E]: expert -> slot, negative: not resident).

    `expert_TK` int32 or int64, `weight_TK` float32, bfloat16 or float16. `word_P` int64 [T * K], in page-locked host memory
    or on the device, gets a word a pair. An expert outside 0..E-1 gets slot -1, and nothing outside the table is read.
    Errors: `InputError` for other dtypes, shapes or devices, and for more than 1,024 pairs.
    """
    _check(expert_TK, weight_TK, lookup_E, word_P)
    slot_TK = torch.empty(expert_TK.shape, dtype=torch.int32, device=expert_TK.device)
    float_TK = torch.empty(expert_TK.shape, dtype=torch.float32, device=expert_TK.device)
    if pairs := expert_TK.numel():
        padded = max(32, triton.next_power_of_2(pairs))
        _route_kernel[(1,)](
            expert_TK, weight_TK, lookup_E, slot_TK, float_TK, word_P, pairs, lookup_E.numel(),
            BP=padded, num_warps=_warps(padded),
        )  # fmt: skip
    return slot_TK, float_TK


def _warps(padded: int) -> int:
    return max(1, padded // 128)


def route_ref(
    expert_TK: torch.Tensor, weight_TK: torch.Tensor, lookup_E: torch.Tensor, word_P: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same by plain torch."""
    expert_TK, float_TK = expert_TK.long(), weight_TK.float()
    real = (expert_TK >= 0) & (expert_TK < len(lookup_E))
    slot_TK = torch.where(real, lookup_E[torch.where(real, expert_TK, 0)].clamp_min(-1), -1)
    bits = float_TK.contiguous().view(torch.int32).long() & 0xFFFFFFFF
    word_P.copy_(((expert_TK.int().long() << 32) | bits).flatten())
    return slot_TK, float_TK


@dataclass(frozen=True, slots=True)
class Case:
    """T tokens of K out of E experts, the dtypes of both; `absent` of the experts, as a fraction, are not resident."""

    tokens: int
    top_k: int
    experts: int
    ids: torch.dtype = torch.int64
    weights: torch.dtype = torch.bfloat16
    absent: float = 0.3


CASES = (
    Case(1, 8, 128),
    Case(1, 8, 128, absent=0.0),
    Case(1, 10, 512, torch.int32, torch.float32),
    Case(4, 4, 128, weights=torch.float16),
    Case(3, 1, 1, absent=1.0),
    Case(16, 8, 60, torch.int32),
    Case(64, 16, 256, weights=torch.float32),
)


def made(case: Case, make: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(experts, weights, table) of a case."""
    expert_TK = torch.randint(0, case.experts, (case.tokens, case.top_k), generator=make).to(case.ids)
    weight_TK = torch.randn(case.tokens, case.top_k, generator=make).to(case.weights)
    gone = torch.rand(case.experts, generator=make) < case.absent
    return expert_TK, weight_TK, torch.where(gone, -1, torch.randperm(case.experts, generator=make) + 5).int()


def _shipped(pairs: int, ids: torch.dtype, weights: torch.dtype) -> Shipped:
    types = {"expert_ptr": _IDS[ids], "weight_ptr": _WEIGHTS[weights], "lookup_ptr": "*i32", "slot_ptr": "*i32",
             "float_ptr": "*fp32", "word_ptr": "*i64", "P": "i32", "E": "i32"}  # fmt: skip
    name = f"route/{pairs}/{_IDS[ids][1:]}/{_WEIGHTS[weights][1:]}"
    return Shipped(name, __name__, "_route_kernel", types, {"BP": pairs}, _warps(pairs), 3, 0, max_registers=128)


SHIPPED = (
    _shipped(32, torch.int64, torch.bfloat16),
    _shipped(128, torch.int64, torch.float32),
    _shipped(MAX_PAIRS, torch.int32, torch.float16),
)
