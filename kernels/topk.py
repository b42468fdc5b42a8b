"""The router's choice: the K experts with the largest logits of every token, and their weights.

One program a token. A float32 is compared by its bits, turned into an integer of the same order, so that the order is
total: equal logits (-0 and 0 among them) go to the lower expert first, and NaN counts as larger than every number, as in
`torch.sort`. Experts are ordered by logits, not by what scoring makes of them, where rounding makes ties of its own.

Legend: T tokens, E experts, K top-k.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from rgpu.errors import InputError
from rgpu.kernels.arguments import check_tensor
from rgpu.kernels.gate.shipped import Shipped

SCORINGS = ("softmax", "sigmoid")
MAX_EXPERTS, MAX_TOP_K = 512, 16
_DTYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}


@triton.jit
def _topk_kernel(
    logits_ptr, expert_ptr, weight_ptr,  # pointers
    E: tl.constexpr, K: tl.constexpr,  # dimensions
    SIGMOID: tl.constexpr, RENORMALISE: tl.constexpr,  # scoring
    BE: tl.constexpr, BK: tl.constexpr,  # powers of two from E and K on
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    expert = tl.arange(0, BE)
    real = expert < E
    x = tl.load(logits_ptr + token * E + expert, mask=real, other=0.0).to(tl.float32)
    bits = tl.where(x == 0, 0.0, x).to(tl.int32, bitcast=True)
    key = tl.where(x != x, 0x7FFFFFFF, bits ^ ((bits >> 31) & 0x7FFFFFFF))
    key = tl.where(real, key, -0x80000000)  # below the key of -inf
    rank = tl.arange(0, BK)
    best_experts = tl.zeros([BK], tl.int32)
    best_keys = tl.zeros([BK], tl.int32)
    for k in tl.static_range(K):
        best_key, best = tl.max(key, 0, return_indices=True, return_indices_tie_break_left=True)
        best_experts = tl.where(rank == k, best, best_experts)
        best_keys = tl.where(rank == k, best_key, best_keys)
        key = tl.where(expert == best, -0x80000000, key)
    chosen = (best_keys ^ ((best_keys >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    if SIGMOID:
        small = tl.exp(-tl.abs(chosen))  # never overflows
        weight = tl.where(chosen < 0, small, 1.0) / (1.0 + small)
        total = 1.0
        if RENORMALISE:
            total = tl.sum(tl.where(rank < K, weight, 0.0)) + 1e-20  # every sigmoid of a token may be 0
    else:
        highest = tl.max(tl.where(real, x, float("-inf")), 0)
        weight = tl.exp(chosen - highest)
        total = tl.sum(tl.where(real, tl.exp(x - highest), 0.0))
        if RENORMALISE:
            total = tl.sum(tl.where(rank < K, weight, 0.0))
    place = token * K + rank
    tl.store(expert_ptr + place, best_experts, mask=rank < K)
    tl.store(weight_ptr + place, weight / total, mask=rank < K)


def _check(logits_TE: torch.Tensor, top_k: int, scoring: str) -> None:
    check_tensor("topk", "logits_TE", logits_TE, tuple(_DTYPES), ("T", "E"))
    experts = logits_TE.shape[1]
    if not 1 <= experts <= MAX_EXPERTS or not 1 <= top_k <= min(MAX_TOP_K, experts) or scoring not in SCORINGS:
        raise InputError(
            f"topk: got {experts} experts, top_k={top_k}, scoring={scoring}; expected 1 to {MAX_EXPERTS} experts, top_k of "
            f"1 to {MAX_TOP_K} and at most the experts, scoring {' or '.join(SCORINGS)}; change them"
        )


def topk(
    logits_TE: torch.Tensor, top_k: int, scoring: str = "softmax", renormalise: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """(experts int32 [T, K], weights float32 [T, K]), largest logit first; equal logits: the lower expert first.

    `logits_TE` float32, bfloat16 or float16, computed in float32. `scoring`: "softmax" over all E, or "sigmoid" of each;
    `renormalise`: divided by its sum over the K (plus 1e-20 for sigmoid). Experts are always K different ones of 0..E-1,
    NaN among the logits or not; weights then are what the arithmetic gives. Errors: `InputError` for another dtype, shape
    or scoring, more than 512 experts, or a `top_k` above 16 or E.
    """
    _check(logits_TE, top_k, scoring)
    tokens, experts = logits_TE.shape
    expert_TK = torch.empty(tokens, top_k, dtype=torch.int32, device=logits_TE.device)
    weight_TK = torch.empty(tokens, top_k, dtype=torch.float32, device=logits_TE.device)
    if tokens:
        _topk_kernel[(tokens,)](
            logits_TE, expert_TK, weight_TK, num_warps=1, **_constants(experts, top_k, scoring, renormalise)
        )
    return expert_TK, weight_TK


def _constants(experts: int, top_k: int, scoring: str, renormalise: bool) -> dict[str, object]:
    padded = {"BE": max(32, triton.next_power_of_2(experts)), "BK": triton.next_power_of_2(top_k)}
    return {"E": experts, "K": top_k, "SIGMOID": scoring == "sigmoid", "RENORMALISE": renormalise, **padded}


def topk_ref(
    logits_TE: torch.Tensor, top_k: int, scoring: str = "softmax", renormalise: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same by torch's stable sort."""
    x_TE = logits_TE.float()
    expert_TK = x_TE.sort(dim=1, descending=True, stable=True).indices[:, :top_k]
    score_TE = x_TE.softmax(1) if scoring == "softmax" else x_TE.sigmoid()
    weight_TK = score_TE.gather(1, expert_TK)
    if renormalise:
        weight_TK = weight_TK / (weight_TK.sum(1, keepdim=True) + (1e-20 if scoring == "sigmoid" else 0))
    return expert_TK.int(), weight_TK


@dataclass(frozen=True, slots=True)
class Case:
    """T tokens, E experts, K of them, the logits' dtype, and how they are scored."""

    tokens: int
    experts: int
    top_k: int
    dtype: torch.dtype = torch.float32
    scoring: str = "softmax"
    renormalise: bool = False


CASES = (
    Case(1, 128, 8, torch.bfloat16, renormalise=True),
    Case(1, 256, 8, torch.bfloat16, renormalise=True),
    Case(4, 512, 10, torch.bfloat16, renormalise=True),
    Case(16, 128, 4, torch.bfloat16, renormalise=True),
    Case(3, 60, 4),
    Case(5, 64, 8, torch.float16),
    Case(2, 8, 2, renormalise=True),
    Case(2, 16, 1, torch.bfloat16, "sigmoid"),
    Case(7, 256, 8, scoring="sigmoid", renormalise=True),
    Case(2, 512, 16, torch.float16),
    Case(2, 11, 11),
    Case(1, 1, 1),
)
RTOL, ATOL = (
    1e-5,
    1e-7,
)  # of weights, always float32: the exponentials of a GPU are good to a few units in the last place


def _shipped(case: Case) -> Shipped:
    kind = f"{case.experts}x{case.top_k}/{_DTYPES[case.dtype][1:]}/{case.scoring}{'-sum1' * case.renormalise}"
    types = {"logits_ptr": _DTYPES[case.dtype], "expert_ptr": "*i32", "weight_ptr": "*fp32"}
    constants = _constants(case.experts, case.top_k, case.scoring, case.renormalise)
    return Shipped(f"topk/{kind}", __name__, "_topk_kernel", types, constants, 1, 3, 0, max_registers=128)


SHIPPED = tuple(_shipped(case) for case in CASES if case in (CASES[0], CASES[2], CASES[8], CASES[9]))
