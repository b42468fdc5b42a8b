import numpy as np
import pytest

from rgpu.contracts import Forecast
from rgpu.errors import InputError
from rgpu.planning.adaptive_width import AdaptiveWidth
from rgpu.types import RoutingEvent

NOTHING = np.zeros((2, 8), bool)
FORECAST = Forecast(np.array([1, 0]), np.array([0, 1]), np.linspace(0.9, 0.1, 16, dtype=np.float32).reshape(2, 8))


def routed(*experts: int, layer: int = 1) -> RoutingEvent:
    return RoutingEvent(layer, 0, np.array([experts], np.int16))


def test_width_grows_while_loads_are_used_and_shrinks_while_they_are_not() -> None:
    planner = AdaptiveWidth(width=4, start=2, rate=0.5)
    for expected in (2, 3, 4, 4):
        loads = planner.plan(FORECAST, NOTHING)
        assert [(k.layer, k.expert) for k in loads] == [(1, e) for e in range(expected)]
        planner.observe(routed(0, 1, 2, 3))
    for _ in range(8):
        planner.plan(FORECAST, NOTHING)
        planner.observe(routed(7))
    assert planner.widths == {1: 1}


def test_only_the_layers_own_event_counts_and_only_loads_that_were_made() -> None:
    planner = AdaptiveWidth(width=4, start=2, rate=1.0)
    planner.plan(FORECAST, NOTHING)
    planner.observe(routed(0, 1, layer=0))
    assert planner.widths == {}
    planner.observe(routed(0, 1))
    assert planner.widths == {1: 3}
    resident = NOTHING.copy()
    resident[1] = True
    assert planner.plan(FORECAST, resident) == []
    planner.observe(routed(7))  # nothing was loaded: nothing is learnt
    assert planner.widths == {1: 3}


def test_within_the_band_the_width_stays() -> None:
    planner = AdaptiveWidth(width=4, start=2, rate=1.0)
    planner.plan(FORECAST, NOTHING)
    planner.observe(routed(0, 7))
    assert planner.widths == {1: 2}


@pytest.mark.parametrize("bad", [{"start": 9}, {"low": 0.9}, {"rate": 2.0}, {"high": 1.5}])
def test_bad_parameters(bad: dict[str, float]) -> None:
    with pytest.raises(InputError, match="planner adaptive_width"):
        AdaptiveWidth(**bad)
