"""Figures of fidelity on logits made by hand, and their limits."""

import math
from dataclasses import replace

import pytest
import torch

from rgpu.runtime.fidelity import TOLERANCES, Fidelity, compared


def test_equal_logits() -> None:
    logits_RV = torch.tensor([[1.0, 2.0, 3.0], [0.0, -1.0, 5.0]])
    assert compared(logits_RV, logits_RV.clone()) == Fidelity(2, 0.0, 0.0, 0.0, 1.0)


def test_figures_by_hand() -> None:
    theirs_RV = torch.tensor([[3.0, 4.0], [0.0, 10.0]])
    ours_RV = torch.tensor([[3.0, 2.0], [0.0, 10.0]])  # row 0 differs by a norm of 2 of 5, and chooses otherwise
    made = compared(ours_RV, theirs_RV)
    assert (made.rows, made.greedy_agreement) == (2, 0.5)
    assert made.logit_error_max == pytest.approx(0.4) and made.logit_error_mean == pytest.approx(0.2)
    p = 1 / (1 + math.exp(1))  # of the reference's first logit; the run gives it 1 - p
    divergence = p * math.log(p / (1 - p)) + (1 - p) * math.log((1 - p) / p)
    assert made.kl_mean == pytest.approx(divergence / 2)


def test_a_logit_that_is_no_number_is_never_within() -> None:
    logits_RV = torch.tensor([[1.0, 2.0]])
    bad = compared(torch.tensor([[1.0, torch.nan]]), logits_RV)
    assert not any(bad.within(allowed) for allowed in TOLERANCES.values())


@pytest.mark.parametrize("name", ["logit_error_max", "logit_error_mean", "kl_mean"])
def test_each_error_has_its_limit(name: str) -> None:
    good = Fidelity(100, 0.0, 0.0, 0.0, 1.0)
    for allowed in TOLERANCES.values():
        limit = getattr(allowed, name)
        assert replace(good, **{name: limit}).within(allowed)
        assert not replace(good, **{name: limit * 1.01}).within(allowed)


def test_choices_are_counted_in_whole_ones() -> None:
    allowed = TOLERANCES[torch.float32]
    assert Fidelity(10, 0.0, 0.0, 0.0, 0.9).within(allowed)
    assert not Fidelity(10, 0.0, 0.0, 0.0, 0.8).within(allowed)
    assert not Fidelity(1000, 0.0, 0.0, 0.0, 0.98).within(allowed)
