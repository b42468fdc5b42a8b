"""Numbers that no predictor can work with end in one line, whichever parameter they are given for."""

import math
from typing import Any

import pytest
import torch

from rgpu.errors import InputError
from rgpu.predictors.history_gru import HistoryGru
from rgpu.predictors.linear import Linear
from rgpu.predictors.low_rank import LowRank
from rgpu.predictors.markov import Markov
from rgpu.predictors.mlp import Mlp
from rgpu.predictors.online_head import OnlineHead
from rgpu.predictors.oracle import Oracle
from rgpu.predictors.popularity_domain import PopularityDomain
from rgpu.predictors.popularity_prefix import PopularityPrefix
from rgpu.predictors.ranges import SEEDS, check_number
from rgpu.predictors.similar_sequences import SimilarSequences
from tests.predicting import learnable_trace

NAN, INF = math.nan, math.inf
CASES: list[tuple[Any, str, Any]] = [
    *((kind, "seed", -1) for kind in (Oracle, SimilarSequences, Linear, OnlineHead, HistoryGru)),
    (Oracle, "seed", SEEDS),
    (Oracle, "seed", 0.5),
    (Linear, "lr", NAN),
    (Linear, "lr", INF),
    (Linear, "validation", NAN),
    (Mlp, "decay", NAN),
    (Mlp, "decay", -1.0),
    (LowRank, "decay", INF),
    (Markov, "smoothing", INF),
    (Markov, "smoothing", NAN),
    (OnlineHead, "lr", INF),
    (OnlineHead, "lr", 1e39),
    (PopularityDomain, "evidence", NAN),
    (PopularityDomain, "evidence", 1e13),
    (PopularityPrefix, "strength", 1e39),
    *((Linear, "device", device) for device in ("foo", "cpu:x", "meta", "", "cuda:1")),
]


@pytest.mark.parametrize(("kind", "name", "value"), CASES)
def test_a_value_out_of_range_is_one_line(kind: Any, name: str, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(
        InputError, match=rf"predictor {kind.name}: got {name} .*; expected [^\n]*; set predictor.{name}"
    ):
        kind(**{name: value}).fit(learnable_trace(sequences=2, tokens=8))


def test_ranges_are_said_as_they_are() -> None:
    check_number("x", "y", 0, 0, 1)
    for wanted, bounds in {
        "between 0 and 1": {"high": 1, "above": True, "below": True},
        "a number above 0": {"above": True},
        "a number, 0 or more": {},
        "above 0, at most 2": {"high": 2, "above": True},
        "0 to 2": {"high": 2},
    }.items():
        with pytest.raises(InputError, match=f"predictor x: got y nan; expected {wanted}; set predictor.y"):
            check_number("x", "y", NAN, 0, **bounds)  # type: ignore[arg-type]
