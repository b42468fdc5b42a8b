"""The router's choice: the kernel against torch's stable sort, ties and odd numbers included."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rgpu.errors import InputError
from rgpu.kernels.topk import ATOL, CASES, RTOL, SCORINGS, Case, topk, topk_ref
from tests.kernels.poison import poisoned

ODD = (0.0, -0.0, 1.0, -1.0, 200.0, -200.0, float("inf"), float("-inf"), float("nan"), -float("nan"))
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def check(logits_TE: torch.Tensor, top_k: int, scoring: str, renormalise: bool) -> torch.Tensor:
    with poisoned():
        expert_TK, weight_TK = topk(logits_TE, top_k, scoring, renormalise)
    want_experts, want_weights = topk_ref(logits_TE, top_k, scoring, renormalise)
    assert expert_TK.dtype == torch.int32 and torch.equal(expert_TK, want_experts)
    torch.testing.assert_close(weight_TK, want_weights, rtol=RTOL, atol=ATOL, equal_nan=True)
    return weight_TK


@pytest.mark.parametrize("case", CASES, ids=str)
def test_cases(case: Case) -> None:
    make = torch.Generator().manual_seed(case.experts)
    logits_TE = (torch.randn(case.tokens, case.experts, generator=make) * 3).to(case.dtype)
    weight_TK = check(logits_TE, case.top_k, case.scoring, case.renormalise)
    if case.renormalise:
        torch.testing.assert_close(weight_TK.sum(1), torch.ones(case.tokens), rtol=RTOL, atol=ATOL)


@given(
    tokens=st.integers(0, 4), experts=st.integers(1, 80), top_k=st.integers(1, 16), dtype=st.sampled_from(DTYPES),
    scoring=st.sampled_from(SCORINGS), renormalise=st.booleans(), values=st.integers(1, 9), seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
@settings(max_examples=20, deadline=None)
def test_ties_go_to_the_lower_expert(
    tokens: int, experts: int, top_k: int, dtype: torch.dtype, scoring: str, renormalise: bool, values: int, seed: int
) -> None:
    """Few different logits, so that most are equal to others."""
    make = torch.Generator().manual_seed(seed)
    logits_TE = (torch.randint(0, values, (tokens, experts), generator=make) - values // 2).to(dtype)
    check(logits_TE, min(top_k, experts), scoring, renormalise)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of inf - inf: what the interpreter computes with
@given(
    rows=st.lists(st.lists(st.sampled_from(ODD), min_size=12, max_size=12), min_size=1, max_size=3),
    dtype=st.sampled_from(DTYPES), scoring=st.sampled_from(SCORINGS), renormalise=st.booleans(),
)  # fmt: skip
@settings(max_examples=20, deadline=None)
def test_odd_numbers(rows: list[list[float]], dtype: torch.dtype, scoring: str, renormalise: bool) -> None:
    """Experts stay K different ones; weights are NaN where torch's are."""
    check(torch.tensor(rows).to(dtype), 5, scoring, renormalise)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_order_of_equal_and_of_strange_logits() -> None:
    """Spelt out, so as not to rest on the order of torch's sort."""
    nan, inf = float("nan"), float("inf")
    assert topk(torch.tensor([[-0.0, 0.0, -1.0, 0.0]]), 4)[0].tolist() == [[0, 1, 3, 2]]
    assert topk(torch.tensor([[0.0, -1e-40, 1e-40]]), 3)[0].tolist() == [[2, 0, 1]]
    assert topk(torch.full((2, 7), -inf), 3)[0].tolist() == [[0, 1, 2]] * 2
    assert topk(torch.tensor([[1.0, -nan, inf, nan, -inf]]), 5, "sigmoid")[0].tolist() == [[1, 3, 2, 0, 4]]


def test_against_torch_topk() -> None:
    logits_TE = torch.randperm(5 * 96).reshape(5, 96).float()
    value_TK, expert_TK = logits_TE.topk(9)
    got, weight_TK = topk(logits_TE, 9, renormalise=True)
    assert torch.equal(got.long(), expert_TK)
    torch.testing.assert_close(weight_TK, value_TK.softmax(1), rtol=RTOL, atol=ATOL)


def test_sigmoids_that_are_all_zero_have_no_nan() -> None:
    weight_TK = check(torch.full((1, 8), -150.0), 2, "sigmoid", True)
    assert torch.isfinite(weight_TK).all()


@pytest.mark.parametrize(
    ("logits_TE", "top_k", "scoring"),
    [
        (torch.zeros(2, 8, dtype=torch.float64), 2, "softmax"),
        (torch.zeros(16), 2, "softmax"),
        (torch.zeros(8, 2).T, 2, "softmax"),
        (torch.zeros(2, 0), 1, "softmax"),
        (torch.zeros(2, 513), 2, "softmax"),
        (torch.zeros(2, 8), 9, "softmax"),
        (torch.zeros(2, 64), 17, "softmax"),
        (torch.zeros(2, 8), 0, "softmax"),
        (torch.zeros(2, 8), 2, "relu"),
    ],
)
def test_refusals(logits_TE: torch.Tensor, top_k: int, scoring: str) -> None:
    with pytest.raises(InputError, match=r"^topk: got [^\n]*; expected [^\n]*; [^\n]*$"):
        topk(logits_TE, top_k, scoring)
