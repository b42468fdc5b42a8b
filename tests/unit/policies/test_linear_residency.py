"""The linear control: it finds a linear rule, keeps to its step; and the lagged router's step limit."""

from typing import Any

import numpy as np
import pytest

from rgpu.errors import InputError
from rgpu.policies.linear_residency import LinearResidency, ridge_map
from rgpu.policies.router_lag import RouterLag
from rgpu.replay.pool import PoolConfig
from tests.support import routed_trace
from tests.unit.policies.rotating import Watched


@pytest.mark.parametrize("strength", [None, 1e-6])
def test_ridge_recovers_a_linear_rule(strength: float | None) -> None:
    rng = np.random.default_rng(0)
    x, true, bias = rng.standard_normal((200, 6)) + 1.0, rng.standard_normal((4, 6)), rng.standard_normal(4)
    found, offset = ridge_map(x, x @ true.T + bias, strength)
    assert np.abs(found - true).max() < 1e-3
    assert np.abs(offset - bias).max() < 1e-2


def test_the_chosen_strength_guards_against_noise() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((40, 30)), rng.standard_normal((40, 3))
    assert np.abs(ridge_map(x, y, None)[0]).max() < 0.3 * np.abs(ridge_map(x, y, 1e-6)[0]).max()
    assert not ridge_map(x[:0], y[:0], None)[0].any()


def test_ridge_s_error_is_that_of_leaving_each_row_out() -> None:
    rng = np.random.default_rng(2)
    x = rng.standard_normal((25, 3))
    y = x @ rng.standard_normal((2, 3)).T + 0.5 * rng.standard_normal((25, 2))
    strengths = [10.0 ** (i / 2) for i in range(-8, 7)]

    def left_out(part: float) -> float:
        scale = float(((x - x.mean(0)) ** 2).sum()) / 3
        total = 0.0
        for i in range(25):
            rest = np.arange(25) != i
            mean, own = x[rest].mean(0), y[rest].mean(0)
            centred = x[rest] - mean
            w = np.linalg.solve(centred.T @ centred + part * scale * np.eye(3), centred.T @ (y[rest] - own))
            total += float(((y[i] - own - (x[i] - mean) @ w) ** 2).sum())
        return total

    best = min(strengths, key=left_out)
    found, slow = ridge_map(x, y, None)[0], ridge_map(x, y, best)[0]
    assert np.abs(found - slow).max() < 0.05


def test_it_foresees_routing_that_a_linear_map_foresees() -> None:
    rng = np.random.default_rng(3)
    train, test = routed_trace(1, tokens=400, layers=1, sequences=1), routed_trace(2, tokens=200, layers=1, sequences=1)
    rows = rng.standard_normal((8, 5))
    for trace in (train, test):
        assert trace.hidden is not None
        top = np.argsort(-(trace.hidden[:, 0].astype(float) @ rows.T), axis=1)[:, :2]
        trace.expert_ids[1:, 0] = top[:-1]
    watched = Watched(LinearResidency(step=None), test, PoolConfig(slots=4), calibration=train)
    assert watched.controller.hits / watched.controller.accesses > 0.75


@pytest.mark.parametrize("policy", [LinearResidency(step=1), LinearResidency(step=2), RouterLag(step=1)], ids=str)
def test_steps_are_kept(policy: Any) -> None:
    watched = Watched(policy, routed_trace(1, tokens=80, sequences=1), PoolConfig(slots=4))
    moved = [sum(layers.values()) for _, _, layers in watched.loads]
    assert max(moved) == policy.step


def test_the_lagged_router_without_a_step_moves_as_it_likes() -> None:
    watched = Watched(RouterLag(), routed_trace(1, tokens=80, sequences=1), PoolConfig(slots=5))
    assert max(sum(layers.values()) for _, _, layers in watched.loads) > 2


@pytest.mark.parametrize(
    "build", [lambda: LinearResidency(step=0), lambda: LinearResidency(ridge=0.0), lambda: RouterLag(step=0)]
)
def test_bad_values_are_refused(build: Any) -> None:
    with pytest.raises(InputError, match=r"policy\.(step|ridge): got "):
        build()
