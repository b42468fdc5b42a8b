"""Look-ahead in one launch: logits with the bits of the predictors' reference, chances and likeliest experts beside it."""

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from rgpu.errors import InputError
from rgpu.kernels.lookahead import ACTIVATIONS, ATOL, CASES, RTOL, Ahead, Case, lookahead, lookahead_ref, made
from rgpu.predictors.hidden import linear_reference, top_k_share
from rgpu.predictors.linear import Linear
from rgpu.predictors.schema import Schema
from tests.kernels.poison import poisoned


def check(case: Case, seed: int = 0) -> Ahead:
    arguments = made(case, torch.Generator().manual_seed(seed))
    count_H = torch.zeros(case.horizons, dtype=torch.int32)
    with poisoned():
        found = lookahead(*arguments, case.experts, case.top_k, case.activation, case.width, count_H)
    want = lookahead_ref(*arguments, case.experts, case.top_k, case.activation, case.width)
    assert torch.equal(found.logits_NHE, want.logits_NHE) and found.logits_NHE.dtype == torch.float32
    torch.testing.assert_close(found.probs_HE, want.probs_HE, rtol=RTOL, atol=ATOL)
    ranked = found.probs_HE.sort(dim=-1, descending=True, stable=True).indices[:, : case.width]
    assert found.expert_HW.dtype == torch.int32 and torch.equal(found.expert_HW.long(), ranked)
    assert not count_H.any()
    return found


@pytest.mark.parametrize("case", CASES, ids=str)
def test_cases(case: Case) -> None:
    check(case)


@given(
    tokens=st.integers(0, 3), inputs=st.integers(1, 40), horizons=st.integers(1, 3), experts=st.integers(1, 70),
    top_k=st.integers(1, 16), width=st.integers(0, 5), activation=st.sampled_from(ACTIVATIONS), seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from((torch.float32, torch.float16)), stored=st.sampled_from((torch.float32, torch.float16)),
)  # fmt: skip
@settings(
    max_examples=20, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate)
)  # shrinking takes minutes
def test_any_shape(
    tokens: int, inputs: int, horizons: int, experts: int, top_k: int, width: int, activation: str, seed: int,
    dtype: torch.dtype, stored: torch.dtype,
) -> None:  # fmt: skip
    check(Case(tokens, inputs, horizons, experts, top_k, activation, min(width, experts), dtype, stored), seed)


@pytest.mark.parametrize("activation", ["share", "threshold"])
def test_what_the_predictors_forecast(activation: str) -> None:
    case = Case(3, 50, 4, 24, 4, activation, 6)
    x_ND, weight_DM, bias_M = made(case, torch.Generator().manual_seed(1))
    found = lookahead(x_ND, weight_DM, bias_M, 24, 4, activation, 6)
    logits_NM = linear_reference(x_ND.numpy(), weight_DM.numpy(), bias_M.numpy())
    logits_NHE = logits_NM.reshape(3, 4, 24)
    assert np.array_equal(found.logits_NHE.numpy().view(np.int32), logits_NHE.view(np.int32))
    linear = Linear()
    linear.schema_ = Schema("made", "", 8, 24, 4)
    probs_NHE = top_k_share(logits_NHE, 4) if activation == "share" else linear._activate(logits_NHE)
    np.testing.assert_allclose(found.probs_HE.numpy(), probs_NHE.mean(0), rtol=RTOL, atol=ATOL)


def test_equally_likely_experts_come_by_number() -> None:
    found = lookahead(torch.zeros(1, 4), torch.zeros(4, 9), torch.zeros(9), 9, 2, "share", 5)
    assert found.expert_HW.tolist() == [[0, 1, 2, 3, 4]]
    torch.testing.assert_close(found.probs_HE, torch.full((1, 9), 2 / 9))


def test_no_rows() -> None:
    found = lookahead(torch.zeros(0, 4), torch.ones(4, 6), torch.ones(6), 3, 2, "share", 2)
    assert found.logits_NHE.shape == (0, 2, 3) and not found.probs_HE.any()
    assert found.expert_HW.tolist() == [[0, 1], [0, 1]]


@pytest.mark.parametrize(
    "change",
    [
        {"x_ND": torch.zeros(1, 4, dtype=torch.float64)}, {"x_ND": torch.zeros(1, 5)}, {"x_ND": torch.zeros(4, 1).T[:, ::2]},
        {"bias_M": torch.zeros(4)}, {"bias_M": torch.zeros(6, dtype=torch.float16)}, {"experts": 4}, {"experts": 0},
        {"top_k": 0}, {"top_k": 17}, {"activation": "relu"}, {"width": 4}, {"width": -1},
        {"count_H": torch.zeros(3, dtype=torch.int32)},
        {"weight_DM": torch.zeros(4, 513), "bias_M": torch.zeros(513), "experts": 513},
    ],
)  # fmt: skip
def test_refusals(change: dict[str, object]) -> None:
    given_: dict[str, object] = {
        "x_ND": torch.zeros(1, 4), "weight_DM": torch.zeros(4, 6), "bias_M": torch.zeros(6), "experts": 3, "top_k": 2
    }  # fmt: skip
    with pytest.raises(InputError, match=r"^lookahead: got [^\n]*; expected [^\n]*; [^\n]*$"):
        lookahead(**{**given_, **change})  # type: ignore[arg-type]
