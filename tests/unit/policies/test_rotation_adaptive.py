"""Controls of the rotary family: how they follow signals, their bounds, and steps of less than a slot."""

import numpy as np
import pytest

from rgpu.policies.rotation import adaptive, trajectory
from rgpu.policies.rotation import state as s
from tests.unit.policies.rotation_states import EXPERTS, FIRSTS, WIDTH, alone, drawn


@pytest.mark.parametrize("first", FIRSTS)
@pytest.mark.parametrize("seed", range(30))
def test_controls_follow_signals_in_the_order_they_are_named(first: int, seed: int) -> None:
    rng, m, f = drawn(seed)
    step, high, low, surge, far, near = 2.0, 3.5, 1.0, 0.75, 1.2, 0.9
    f[s.NUMBERS, [s.STEP, s.STEP_HIGH, s.STEP_LOW, s.STEP_SURGE]] = step, high, low, surge
    f[s.NUMBERS, [s.DISTANCE_HIGH, s.DISTANCE_LOW]] = far, near
    f[s.NUMBERS, [s.ENTROPY_SURGE, s.HIT_RATE_HIGH, s.HIT_RATE_SCALE]] = 1.5, 0.5, 0.25
    f[s.MORE, [s.CYCLE_ENTROPY, s.KL, s.SHORT_WINDOW, s.LONG_WINDOW]] = 0.25, 0.1, 8, 32
    hit_rate = float(rng.choice([0.25, 0.5, 0.75]))
    entropy, usual = float(rng.choice([0.5, 0.75, 1.0, 1.25])), float(rng.choice([0.5, 0.75, 1.0]))
    f[s.NOW, [s.HIT_RATE, s.ENTROPY, s.USUAL_ENTROPY, s.STEP_NOW]] = hit_rate, entropy, usual, -7
    bits, cycle, missed = seed % 8, int(rng.integers(0, 3)), int(rng.integers(0, 4))
    m[s.INTS, s.ADAPTIVE], m[s.LIVE, s.CYCLE], m[s.LIVE, s.WINDOW] = bits, cycle, 5
    m[s.INTS, s.STORM], m[s.MISSES, first] = 2, missed
    m[s.INTS, s.TRANSFORMS] = s.TRAJECTORIES if rng.random() < 0.7 else s.PROJECTION
    f[[s.LATELY, s.LONGER]] = np.abs(f[[s.LATELY, s.LONGER]])
    if rng.random() < 0.5:
        f[s.LONGER] = f[s.LATELY]
    x = rng.standard_normal(WIDTH)
    if seed % 3 == 0:
        x = f[s.LAST, :WIDTH].copy()
    away = 1 - x @ f[s.LAST, :WIDTH] / np.linalg.norm(x) / np.linalg.norm(f[s.LAST, :WIDTH])
    apart = trajectory.divergence.py_func(m, f, first)
    if bits & s.STEP_BIT:
        step = high if away >= far else low if away <= near else step
        step += surge if entropy > 1.5 * usual else 0
        step = max(step, high) if missed >= 2 else step
        step *= 0.25 if hit_rate >= 0.5 else 1
    now = cycle
    if bits & s.CYCLE_BIT and cycle:
        now = cycle + 1 if entropy - usual > 0.25 else max(1, cycle - 1) if usual - entropy > 0.25 else cycle
    by_window = bits & s.WINDOW_BIT and m[s.INTS, s.TRANSFORMS] == s.TRAJECTORIES
    old, book = f.copy(), m.copy()
    adaptive.adapt.py_func(m, f, first, x)
    assert f[s.NOW, s.STEP_NOW] == pytest.approx(step)
    assert (m[s.LIVE, s.CYCLE_NOW], m[s.LIVE, s.WINDOW]) == (now, (8 if apart >= 0.1 else 32) if by_window else 5)
    if bits & s.STEP_BIT:
        assert f[s.NOW, s.DISTANCE] == pytest.approx(away, abs=1e-12)
    if by_window:
        assert f[s.NOW, s.DIVERGENCE] == pytest.approx(apart, abs=1e-12)
    alone(old, f, (s.NOW, [s.STEP_NOW, s.DISTANCE, s.DIVERGENCE]))
    alone(book, m, (s.LIVE, [s.CYCLE_NOW, s.WINDOW]))


def test_bounds_of_the_controls_belong_to_them() -> None:
    _, m, f = drawn(1)
    f[s.NUMBERS], f[s.MORE], f[s.NOW] = 0, 0, 0
    f[s.NUMBERS, [s.STEP, s.STEP_HIGH, s.STEP_LOW, s.HIT_RATE_HIGH]] = 2, 3, 1, 9
    f[s.NUMBERS, [s.DISTANCE_HIGH, s.DISTANCE_LOW]] = 1.0, 0.0
    f[s.LAST, :2] = 1, 0
    m[s.INTS, [s.ADAPTIVE, s.TRANSFORMS]] = 7, s.TRAJECTORIES
    f[s.MORE, [s.CYCLE_ENTROPY, s.SHORT_WINDOW, s.LONG_WINDOW]] = 0.25, 8, 32
    f[[s.LATELY, s.LONGER]] = 1.0  # no divergence at all, which is the bound
    for x, entropy, cycle, step, wanted in (
        ((0.0, 2.0), 0.25, 3, 3, 3), ((2.0, 0.0), 0.75, 3, 1, 3), ((1.0, 1.0), 0.125, 2, 2, 1), ((0.0, 1.0), 1.0, 2, 3, 3),
        ((0.0, 1.0), 0.125, 1, 3, 1), ((0.0, 1.0), 0.125, 4, 3, 3),
    ):  # fmt: skip
        f[s.NOW, [s.ENTROPY, s.USUAL_ENTROPY]], m[s.LIVE, s.CYCLE] = (entropy, 0.5), cycle
        f[s.NUMBERS, s.ENTROPY_SURGE] = 9
        adaptive.adapt.py_func(m, f, 0, np.array(x))
        assert f[s.NOW, s.STEP_NOW] == step
        assert (m[s.LIVE, s.CYCLE_NOW], m[s.LIVE, s.WINDOW]) == (wanted, 8)


@pytest.mark.parametrize(("entropy", "step", "cycle"), [(0.75, 2, 1), (0.7500001, 2.5, 2)])
def test_a_surge_is_more_than_its_bound_and_a_cycle_of_one_grows(entropy: float, step: float, cycle: int) -> None:
    _, m, f = drawn(1)
    f[s.NUMBERS], f[s.MORE], f[s.NOW] = 0, 0, 0
    f[s.NUMBERS, [s.STEP, s.STEP_SURGE, s.ENTROPY_SURGE, s.HIT_RATE_HIGH, s.DISTANCE_HIGH, s.DISTANCE_LOW]] = (
        2,
        0.5,
        1.5,
        9,
        9,
        -1,
    )
    f[s.MORE, s.CYCLE_ENTROPY] = 0.25
    f[s.NOW, [s.ENTROPY, s.USUAL_ENTROPY]] = entropy, 0.5
    m[s.INTS, s.ADAPTIVE], m[s.LIVE, s.CYCLE] = s.STEP_BIT | s.CYCLE_BIT, 1
    m[s.INTS, s.STORM], m[s.MISSES, 0] = 9, 0
    adaptive.adapt.py_func(m, f, 0, np.ones(WIDTH))
    assert (f[s.NOW, s.STEP_NOW], m[s.LIVE, s.CYCLE_NOW]) == (step, cycle)


def test_steps_under_one_slot_are_saved_up() -> None:
    _, m, f = drawn(7)
    f[s.PARTIAL] = 0
    f[s.NOW, s.STEP_NOW] = 0.75
    assert [adaptive.allowance.py_func(m, f, EXPERTS) for _ in range(8)] == [0, 1, 1, 1, 0, 1, 1, 1]
    assert f[s.PARTIAL, 0] == 0
    f[s.NOW, s.STEP_NOW] = 2.5
    assert [adaptive.allowance.py_func(m, f, 0) for _ in range(2)] == [2, 3]
    f[s.NOW, s.STEP_NOW] = 0
    assert adaptive.allowance.py_func(m, f, 0) == 0
    f[s.NOW, s.STEP_NOW] = -1
    assert adaptive.allowance.py_func(m, f, 0) == EXPERTS
