"""From experts to slots on the device: the slot of every pair, and the list of experts that are missing.

One program, because the list has an order: missing experts come by their last appearance, the order in which one event of a
layer touches its experts. Each pair looks for its expert among the pairs after it; where nothing is missing it looks for
nothing. Runs without the host, so that a decode step can be one CUDA graph.

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
STRIP = 8  # later pairs that every pair is compared with at a time


@dataclass(frozen=True, slots=True)
class Resolved:
    """`slot_TK` int32: the slot of each pair, -1 where its expert is missing. `missing_P` int32: the distinct missing
    experts in the order of their last appearance, -1 after them. `count` int32 [1]: how many they are."""

    slot_TK: torch.Tensor
    missing_P: torch.Tensor
    count: torch.Tensor


@triton.jit
def _resolve_kernel(
    expert_ptr, lookup_ptr, slot_ptr, missing_ptr, count_ptr,  # pointers
    P, E,  # dimensions
    BP: tl.constexpr, STRIP: tl.constexpr,  # power of two from P on; tile
):  # fmt: skip
    pair = tl.arange(0, BP)
    expert = tl.load(expert_ptr + pair, mask=pair < P, other=-1)
    real = (expert >= 0) & (expert < E)
    slot = tl.maximum(tl.load(lookup_ptr + expert, mask=real, other=-1), -1)
    tl.store(slot_ptr + pair, slot, mask=pair < P)
    missing = (real & (slot < 0)).to(tl.int32)
    if tl.sum(missing) > 0:
        again = tl.zeros([BP, STRIP], tl.int32)
        start = 0
        while start < P:  # `range` up to a number of run time fails under the interpreter of Triton 3.6 with numpy 2.4
            later = start + tl.arange(0, STRIP)
            other = tl.load(expert_ptr + later, mask=later < P, other=-1)
            again |= ((expert[:, None] == other[None, :]) & (pair[:, None] < later[None, :])).to(tl.int32)
            start += STRIP
        missing *= 1 - tl.max(again, 1)
    count = tl.sum(missing)
    tl.store(missing_ptr + tl.cumsum(missing, 0) - 1, expert, mask=missing > 0)
    tl.store(missing_ptr + pair, -1, mask=(pair >= count) & (pair < P))
    tl.store(count_ptr, count)


def _check(expert_TK: torch.Tensor, lookup_E: torch.Tensor, read_experts: bool) -> None:
    check_tensor("resolve", "expert_TK", expert_TK, (torch.int32,), ("T", "K"))
    check_tensor("resolve", "lookup_E", lookup_E, (torch.int32,), ("E",))
    check_one_device("resolve", expert_TK, lookup_E)
    if expert_TK.numel() > MAX_PAIRS:
        raise InputError(
            f"resolve: got {list(expert_TK.shape)} experts; expected at most {MAX_PAIRS} pairs; resolve fewer tokens at a time"
        )
    if read_experts and expert_TK.device.type == "cpu" and expert_TK.numel():
        low, high, experts = int(expert_TK.min()), int(expert_TK.max()), lookup_E.numel()
        if low < 0 or high >= experts:
            raise InputError(
                f"resolve: got experts {low} to {high}; expected 0 to {experts - 1}; give the table of this layer"
            )


def resolve(expert_TK: torch.Tensor, lookup_E: torch.Tensor, *, read_experts: bool = True) -> Resolved:
    """Slots of the experts `expert_TK` (int32 [T, K]) by `lookup_E` (int32 [E]: expert -> slot, negative: not resident).

    An expert outside 0..E-1 gets slot -1, is never listed as missing, and nothing outside the table is read. On the CPU
    one is refused instead, unless `read_experts` is False; on a GPU looking at them would wait for the device.
    Errors: `InputError` for that, for other dtypes, shapes or several devices, and for more than 1,024 pairs.
    """
    _check(expert_TK, lookup_E, read_experts)
    pairs, device = expert_TK.numel(), expert_TK.device
    if not pairs:
        none = torch.empty(0, dtype=torch.int32, device=device)
        return Resolved(torch.empty_like(expert_TK), none, torch.zeros(1, dtype=torch.int32, device=device))
    slot_TK, missing_P = torch.empty_like(expert_TK), torch.empty(pairs, dtype=torch.int32, device=device)
    count = torch.empty(1, dtype=torch.int32, device=device)
    padded = max(STRIP, triton.next_power_of_2(pairs))
    _resolve_kernel[(1,)](
        expert_TK, lookup_E, slot_TK, missing_P, count, pairs, lookup_E.numel(),
        BP=padded, STRIP=STRIP, num_warps=_warps(padded),
    )  # fmt: skip
    return Resolved(slot_TK, missing_P, count)


def _warps(padded: int) -> int:
    return min(16, max(1, padded // 32))


def resolve_ref(expert_TK: torch.Tensor, lookup_E: torch.Tensor) -> Resolved:
    """The same, pair by pair."""
    lookup, flat = lookup_E.tolist(), expert_TK.flatten().tolist()
    slots = [max(lookup[e], -1) if 0 <= e < len(lookup) else -1 for e in flat]
    last = {e: at for at, e in enumerate(flat)}
    missing = [e for at, e in enumerate(flat) if last[e] == at and 0 <= e < len(lookup) and lookup[e] < 0]
    listed = missing + [-1] * (len(flat) - len(missing))
    slot_P, missing_P, count = (
        torch.tensor(row, dtype=torch.int32, device=expert_TK.device) for row in (slots, listed, [len(missing)])
    )
    return Resolved(slot_P.reshape(expert_TK.shape), missing_P, count)


@dataclass(frozen=True, slots=True)
class Case:
    """T tokens of K out of E experts; `absent` of the experts, as a fraction, are not resident."""

    tokens: int
    top_k: int
    experts: int
    absent: float = 0.3


CASES = (
    Case(1, 8, 128),
    Case(1, 8, 128, 0.0),
    Case(1, 10, 512, 1.0),
    Case(4, 4, 128),
    Case(3, 1, 1, 1.0),
    Case(16, 8, 60, 0.5),
    Case(25, 7, 40, 1.0),
    Case(128, 8, 256, 0.2),
    Case(64, 16, 512, 0.9),
)


def _shipped(pairs: int) -> Shipped:
    pointers = ("expert_ptr", "lookup_ptr", "slot_ptr", "missing_ptr", "count_ptr")
    types = {**dict.fromkeys(pointers, "*i32"), "P": "i32", "E": "i32"}
    constants: dict[str, object] = {"BP": pairs, "STRIP": STRIP}
    return Shipped(
        f"resolve/{pairs}", __name__, "_resolve_kernel", types, constants, _warps(pairs), 3, 0, max_registers=128
    )


SHIPPED = tuple(_shipped(pairs) for pairs in (16, 128, MAX_PAIRS))
