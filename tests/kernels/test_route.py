"""What a router chose: the kernel against plain torch, and words that can be read back."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rgpu.errors import InputError
from rgpu.kernels.route import CASES, Case, made, route, route_ref
from tests.kernels.poison import poisoned


def both(expert_TK: torch.Tensor, weight_TK: torch.Tensor, lookup_E: torch.Tensor) -> None:
    word_P, want_P = (torch.full((expert_TK.numel(),), -1) for _ in range(2))
    with poisoned():
        slot_TK, float_TK = route(expert_TK, weight_TK, lookup_E, word_P)
    want_slot, want_float = route_ref(expert_TK, weight_TK, lookup_E, want_P)
    assert slot_TK.dtype == want_slot.dtype == torch.int32 and torch.equal(slot_TK, want_slot)
    assert torch.equal(float_TK.view(torch.int32), want_float.view(torch.int32)) and torch.equal(word_P, want_P)
    words = word_P.numpy()
    assert (words >> 32).tolist() == expert_TK.flatten().tolist()
    weights = (words & 0xFFFFFFFF).astype(np.uint32).view(np.float32)
    np.testing.assert_array_equal(weights, weight_TK.float().flatten().numpy())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_cases(case: Case) -> None:
    both(*made(case, torch.Generator().manual_seed(0)))


@given(
    tokens=st.integers(0, 12), top_k=st.integers(1, 12), experts=st.integers(1, 30),
    ids=st.sampled_from((torch.int32, torch.int64)), absent=st.sampled_from((0.0, 0.3, 1.0)),
    seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
@settings(max_examples=20, deadline=None)
def test_any_shape(tokens: int, top_k: int, experts: int, ids: torch.dtype, absent: float, seed: int) -> None:
    case = Case(tokens, top_k, experts, ids, torch.float32, absent)
    both(*made(case, torch.Generator().manual_seed(seed)))


def test_experts_outside_the_table_read_nothing_and_weights_keep_their_bits() -> None:
    around = torch.full((30,), 77, dtype=torch.int32)  # what a read past either end would find
    lookup_E = around[10:14]
    lookup_E.copy_(torch.tensor([-1, 2, -5, 3]))
    expert_TK = torch.tensor([[4, -1, 2, 1], [-7, 9, 0, 3]])
    weight_TK = torch.tensor([[-0.0, float("inf"), float("-inf"), float("nan")], [-1.0, 1e-40, 0.5, -2.0]])
    both(expert_TK, weight_TK, lookup_E)
    slot_TK, _ = route(expert_TK, weight_TK, lookup_E, torch.empty(8, dtype=torch.int64))
    assert slot_TK.tolist() == [[-1, -1, -1, 2], [-1, -1, -1, 3]]


@pytest.mark.parametrize(
    "wrong",
    [
        {"expert_TK": torch.zeros(2, 3)},
        {"expert_TK": torch.zeros(3, 2, dtype=torch.int64).T},
        {"weight_TK": torch.zeros(3, 2)},
        {"weight_TK": torch.zeros(2, 3, dtype=torch.float64)},
        {"lookup_E": torch.zeros(4, dtype=torch.int64)},
        {"lookup_E": torch.zeros(4, dtype=torch.int32, device="meta")},
        {"word_P": torch.zeros(5, dtype=torch.int64)},
        {"word_P": torch.zeros(6, dtype=torch.int64, device="meta")},
        {"expert_TK": torch.zeros(205, 5, dtype=torch.int64), "weight_TK": torch.zeros(205, 5),
         "word_P": torch.zeros(1025, dtype=torch.int64)},
    ],
)  # fmt: skip
def test_refusals(wrong: dict[str, torch.Tensor]) -> None:
    right = {"expert_TK": torch.zeros(2, 3, dtype=torch.int64), "weight_TK": torch.zeros(2, 3),
             "lookup_E": torch.zeros(4, dtype=torch.int32), "word_P": torch.zeros(6, dtype=torch.int64)}  # fmt: skip
    with pytest.raises(InputError, match=r"^route: got [^\n]*; expected [^\n]*; [^\n]*$"):
        route(**right | wrong)
