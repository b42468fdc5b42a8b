"""Planners that choose by a row's probabilities alone: threshold, percentile, multi_horizon."""

from typing import Any

import numpy as np
import pytest

from rgpu.contracts import Forecast
from rgpu.errors import InputError
from rgpu.planning.multi_horizon import MultiHorizon
from rgpu.planning.percentile import Percentile
from rgpu.planning.threshold import Threshold
from tests.unit.planning.test_top_k import keys

PROBS = np.array([[0.1, 0.9, 0.5, 0.5], [0.7, 0.0, 0.2, 0.6], [0.3, 0.8, 0.2, 0.1]], np.float32)
FORECAST = Forecast(np.array([2, 1, 0]), np.array([0, 0, 1]), PROBS)
NOTHING = np.zeros((3, 4), bool)


def test_threshold_takes_what_is_likely_enough_up_to_its_width() -> None:
    assert Threshold(0.5).plan(FORECAST, NOTHING) == keys((1, 0), (1, 3))
    assert Threshold(0.5, horizon=2).plan(FORECAST, NOTHING) == keys((1, 0), (1, 3), (2, 1), (2, 2), (2, 3))
    assert Threshold(0.5, width=1, horizon=2, next_token=True).plan(FORECAST, NOTHING) == keys((1, 0), (2, 1), (0, 1))
    assert Threshold(0.95).plan(FORECAST, NOTHING) == []
    assert Threshold(0.0).plan(FORECAST, NOTHING) == keys((1, 0), (1, 3), (1, 2))  # never one of probability 0


def test_threshold_drops_residents_after_its_choice() -> None:
    resident = NOTHING.copy()
    resident[1, 0] = True
    assert Threshold(0.1, width=2).plan(FORECAST, resident) == keys((1, 3))


def test_percentile_is_of_the_row_itself_and_widens_at_ties() -> None:
    assert Percentile(75.0).plan(FORECAST, NOTHING) == keys((1, 0))
    assert Percentile(50.0).plan(FORECAST, NOTHING) == keys((1, 0), (1, 3))
    assert Percentile(50.0, horizon=2).plan(FORECAST, NOTHING)[2:] == keys((2, 1), (2, 2), (2, 3))
    assert Percentile(100.0).plan(FORECAST, NOTHING) == keys((1, 0))
    assert Percentile(0.0, width=2).plan(FORECAST, NOTHING) == keys((1, 0), (1, 3))


def test_multi_horizon_ranks_all_layers_by_discounted_probability() -> None:
    planner = MultiHorizon(width=4, horizon=2, decay=0.5, floor=0.2)
    assert planner.plan(FORECAST, NOTHING) == keys((1, 0), (1, 3), (2, 1), (2, 2))  # 0.7 0.6 0.45 0.25
    assert MultiHorizon(width=3, horizon=2, decay=1.0, floor=0.6).plan(FORECAST, NOTHING) == keys(
        (2, 1), (1, 0), (1, 3)
    )
    assert MultiHorizon(width=9, horizon=2, decay=0.5, floor=0.3).plan(FORECAST, NOTHING) == keys(
        (1, 0), (1, 3), (2, 1)
    )
    both = MultiHorizon(width=2, horizon=1, decay=1.0, next_token=True)
    assert both.plan(FORECAST, NOTHING) == keys((0, 1), (1, 0))


def test_multi_horizon_looks_past_residents() -> None:
    resident = NOTHING.copy()
    resident[1, 0] = resident[1, 3] = True
    assert MultiHorizon(width=1, horizon=1, floor=0.1).plan(FORECAST, resident) == keys((1, 2))


@pytest.mark.parametrize(
    ("planner", "bad"),
    [
        (Threshold, {"threshold": 1.5}),
        (Percentile, {"percentile": -1.0}),
        (MultiHorizon, {"decay": 2.0}),
        (MultiHorizon, {"floor": -0.1}),
    ],
)
def test_bad_parameters(planner: Any, bad: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(bad))):
        planner(**bad)
