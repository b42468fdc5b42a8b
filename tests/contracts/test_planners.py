"""Every planner that has a config: legal loads, no duplicates, never a resident, the same again, nothing for nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra.utils import get_object
from omegaconf import OmegaConf

import rgpu.conf
from rgpu.contracts import Forecast
from rgpu.errors import InputError
from rgpu.types import ExpertKey, RoutingEvent

FOLDER = Path(rgpu.conf.__file__).parent / "planner"
NAMES = sorted(p.stem for p in FOLDER.glob("*.yaml"))
LAYERS, EXPERTS, TOP_K, HORIZON = 6, 12, 3, 4
pytestmark = pytest.mark.parametrize("name", NAMES)


def make(name: str, **overrides: Any) -> Any:
    cfg = dict(OmegaConf.load(FOLDER / f"{name}.yaml"))
    return get_object(cfg.pop("_target_"))(**(cfg | overrides))


def stream(seed: int, passes: int = 12) -> list[tuple[RoutingEvent, Forecast, np.ndarray]]:
    """Events in order, each with a forecast made after it and what is resident then."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(passes):
        for layer in range(LAYERS):
            later = list(range(layer + 1, min(LAYERS, layer + 1 + HORIZON)))
            probs = rng.integers(0, 9, (len(later) + 1, EXPERTS)).astype(np.float32) / 8
            forecast = Forecast(np.array([*later, layer]), np.array([0] * len(later) + [1]), probs)
            ids = rng.permutation(EXPERTS)[:TOP_K].astype(np.int16)[None]
            made.append((RoutingEvent(layer, number, ids), forecast, rng.random((LAYERS, EXPERTS)) < 0.3))
    return made


def plans(planner: Any, seed: int) -> list[list[ExpertKey]]:
    found = []
    for event, forecast, resident in stream(seed):
        if hasattr(planner, "observe"):
            planner.observe(event)
        found.append(planner.plan(forecast, resident))
    return found


@pytest.mark.parametrize("next_token", [False, True])
def test_loads_are_legal_and_bounded(name: str, next_token: bool) -> None:
    planner, most = make(name, next_token=next_token), 0
    for loads, (event, forecast, resident) in zip(plans(planner, 1), stream(1), strict=True):
        rows = {(int(a), int(t)): p for a, t, p in zip(*_columns(forecast), strict=True)}
        assert all(type(k) is ExpertKey and type(k.layer) is int and type(k.expert) is int for k in loads)
        assert len(set(loads)) == len(loads)
        assert not any(resident[k.layer, k.expert] for k in loads)
        near = range(event.layer + 1, min(LAYERS, event.layer + 1 + planner.horizon))
        assert {k.layer for k in loads} <= set(near) | ({event.layer} if next_token else set())
        assert all(rows[k.layer, int(k.layer == event.layer)][k.expert] > 0 for k in loads)
        for layer in {k.layer for k in loads}:
            assert sum(k.layer == layer for k in loads) <= planner.width
        most = max(most, len(loads))
    assert most > 0


def test_same_calls_same_loads_and_arguments_are_left_alone(name: str) -> None:
    assert plans(make(name), 2) == plans(make(name), 2)
    (_, forecast, resident), planner = stream(3)[0], make(name)
    before = (forecast.layers.copy(), forecast.tokens_ahead.copy(), forecast.probs_HE.copy(), resident.copy())
    planner.plan(forecast, resident)
    after = (forecast.layers, forecast.tokens_ahead, forecast.probs_HE, resident)
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_nothing_for_an_empty_or_impossible_forecast_or_where_all_is_resident(name: str) -> None:
    nothing = np.zeros((LAYERS, EXPERTS), bool)
    none, layers = np.zeros(0, np.int64), np.array([1, 0])
    assert make(name).plan(Forecast(none, none, np.zeros((0, EXPERTS), np.float32)), nothing) == []
    impossible = Forecast(layers, np.array([0, 1]), np.zeros((2, EXPERTS), np.float32))
    assert make(name, next_token=True).plan(impossible, nothing) == []
    certain = Forecast(layers, np.array([0, 1]), np.ones((2, EXPERTS), np.float32))
    assert make(name, next_token=True).plan(certain, ~nothing) == []
    assert make(name, horizon=0).plan(certain, nothing) == []


@pytest.mark.parametrize("bad", [{"width": 0}, {"horizon": -1}])
def test_bad_parameters_are_one_line(name: str, bad: dict[str, int]) -> None:
    with pytest.raises(InputError, match=f"planner {name}: got {next(iter(bad))}") as raised:
        make(name, **bad)
    assert "\n" not in str(raised.value)


def test_it_is_documented_with_a_source(name: str) -> None:
    planner = make(name)
    module = __import__(type(planner).__module__, fromlist=["x"])
    assert "Source:" in (module.__doc__ or "") and type(planner).__doc__


def _columns(forecast: Forecast) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return forecast.layers, forecast.tokens_ahead, forecast.probs_HE
