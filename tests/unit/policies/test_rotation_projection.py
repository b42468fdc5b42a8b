"""Projections, online turns and rings of the rotary family against numpy; what is not a part's to write stays as it was."""

import numpy as np
import pytest

from rgpu.policies.loop import SLOT_OF
from rgpu.policies.rotation import projection, ring
from rgpu.policies.rotation import state as s
from tests.unit.policies.rotation_states import EXPERTS, FIRSTS, KEYS, LAYERS, TURN, WIDTH, alone, block, drawn


@pytest.mark.parametrize("heads", [1, 2, 3])
@pytest.mark.parametrize("first", FIRSTS)
def test_scores_are_products_and_biases_and_their_sum_is_the_projection(heads: int, first: int) -> None:
    rng, m, f = drawn(heads, heads)
    x, old = rng.standard_normal(WIDTH), f.copy()
    s_EF = old[m[s.LIVE, s.SIGNATURE] + first :][:EXPERTS]
    projection.project.py_func(m, f, first, x)
    scores = [block(s.SCORE + s.HEAD_ROWS * h, first) for h in range(heads)]
    for h, score in enumerate(scores):
        part = slice(h * WIDTH // heads, (h + 1) * WIDTH // heads)
        bias = old[s.BIAS + s.HEAD_ROWS * h, first : first + EXPERTS]
        np.testing.assert_allclose(f[score], s_EF[:, part] @ x[part] + bias, rtol=1e-12)
    alone(old, f, *scores)
    old = f.copy()
    projection.sum_heads.py_func(m, f, first)
    np.testing.assert_allclose(f[block(s.PROJECTED, first)], sum(f[score] for score in scores), rtol=1e-12)
    alone(old, f, block(s.PROJECTED, first))


@pytest.mark.parametrize("experts", range(1, EXPERTS))
def test_scores_are_of_as_many_experts_as_there_are(experts: int) -> None:
    rng, m, f = drawn(1, 1)
    m[s.INTS, s.EXPERTS] = experts
    x, old = rng.standard_normal(WIDTH), f.copy()
    projection.project.py_func(m, f, 0, x)
    s_EF = old[m[s.LIVE, s.SIGNATURE] :][:experts]
    np.testing.assert_allclose(f[s.SCORE, :experts], s_EF[:, :WIDTH] @ x + old[s.BIAS, :experts], rtol=1e-12)
    alone(old, f, (s.SCORE, slice(0, experts)))


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("case", ["some", "small", "nearly in line", "none missed", "no input", "in line"])
def test_an_online_turn_is_a_rotation_in_the_plane_of_input_and_misses(heads: int, case: str) -> None:
    rng, m, f = drawn(heads, heads)
    f[s.MORE, s.RATE] = 0.3
    absent = np.flatnonzero(m[SLOT_OF, :KEYS] < 0)
    resident = np.flatnonzero(m[SLOT_OF, :KEYS] >= 0)
    m[SLOT_OF, resident[0]] = 0  # the first slot is a slot like any other
    keys = resident[:2] if case == "none missed" else np.concatenate([absent[:2], resident[:1]])
    signatures = f[m[s.LIVE, s.SIGNATURE] :, :WIDTH]
    if case == "no input":
        f[s.LAST] = 0
    if case == "in line":
        signatures[absent[0]], signatures[absent[1]] = 2 * f[s.LAST, :WIDTH], -0.5 * f[s.LAST, :WIDTH]
    if case == "small":
        signatures *= 1e-8
    if case == "nearly in line":
        signatures[absent[:2]] = f[s.LAST, :WIDTH] + 2e-5 * rng.standard_normal((2, WIDTH))
    old, whole = signatures.copy(), f.copy()
    projection.turn.py_func(m, f, keys, WIDTH)
    expected = old.copy()
    if case in ("some", "small", "nearly in line"):
        for h in range(heads):
            part = slice(h * WIDTH // heads, (h + 1) * WIDTH // heads)
            x = whole[s.LAST, :WIDTH][part] / np.linalg.norm(whole[s.LAST, :WIDTH][part])
            y = old[absent[:2], part].sum(0)
            for _ in range(3):
                y = y - (y @ x) * x
            y /= np.linalg.norm(y)
            turned = np.eye(len(x)) + (np.cos(0.3) - 1) * (np.outer(x, x) + np.outer(y, y))
            turned += np.sin(0.3) * (np.outer(y, x) - np.outer(x, y))
            expected[:, part] = old[:, part] @ turned
    np.testing.assert_allclose(
        signatures, expected, atol=1e-8 if case == "nearly in line" else 1e-12 * np.abs(old).max()
    )
    np.testing.assert_allclose((signatures**2).sum(1), (old**2).sum(1), rtol=1e-13)
    whole[m[s.LIVE, s.SIGNATURE] :, :WIDTH] = signatures
    alone(whole, f, (slice(s.TEMP_A, s.TEMP_B + 1), slice(0, WIDTH)))


@pytest.mark.parametrize("first", FIRSTS)
@pytest.mark.parametrize("standard", [0, 1])
@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("even", [True, False])
def test_a_blend_adds_what_is_standardised_over_the_layer(first: int, standard: int, fresh: bool, even: bool) -> None:
    _, m, f = drawn(1)
    m[s.INTS, s.STANDARD] = standard
    if even:
        f[s.SCRATCH] = 0.75
    old = f.copy()
    projection.blend.py_func(m, f, first, 1, s.SCRATCH, 1.5, fresh)
    part, source = block(s.SCORE + s.HEAD_ROWS, first), old[block(s.SCRATCH, first)]
    if standard:
        source = (source - source.mean()) / (1.0 if even else source.std())
    np.testing.assert_allclose(f[part], 1.5 * source + (0 if fresh else old[part]), atol=1e-12)
    alone(old, f, part)


@pytest.mark.parametrize("first", FIRSTS)
@pytest.mark.parametrize("head", [0, 1])
@pytest.mark.parametrize("cycle", [0, 1, 3])
@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize("direction", [s.BY_SIGN, s.FORWARD, s.REVERSE])
def test_a_ring_is_read_at_the_input_s_angle(first: int, head: int, cycle: int, ahead: int, direction: int) -> None:
    rng, m, f = drawn(head)
    m[s.LIVE, s.CYCLE_NOW], m[s.INTS, s.AHEAD], m[s.INTS, s.DIRECTION] = cycle, ahead, direction
    m[s.RANK : s.RANK + 2, :KEYS] = np.tile(rng.permutation(EXPERTS), LAYERS)
    m[s.RANK + 1, :KEYS] = np.tile(rng.permutation(EXPERTS), LAYERS)
    at, part = first + head, block(s.SCRATCH, first)
    rows = [f[block(row + s.HEAD_ROWS * head, first)] for row in (s.SCORE, s.AXIS_X, s.AXIS_Y)]
    x, y = rows[1] @ rows[0] - f[s.CENTRE_X, at], rows[2] @ rows[0] - f[s.CENTRE_Y, at]
    assert ring.phase_of.py_func(m, f, first, head) == pytest.approx(np.arctan2(y, x), abs=1e-12)
    for theta, before in ((0.4, -0.3), (-2.9, 2.8), (2.9, -2.9), (1.1, 1.9), (-1.0, -1.0)):
        f[s.THETA, at] = before
        old = f.copy()
        ring.by_phase.py_func(m, f, first, head, theta)
        moved = np.angle(np.exp(1j * (theta - before)))
        way = direction or (1 if moved > -1e-12 else -1)
        start = theta if cycle == 0 else np.round(theta / (TURN / cycle)) * TURN / cycle
        apart = old[block(s.ANGLE + s.HEAD_ROWS * head, first)] - start
        wanted = 1 - np.mod(way * apart, TURN) / np.pi if ahead else np.cos(apart)
        np.testing.assert_allclose(f[part], wanted, atol=1e-12)
        alone(old, f, part)
        for limit in (0, 1, 9):
            old, book = f.copy(), m.copy()
            ring.by_shift.py_func(m, f, first, head, theta, limit)
            places = int(np.round(theta / TURN * EXPERTS))
            way = direction or (-1 if places < 0 else 1)
            place = (book[s.PLACE, at] + way * min(abs(places), limit)) % EXPERTS
            start = place if cycle == 0 else (place * cycle // EXPERTS) * EXPERTS // cycle
            offset = (m[block(s.RANK + head, first)] - start) % EXPERTS
            wanted = 1 - 2 * offset / EXPERTS if ahead else np.cos(TURN * offset / EXPERTS)
            assert m[s.PLACE, at] == place
            np.testing.assert_allclose(f[part], wanted, atol=1e-12)
            alone(old, f, part)
            alone(book, m, (s.PLACE, at))


@pytest.mark.parametrize("scale", [1.0, 1e-13])
@pytest.mark.parametrize("width", [1, 2, 5])
def test_the_plane_is_that_of_the_two_largest_components(width: int, scale: float) -> None:
    rows = np.random.default_rng(width).standard_normal((EXPERTS, width)) * (1 + np.arange(width)) * scale
    centred = rows - rows.mean(0)
    largest = np.linalg.eigh(centred.T @ centred / scale**2)[1][:, ::-1].T[:2]
    coefficients, axes, angle_E = ring.plane(rows)
    assert coefficients.shape == (2, EXPERTS) and axes.shape == (2, width)
    for i, v in enumerate(largest):
        np.testing.assert_allclose(axes[i], v * np.sign(v[np.abs(v).argmax()]), atol=1e-9)
    np.testing.assert_allclose(coefficients @ rows, axes, atol=1e-9)
    np.testing.assert_allclose(angle_E, np.arctan2(axes[1] @ centred.T, axes[0] @ centred.T), atol=1e-12)
    line = ring.plane(np.outer(np.arange(EXPERTS), np.arange(1, 4)) * scale)
    assert line[1][0].all() and not line[1][1].any() and not line[0][1].any()
    for part in ring.plane(np.ones((EXPERTS, 3))):
        assert not part.any()


def test_a_ring_is_in_order_of_angle_or_id_or_at_random() -> None:
    angle = np.array([0.1, -0.1, 3.0, -3.0, 0.2])  # round from 0: 0, 4, 2, 3, 1
    assert ring.ring(angle, "phase", np.random.default_rng(0)).tolist() == [0, 4, 2, 3, 1]
    assert ring.ring(angle, "id", np.random.default_rng(0)).tolist() == [0, 1, 2, 3, 4]
    sequence = np.random.default_rng(0).permutation(5)
    assert ring.ring(angle, "random", np.random.default_rng(0))[sequence].tolist() == [0, 1, 2, 3, 4]
