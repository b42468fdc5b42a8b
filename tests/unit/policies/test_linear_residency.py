"""The linear control: it finds a linear rule, keeps to its step; and the lagged router's step limit."""

from typing import Any

import numpy as np
import pytest

from rgpu.errors import InputError
from rgpu.policies.linear_residency import LinearResidency, fitted, ridge_map
from rgpu.policies.loop import CAP, REG
from rgpu.policies.rotation import state as s
from rgpu.policies.router_lag import RouterLag
from rgpu.replay.pool import PoolConfig, initial_state, lay_out
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


@pytest.mark.parametrize("noise", [0.0, 0.3, 1.0, 3.0, 1e3])
@pytest.mark.parametrize("seed", range(6))
def test_ridge_s_error_is_that_of_leaving_each_row_out(seed: int, noise: float) -> None:
    rng, n = np.random.default_rng(seed), 8 + seed
    x = rng.standard_normal((n, 3)) * (1, 2, 0.5) + 1
    y = x @ rng.standard_normal((2, 3)).T + noise * rng.standard_normal((n, 2)) + 2
    scale = float(((x - x.mean(0)) ** 2).sum()) / 3

    def solved(x: Any, y: Any, part: float) -> Any:
        centred = x - x.mean(0)
        w = np.linalg.solve(centred.T @ centred + part * scale * np.eye(3), centred.T @ (y - y.mean(0)))
        return w.T, y.mean(0) - x.mean(0) @ w

    def left_out(part: float) -> float:
        total = 0.0
        for i in range(n):
            w, bias = solved(np.delete(x, i, 0), np.delete(y, i, 0), part)
            total += float(((y[i] - bias - w @ x[i]) ** 2).sum())
        return total

    best = min((10.0 ** (i / 2) for i in range(-8, 7)), key=left_out)
    for strength, part in ((None, best), (0.7, 0.7)):
        for ours, slow in zip(ridge_map(x, y, strength), solved(x, y, part), strict=True):
            np.testing.assert_allclose(ours, slow, rtol=1e-9, atol=1e-12)


def test_ridge_without_pairs_or_without_a_difference_predicts_the_mean() -> None:
    none = ridge_map(np.zeros((0, 5)), np.zeros((0, 3)), None)
    assert none[0].shape == (3, 5) and none[1].shape == (3,) and not none[0].any() and not none[1].any()
    wide, y = np.zeros((2, 10_000)), np.array([[1.0], [0.0]])
    wide[0, 0] = 1  # two rows explain themselves, so all but the least penalty looks worse
    np.testing.assert_allclose(ridge_map(wide, y, None)[0], ridge_map(wide, y, 1e-4)[0])
    rng = np.random.default_rng(0)  # so do four, although of noise the mean foretells more
    wide, y = np.pad(rng.standard_normal((4, 3)), ((0, 0), (0, 9_997))), rng.standard_normal((4, 1))
    np.testing.assert_allclose(ridge_map(wide, y, None)[0], ridge_map(wide, y, 1e-4)[0])
    flat = ridge_map(np.ones((4, 5)), np.arange(12.0).reshape(4, 3), None)
    assert not flat[0].any() and flat[1].tolist() == [4.5, 5.5, 6.5]


def test_every_layer_s_map_and_bias_and_the_first_fill_are_in_the_state() -> None:
    trace, policy, pool = routed_trace(1, tokens=60, layers=3), LinearResidency(ridge=0.5), PoolConfig("global", 12)
    m, f, _ = initial_state(lay_out(pool, policy, trace.shape), policy, trace.shape, "hidden", 5, trace, 0)
    row = int(m[0, s.LIVE, s.SIGNATURE])
    for layer in range(3):
        map_EF, bias_E = fitted(trace, layer, "hidden", 0.5)
        assert (f[0, row + 8 * layer : row + 8 * layer + 8, :5] == map_EF).all()
        assert (f[0, s.BIAS, 8 * layer : 8 * layer + 8] == bias_E).all()
        assert map_EF.any() and bias_E.any()
    assert (m[0, s.OWNER, :24] >= 0).sum() == m[0, REG, CAP]


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
