from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rgpu.contracts import Forecast
from rgpu.errors import InputError
from rgpu.planning.top_k import TopK
from rgpu.types import ExpertKey

PROBS = np.array([[0.1, 0.9, 0.5, 0.5], [0.7, 0.0, 0.2, 0.0], [0.3, 0.4, 0.2, 0.1]], np.float32)
FORECAST = Forecast(np.array([2, 1, 0]), np.array([0, 0, 1]), PROBS)
NOTHING = np.zeros((3, 4), bool)


def keys(*pairs: tuple[int, int]) -> list[ExpertKey]:
    return [ExpertKey(layer, expert) for layer, expert in pairs]


def test_nearest_layer_first_then_most_likely_ties_by_lowest_id() -> None:
    assert TopK(width=1).plan(FORECAST, NOTHING) == keys((1, 0))
    assert TopK(width=2, horizon=2).plan(FORECAST, NOTHING) == keys((1, 0), (1, 2), (2, 1), (2, 2))


def test_next_token_comes_last() -> None:
    assert TopK(width=1, horizon=2, next_token=True).plan(FORECAST, NOTHING) == keys((1, 0), (2, 1), (0, 1))
    assert TopK(width=1, horizon=0, next_token=True).plan(FORECAST, NOTHING) == keys((0, 1))


def test_residents_are_not_loaded_and_not_replaced_by_less_likely_ones() -> None:
    resident = NOTHING.copy()
    resident[2, 1] = resident[1, 0] = True
    assert TopK(width=2, horizon=2).plan(FORECAST, resident) == keys((1, 2), (2, 2))


def test_impossible_experts_are_not_loaded() -> None:
    assert TopK(width=4).plan(FORECAST, NOTHING) == keys((1, 0), (1, 2))


@pytest.mark.parametrize("bad", [{"width": 0}, {"width": 2, "horizon": -1}])
def test_bad_parameters(bad: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="planner top_k"):
        TopK(**bad)


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(0, 4), st.booleans())
def test_plan_is_duplicate_free_absent_and_bounded(seed: int, width: int, horizon: int, next_token: bool) -> None:
    rng = np.random.default_rng(seed)
    layers, ahead = np.array([1, 2, 3, 0]), np.array([0, 0, 0, 1])
    forecast = Forecast(layers, ahead, rng.integers(0, 4, (4, 6)).astype(np.float32) / 4)
    resident = rng.random((4, 6)) < 0.4
    loads = TopK(width, horizon, next_token).plan(forecast, resident)
    assert len(set(loads)) == len(loads) <= width * (min(horizon, 3) + next_token)
    assert not any(resident[load.layer, load.expert] for load in loads)
    assert {load.layer for load in loads} <= {1, 2, 3}.intersection(range(horizon + 1)) | ({0} if next_token else set())
