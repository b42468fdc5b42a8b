"""Look-ahead on a GPU: every row of a forecast of linear form, its chances and its likeliest experts, in one launch.

The logits of all rows are one linear map (a router for each layer ahead, side by side), and they have the bits of
`rgpu.contracts.LinearForecast`: a lane sums one expert over d = 0, 1, ... in float32, a product is rounded before it is
added. So what is decided from them live, a replay decides again. A norm that a later layer would apply is a scale of the
inputs, which belongs into the map.

Activations need all experts of a row of the forecast, whose logits several programs compute: each counts itself off
behind its stores, and the last one of a forecast row reads them all, whichever it is. Programs wait for nobody.

Legend: N rows of the event, D inputs, H rows of the forecast, E experts, M = H * E outputs, K top-k, W likeliest experts.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from rgpu.errors import InputError
from rgpu.kernels.arguments import check_one_device, check_tensor
from rgpu.kernels.gate.shipped import Shipped

ACTIVATIONS = ("none", "share", "threshold")
MAX_EXPERTS, MAX_TOP_K, MAX_WIDTH, MAX_ROWS = 512, 16, 64, 65535
TILE, CHUNK = 32, 32  # outputs of a program, a lane each; inputs whose loads are in flight together
HAIR, TIE, FAR = 2**-12, 2**-10, 80.0  # as in the predictors: what keeps near-certain experts in order, exp's limit
_TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
_LAUNCH = {"num_warps": 1, "num_stages": 1, "enable_fp_fusion": False}


@triton.jit
def _ordered_key(x):
    """A float32 as an integer of the same order, NaN above all."""
    bits = tl.where(x == 0, 0.0, x).to(tl.int32, bitcast=True)
    return tl.where(x != x, 0x7FFFFFFF, bits ^ ((bits >> 31) & 0x7FFFFFFF))


@triton.jit
def _float_of(key):
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _share(z, K: tl.constexpr, HAIR: tl.constexpr):
    share = tl.exp(z - tl.max(z, 0))
    share = share / tl.sum(share, 0)
    return tl.minimum(share * K, 1.0 - HAIR * (1.0 - share))


@triton.jit
def _threshold(z, expert, E: tl.constexpr, K: tl.constexpr, TIE: tl.constexpr, FAR: tl.constexpr):
    if K >= E:
        return tl.full(z.shape, 1.0, tl.float32)
    else:
        key = _ordered_key(z)
        inner = tl.max(key, 0)
        outer = inner
        for _ in tl.static_range(K + 1):  # leaves the K-th and the one behind it
            inner = outer
            outer, at = tl.max(key, 0, return_indices=True, return_indices_tie_break_left=True)
            key = tl.where(expert == at, -0x80000000, key)
        x = tl.where(expert < E, z, 0.0) - (_float_of(inner) + _float_of(outer)) * 0.5
        chance = 1.0 / (1.0 + tl.exp(tl.minimum(-x, FAR)))
        return (1.0 - TIE) * chance + TIE * (0.5 + 0.5 * x / (1.0 + tl.abs(x)))


@triton.jit
def _lookahead_kernel(
    x_ptr, weight_ptr, bias_ptr, logits_ptr, probs_ptr, expert_ptr, count_ptr,  # pointers
    rows,  # dimensions
    D: tl.constexpr, H: tl.constexpr, E: tl.constexpr, K: tl.constexpr, W: tl.constexpr,
    ACTIVATION: tl.constexpr, HAIR: tl.constexpr, TIE: tl.constexpr, FAR: tl.constexpr,  # 0 none, 1 share, 2 threshold
    CHUNK: tl.constexpr, BE: tl.constexpr, BA: tl.constexpr, BW: tl.constexpr,  # powers of two; BA from E, BW from W on
):  # fmt: skip
    h, n = tl.program_id(1), tl.program_id(2)
    expert = tl.program_id(0) * BE + tl.arange(0, BE)
    real = expert < E
    column = h * E + tl.where(real, expert, 0)
    x_row = x_ptr + n.to(tl.int64) * D
    y = tl.zeros([BE], tl.float32)
    for start in range(0, D - D % CHUNK, CHUNK):
        for i in tl.static_range(CHUNK):
            w = tl.load(weight_ptr + (start + i) * (H * E) + column)  # weights
            y = y + tl.load(x_row + start + i).to(tl.float32) * w.to(tl.float32)
    for d in range(D - D % CHUNK, D):
        y = y + tl.load(x_row + d).to(tl.float32) * tl.load(weight_ptr + d * (H * E) + column).to(tl.float32)
    y = y + tl.load(bias_ptr + column)
    tl.store(logits_ptr + (n.to(tl.int64) * H + h) * E + expert, y, mask=real)
    if ACTIVATION:
        tl.debug_barrier()  # all lanes have stored
        before = tl.atomic_add(count_ptr + h, 1, sem="acq_rel")
        if before == tl.num_programs(0) * rows - 1:
            every = tl.arange(0, BA)
            there = every < E
            total = tl.zeros([BA], tl.float32)
            at = logits_ptr + h * E + every
            row = 0
            while (
                row < rows
            ):  # `range` up to a number of run time fails under the interpreter of Triton 3.6 with numpy 2.4
                z = tl.load(at, mask=there, other=float("-inf"), cache_modifier=".cg")  # of other multiprocessors
                if ACTIVATION == 1:
                    total += _share(z, K, HAIR)
                else:
                    total += tl.where(there, _threshold(z, every, E, K, TIE, FAR), 0.0)
                at += H * E
                row += 1
            probs = total / rows
            tl.store(probs_ptr + h * E + every, probs, mask=there)
            rank = tl.arange(0, BW)
            best = tl.zeros([BW], tl.int32)
            key = tl.where(there, _ordered_key(probs), -0x80000000)
            for k in tl.static_range(W):
                _, likeliest = tl.max(key, 0, return_indices=True, return_indices_tie_break_left=True)
                best = tl.where(rank == k, likeliest, best)
                key = tl.where(every == likeliest, -0x80000000, key)
            tl.store(expert_ptr + h * W + rank, best, mask=rank < W)
            tl.store(count_ptr + h, 0)  # as it was found


class Ahead(NamedTuple):
    """`logits_NHE` and `probs_HE` float32; `expert_HW` int32, likeliest first, equally likely ones by lowest id."""

    logits_NHE: torch.Tensor
    probs_HE: torch.Tensor
    expert_HW: torch.Tensor


def lookahead(
    x_ND: torch.Tensor, weight_DM: torch.Tensor, bias_M: torch.Tensor, experts: int, top_k: int,
    activation: str = "share", width: int = 0, count_H: torch.Tensor | None = None,
) -> Ahead:  # fmt: skip
    """A forecast from N rows of the router's input: logits, the mean over rows of their chances, the `width` likeliest.

    `x_ND` and `weight_DM` float32, bfloat16 or float16, computed in float32; `bias_M` float32; M is a multiple of `experts`.
    `activation`: "share", K times the softmax as in `gate_lookahead`; "threshold", the sigmoid about the K-th as in `linear`;
    "none": logits alone, of any number of experts. `count_H` int32 [H] of zeros, left as zeros, saves making one: not to
    be shared by launches that may overlap. Errors: `InputError` for another dtype, shape or activation, more than 512
    experts, a top-k above 16, a width above 64 or the experts.
    """
    rows, horizons = _check(x_ND, weight_DM, bias_M, experts, top_k, activation, width)
    device = x_ND.device
    active = activation != "none"
    logits_NHE = torch.empty(rows, horizons, experts, dtype=torch.float32, device=device)
    probs_HE = torch.empty(horizons if active else 0, experts, dtype=torch.float32, device=device)
    expert_HW = torch.empty(horizons if active else 0, width, dtype=torch.int32, device=device)
    if active and count_H is None:
        count_H = torch.zeros(horizons, dtype=torch.int32, device=device)
    if active and count_H is not None:
        check_tensor("lookahead", "count_H", count_H, (torch.int32,), (horizons,))
        check_one_device("lookahead", x_ND, count_H)
    if not rows:
        return Ahead(
            logits_NHE, probs_HE.zero_(), torch.arange(width, dtype=torch.int32, device=device).expand_as(expert_HW)
        )
    constants = _constants(x_ND.shape[1], horizons, experts, top_k, activation, width)
    grid = (triton.cdiv(experts, TILE), horizons, rows)
    _lookahead_kernel[grid](
        x_ND, weight_DM, bias_M, logits_NHE, probs_HE, expert_HW, expert_HW if count_H is None else count_H, rows,
        **constants, **_LAUNCH,
    )  # fmt: skip
    return Ahead(logits_NHE, probs_HE, expert_HW)


def _check(
    x_ND: torch.Tensor,
    weight_DM: torch.Tensor,
    bias_M: torch.Tensor,
    experts: int,
    top_k: int,
    activation: str,
    width: int,
) -> tuple[int, int]:
    check_tensor("lookahead", "x_ND", x_ND, tuple(_TYPES), ("N", "D"))
    check_tensor("lookahead", "weight_DM", weight_DM, tuple(_TYPES), (x_ND.shape[1], "M"))
    outputs = weight_DM.shape[1]
    check_tensor("lookahead", "bias_M", bias_M, (torch.float32,), (outputs,))
    check_one_device("lookahead", x_ND, weight_DM, bias_M)
    most = MAX_EXPERTS if activation != "none" else outputs
    if (
        activation not in ACTIVATIONS or not 1 <= experts <= most or not outputs or outputs % experts
        or not 1 <= top_k <= MAX_TOP_K or not 0 <= width <= min(MAX_WIDTH, experts) or not x_ND.shape[1]
        or len(x_ND) > MAX_ROWS
    ):  # fmt: skip
        raise InputError(
            f"lookahead: got {len(x_ND)} rows, {x_ND.shape[1]} inputs, {outputs} outputs of {experts} experts, top_k={top_k}, "
            f"activation={activation}, width={width}; expected at most {MAX_ROWS} rows, 1 input or more, 1 to {MAX_EXPERTS} "
            f"experts of which the outputs are a multiple, top_k of 1 to {MAX_TOP_K}, activation "
            f"{' or '.join(ACTIVATIONS)}, width of at most {MAX_WIDTH} and the experts; change them"
        )
    return len(x_ND), outputs // experts


def _constants(inputs: int, horizons: int, experts: int, top_k: int, activation: str, width: int) -> dict[str, object]:
    padded = {"BA": max(32, triton.next_power_of_2(experts)), "BW": triton.next_power_of_2(max(1, width))}
    numbers = {"D": inputs, "H": horizons, "E": experts, "K": top_k, "W": width, "HAIR": HAIR, "TIE": TIE, "FAR": FAR}
    return {**numbers, "ACTIVATION": ACTIVATIONS.index(activation), "CHUNK": CHUNK, "BE": TILE, **padded}


def lookahead_ref(
    x_ND: torch.Tensor, weight_DM: torch.Tensor, bias_M: torch.Tensor, experts: int, top_k: int,
    activation: str = "share", width: int = 0,
) -> Ahead:  # fmt: skip
    """The same in plain torch; each output summed in order, one input after the other."""
    y_NM = torch.zeros(len(x_ND), weight_DM.shape[1])
    for x_N, w_M in zip(x_ND.float().T, weight_DM.float(), strict=True):
        y_NM = y_NM + x_N[:, None] * w_M
    z_NHE = (y_NM + bias_M).view(len(x_ND), y_NM.shape[1] // experts, experts)
    if activation == "none":
        return Ahead(z_NHE, torch.empty(0, experts), torch.empty(0, width, dtype=torch.int32))
    if activation == "share":
        share_NHE = z_NHE.softmax(-1)
        p_NHE = torch.minimum(share_NHE * top_k, 1 - HAIR * (1 - share_NHE))
    elif top_k >= experts:
        p_NHE = torch.ones_like(z_NHE)
    else:
        best = z_NHE.topk(top_k + 1).values
        x_NHE = z_NHE - (best[..., -2:-1] + best[..., -1:]) * 0.5
        p_NHE = (1 - TIE) * torch.sigmoid(x_NHE) + TIE * (0.5 + 0.5 * x_NHE / (1 + x_NHE.abs()))
    probs_HE = p_NHE.sum(0) / max(1, len(x_ND))
    return Ahead(z_NHE, probs_HE, probs_HE.sort(dim=-1, descending=True, stable=True).indices[:, :width].int())


@dataclass(frozen=True, slots=True)
class Case:
    """N rows, D inputs, H forecast rows of E experts, K of them, W likeliest; dtypes of the inputs and of the map."""

    tokens: int
    inputs: int
    horizons: int
    experts: int
    top_k: int
    activation: str = "share"
    width: int = 0
    dtype: torch.dtype = torch.float32
    stored: torch.dtype = torch.float32


CASES = (
    Case(1, 64, 5, 64, 8, width=16),
    Case(1, 64, 5, 64, 8, "threshold", 16),
    Case(3, 70, 2, 40, 4, "threshold", 8, torch.float16, torch.float16),
    Case(4, 33, 2, 128, 8, "share", 12, torch.bfloat16, torch.bfloat16),
    Case(2, 20, 3, 8, 8, "threshold", 8),
    Case(2, 1, 1, 1, 1, width=1),
    Case(1, 32, 1, 512, 10, "threshold", 24, torch.float16),
    Case(2, 40, 1, 600, 8, "none"),
)
REAL = (  # too large for the interpreter: shapes of Qwen3-30B-A3B and gpt-oss-20b, for machines with a card
    Case(1, 2048, 5, 128, 8, width=16, dtype=torch.float16, stored=torch.bfloat16),
    Case(16, 2048, 5, 128, 8, "threshold", 16, torch.float16),
    Case(1, 2880, 5, 32, 4, width=8, dtype=torch.float16, stored=torch.bfloat16),
    Case(1, 2048, 1, 640, 8, "none"),
)
RTOL, ATOL = 1e-5, 1e-6  # of chances; logits are exact


def made(case: Case, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(x_ND, weight_DM, bias_M) of a case, drawn at random."""
    outputs = case.horizons * case.experts
    x_ND = torch.randn(case.tokens, case.inputs, generator=generator).to(case.dtype)
    weight_DM = (torch.randn(case.inputs, outputs, generator=generator) * (3 / case.inputs**0.5)).to(case.stored)
    return x_ND, weight_DM, torch.randn(outputs, generator=generator)


def _shipped(case: Case) -> Shipped:
    kind = f"{case.experts}x{case.top_k}/{_TYPES[case.stored][1:]}/{case.activation}"
    types = {
        "x_ptr": _TYPES[case.dtype], "weight_ptr": _TYPES[case.stored], "bias_ptr": "*fp32", "logits_ptr": "*fp32",
        "probs_ptr": "*fp32", "expert_ptr": "*i32", "count_ptr": "*i32", "rows": "i32",
    }  # fmt: skip
    constants = _constants(case.inputs, case.horizons, case.experts, case.top_k, case.activation, case.width)
    wants = ("subnormals",) if case.activation == "threshold" else ("subnormals", "rounded")  # its longest loop ranks
    return Shipped(
        f"lookahead/{kind}", __name__, "_lookahead_kernel", types, constants, 1, 1, 0, wants,
        max_registers=128, options={"enable_fp_fusion": False},
    )  # fmt: skip


SHIPPED = tuple(_shipped(case) for case in REAL)
