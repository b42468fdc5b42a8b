"""The parts of the rotary family, each against numpy on a drawn state; what is not a part's to write stays as it was."""

from typing import Any

import numpy as np
import pytest

from rgpu.policies import rotary_hybrid
from rgpu.policies.loop import CAP, EVENT, KEY_OF, PIN, REG, SLOT_OF, USED, WANT, WAVE, make_state
from rgpu.policies.rotation import adaptive, decide, memory, projection, ring, slots, spaces, trajectory
from rgpu.policies.rotation import state as s
from rgpu.replay.pool import PoolConfig, initial_state, lay_out
from tests.unit.policies.rotating import toy

LAYERS, EXPERTS, WIDTH, DEPTH, SLOTS = 2, 9, 5, 3, 9
KEYS, TURN = LAYERS * EXPERTS, 2 * np.pi
FIRSTS = (0, EXPERTS)


def drawn(seed: int, heads: int = 2) -> tuple[np.random.Generator, Any, Any]:
    """(generator, m, f): noise in every row of f, the blocks one after another, residents in shuffled slots."""
    rng = np.random.default_rng(seed)
    rows = s.frows(heads, DEPTH, True, False)
    state, floats = make_state(1, KEYS, [SLOTS], rows=s.rows(DEPTH, False), frows=rows + KEYS)
    m, f = state[0], floats[0]
    f[:] = rng.standard_normal(f.shape)
    m[s.INTS, [s.EXPERTS, s.KEYS, s.HEADS, s.DEPTH]] = EXPERTS, KEYS, heads, DEPTH
    m[s.LIVE, s.BUFFER] = s.recalled_row(heads) + DEPTH
    m[s.LIVE, s.TRAJECTORY] = m[s.LIVE, s.BUFFER] + s.BUFFER_LENGTH
    m[s.LIVE, s.SIGNATURE] = rows
    at = rng.permutation(SLOTS)[: SLOTS - seed % 4 % 3]
    keys = rng.permutation(KEYS)[: len(at)]
    m[KEY_OF, at], m[SLOT_OF, keys], m[REG, USED], m[REG, WAVE] = keys, at, len(at), 4
    m[PIN, :KEYS] = rng.choice([3, 4], KEYS, p=(0.7, 0.3))
    m[s.OWNER, :KEYS] = rng.integers(0, heads, KEYS)
    m[s.MARK, :KEYS] = rng.choice([0, 8, 9], KEYS, p=(0.4, 0.4, 0.2))
    return rng, m, f


def block(row: int, first: int) -> tuple[int, slice]:
    return row, slice(first, first + EXPERTS)


def alone(before: Any, after: Any, *parts: Any) -> None:
    """Nothing but those parts changed."""
    before = before.copy()
    for part in parts:
        before[part] = after[part]
    assert np.array_equal(before, after)


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


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("case", ["some", "small", "nearly in line", "none missed", "no input", "in line"])
def test_an_online_turn_is_a_rotation_in_the_plane_of_input_and_misses(heads: int, case: str) -> None:
    rng, m, f = drawn(heads, heads)
    f[s.MORE, s.RATE] = 0.3
    absent = np.flatnonzero(m[SLOT_OF, :KEYS] < 0)
    resident = np.flatnonzero(m[SLOT_OF, :KEYS] >= 0)
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


@pytest.mark.parametrize("first", FIRSTS)
def test_the_routing_buffer_keeps_the_last_events_and_their_sums(first: int) -> None:
    rng, m, f = drawn(3)
    buffer = m[s.LIVE, s.BUFFER]
    f[buffer : buffer + s.BUFFER_LENGTH] = f[s.LATELY] = f[s.LONGER] = 0
    history: list[np.ndarray] = []
    for event in range(90):
        keys = first + rng.permutation(EXPERTS)[: 1 + event % 3]
        weights = np.zeros(len(keys)) if event % 7 == 0 else rng.random(len(keys)) / 2
        book, old, vector = m.copy(), f.copy(), np.zeros(EXPERTS)
        vector[keys - first] = weights / weights.sum() if weights.sum() > 0 else 1 / len(keys)
        history.append(vector)
        trajectory.remember.py_func(m, f, first, keys, weights)
        sums = [sum(history[-n:]) for n in (s.SHORT, s.BUFFER_LENGTH)]
        np.testing.assert_allclose(f[block(s.LATELY, first)], sums[0], atol=1e-12)
        np.testing.assert_allclose(f[block(s.LONGER, first)], sums[1], atol=1e-12)
        row = block(buffer + event % s.BUFFER_LENGTH, first)
        np.testing.assert_allclose(f[row], vector, rtol=1e-12)
        alone(old, f, block(s.LATELY, first), block(s.LONGER, first), row)
        alone(book, m, (s.COUNT, first))
        assert m[s.COUNT, first] == event + 1
        f[s.LATELY, first] -= 1e-3 * (event == 89)  # what rounding can leave is no mass
        p, q = (0.999 * np.maximum(0, f[block(r, first)]) for r in (s.LATELY, s.LONGER))
        p, q = 0.999 * p / p.sum() + 0.001 / EXPERTS, 0.999 * q / q.sum() + 0.001 / EXPERTS
        assert trajectory.divergence.py_func(m, f, first) == pytest.approx((p * np.log(p / q)).sum(), abs=1e-12)
        f[[s.LATELY, s.LONGER]] /= 128
        assert trajectory.divergence.py_func(m, f, first) == pytest.approx((p * np.log(p / q)).sum(), abs=1e-12)
        f[[s.LATELY, s.LONGER]] *= 128
        for pooling, window in ((0, 1), (0, 20), (1, 4), (1, 30)):
            m[s.INTS, s.POOLING], m[s.LIVE, s.WINDOW] = pooling, window
            age = np.arange(len(history))[::-1]
            near = (1 - 1 / window) ** age * (age < s.BUFFER_LENGTH) if pooling else 1.0 * (age < window)
            pooled = near @ np.array(history) / near.sum()
            trajectory.by_trajectory.py_func(m, f, first)
            per = f.shape[1] // EXPERTS
            rows = [(m[s.LIVE, s.TRAJECTORY] + e // per, e % per * EXPERTS) for e in range(first, first + EXPERTS)]
            wanted = [f[r, c : c + EXPERTS] @ pooled for r, c in rows]
            np.testing.assert_allclose(f[block(s.SCRATCH, first)], wanted, atol=1e-9)
    for sums_row in (s.LATELY, s.LONGER):
        old = f.copy()
        f[sums_row] = -1.0
        assert trajectory.divergence.py_func(m, f, first) == 0.0
        f[:] = old
    m[s.COUNT, first] = 0
    trajectory.by_trajectory.py_func(m, f, first)
    assert (f[block(s.SCRATCH, first)] == 0).all()


@pytest.mark.parametrize("first", FIRSTS)
def test_contexts_are_told_by_their_projection_and_kept_in_turn(first: int) -> None:
    rng, m, f = drawn(2)
    stored = s.recalled_row(2)
    f[stored : stored + DEPTH] = 0
    f[s.NUMBERS, s.TAU] = 0.8
    basis = np.eye(EXPERTS)
    contexts: list[int] = [-1] * DEPTH
    turn, here = 0, -1
    for which in (0, 0, 1, 0, 2, 3, 1, 0, 3, 2, 2, 4, 5, 4, 0):
        f[block(s.PROJECTED, first)] = (0.02 + which / 100) * basis[which] + 0.001 * rng.standard_normal(EXPERTS)
        m[s.MEMORY : s.MEMORY + 2 * DEPTH, :KEYS] = 7
        old, book = f.copy(), m.copy()
        back = memory.recall.py_func(m, f, first)
        if which in contexts:
            entry = contexts.index(which)
            assert back == (s.MEMORY + 2 * entry if entry != here else -1)
            alone(old, f)
            alone(book, m, (s.ENTRY, first))
        else:
            entry, turn = turn, (turn + 1) % DEPTH
            contexts[entry] = which
            assert back == -1
            assert (f[block(stored + entry, first)] == f[block(s.PROJECTED, first)]).all()
            assert (m[block(s.MEMORY + 2 * entry, first)] == 0).all()
            alone(old, f, block(stored + entry, first))
            alone(book, m, (s.ENTRY, first), (s.OLDEST, first), block(s.MEMORY + 2 * entry, first))
        assert m[s.ENTRY, first] == entry + 1 and m[s.OLDEST, first] == turn
        here = entry
    f[block(s.PROJECTED, first)] = 0
    assert memory.recall.py_func(m, f, first) == -1 and m[s.OLDEST, first] == (turn + 1) % DEPTH


def test_of_contexts_alike_the_closest_and_then_the_last_is_meant() -> None:
    _, m, f = drawn(2)
    stored = s.recalled_row(2)
    f[block(s.PROJECTED, 0)], f[s.NUMBERS, s.TAU] = np.ones(EXPERTS), 0.5
    for rows, found in (((1, 1, 0), 1), ((1, 0.9, 0), 0), ((0, 1, 1), 2), ((0, -1, 0.5), 2)):
        for entry, like in enumerate(rows):
            f[block(stored + entry, 0)] = like * np.ones(EXPERTS) if like in (0, 1, -1) else [0.2] + [1] * (EXPERTS - 1)
        m[s.ENTRY, 0] = 0
        assert memory.recall.py_func(m, f, 0) == s.MEMORY + 2 * found


@pytest.mark.parametrize("first", FIRSTS)
def test_a_context_s_set_is_saved_by_head_and_favoured_above_all(first: int) -> None:
    rng, m, f = drawn(4)
    m[s.PLACE, :KEYS] = rng.integers(1, 6, KEYS)
    book = m.copy()
    memory.save.py_func(m, first)
    alone(book, m)  # no context yet
    for entry in range(DEPTH):
        m[s.ENTRY, first] = entry + 1
        m[s.PLACE, :KEYS] = rng.integers(1, 90, KEYS)
        book = m.copy()
        memory.save.py_func(m, first)
        row, keys = s.MEMORY + 2 * entry, range(first, first + EXPERTS)
        held = [m[s.OWNER, k] + 1 if m[SLOT_OF, k] >= 0 else 0 for k in keys]
        assert m[block(row, first)].tolist() == held
        assert m[row + 1, first : first + 2].tolist() == m[s.PLACE, first : first + 2].tolist()
        alone(book, m, block(row, first), (row + 1, slice(first, first + 2)))
    m[s.PLACE] = 0
    old = f.copy()
    memory.favour.py_func(m, f, first, row)
    for h in range(2):
        part = block(s.SCORE + s.HEAD_ROWS * h, first)
        lift = old[part].max() - old[part].min() + 1000
        np.testing.assert_allclose(f[part], old[part] + lift * (np.array(held) == h + 1), rtol=1e-12)
        assert m[s.PLACE, first + h] == m[row + 1, first + h]
    assert (m[s.PLACE] > 0).sum() == 2
    alone(old, f, *(block(s.SCORE + s.HEAD_ROWS * h, first) for h in range(2)))


@pytest.mark.parametrize("first", FIRSTS)
def test_signals_are_running_means_over_the_pool(first: int) -> None:
    rng, m, f = drawn(8)
    f[s.NOW, :], f[s.MORE, s.AVERAGE] = 0, 4.0
    rate = usual = 0.0
    missed = 0
    for event in range(1, 12):
        m[REG, EVENT] = event
        keys = first + rng.permutation(EXPERTS)[: 1 + event % 4]
        if event % 5 == 2:
            keys = m[KEY_OF, :2].copy()
        weights = rng.random(len(keys))
        weights[0] *= event % 3
        if len(keys) == 1:
            weights[0] = 1.0
        p = weights / weights.sum()
        entropy = -sum(x * np.log(x) for x in p if x > 0) / np.log(EXPERTS)
        hits = int((m[SLOT_OF, keys] >= 0).sum())
        missed = 0 if hits == len(keys) else missed + 1
        by = 1 if event == 1 else 0.25
        usual, rate = usual + by * (entropy - usual), rate + by * (hits / len(keys) - rate)
        old, book = f.copy(), m.copy()
        adaptive.observe.py_func(m, f, first, keys, weights)
        signals = (s.NOW, [s.HIT_RATE, s.ENTROPY, s.USUAL_ENTROPY])
        np.testing.assert_allclose(f[signals], (rate, entropy, usual), atol=1e-12)
        assert m[s.MISSES, first] == missed
        alone(old, f, signals)
        alone(book, m, (s.MISSES, first))
        for bound in (0, 1, 2, 3):
            m[s.INTS, s.STORM] = bound
            assert adaptive.storm.py_func(m, first) == (0 < bound <= missed)
    m[s.INTS, s.EXPERTS] = 2
    adaptive.observe.py_func(m, f, 0, np.array([0, 1]), np.ones(2))
    assert f[s.NOW, s.ENTROPY] == pytest.approx(1)
    m[s.INTS, s.EXPERTS] = 1  # of one expert there is no entropy, and nothing to divide by
    adaptive.observe.py_func(m, f, 0, np.array([0]), np.ones(1))
    assert f[s.NOW, s.ENTROPY] == 0


def test_distance_is_one_less_the_cosine_and_unknown_at_first() -> None:
    rng, _, f = drawn(6)
    for length in (1, 3, WIDTH):
        x, last = rng.standard_normal(length), f[s.LAST, :length]
        wanted = 1 - x @ last / np.linalg.norm(x) / np.linalg.norm(last)
        assert adaptive.distance.py_func(f, x) == pytest.approx(wanted, abs=1e-12)
    assert adaptive.distance.py_func(f, np.zeros(WIDTH)) == -1
    f[s.LAST] = 0
    assert adaptive.distance.py_func(f, np.ones(WIDTH)) == -1


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


class Held:
    """The slots of a drawn state in lists: whom each head of a layer would give up, and whom it lacks."""

    def __init__(self, m: Any, f: Any) -> None:
        self.m, self.f = m, f

    def value(self, head: int, key: int) -> float:
        return float(self.f[s.SCORE + s.HEAD_ROWS * head, key])

    def free(self, slot: int) -> bool:
        return bool(self.m[PIN, self.m[KEY_OF, slot]] != self.m[REG, WAVE])

    def weakest(self, first: int, head: int, passed: Any, spare: bool) -> int:
        found = []
        for slot in range(SLOTS):
            key = int(self.m[KEY_OF, slot])
            here = first <= key < first + EXPERTS and self.m[s.OWNER, key] == head and not passed(key)
            if here and (not spare or self.free(slot)):
                found.append((self.value(head, key), slot))
        return min(found)[1] if found else -1

    def strongest(self, head: int, keys: list[int]) -> int:
        return max(keys, key=lambda k: (self.value(head, k), -k), default=-1)

    def weakest_of_all(self) -> int:
        slots_ = [c for c in range(SLOTS) if self.m[KEY_OF, c] >= 0 and self.free(c)]
        key = self.m[KEY_OF]
        return min(slots_, key=lambda c: (self.value(self.m[s.OWNER, key[c]], key[c]), c), default=-1)


def held(seed: int) -> tuple[np.random.Generator, Any, Any, Held]:
    rng, m, f = drawn(seed)
    for h in range(2):
        f[s.SCORE + s.HEAD_ROWS * h] = rng.integers(-2, 5, f.shape[1])
    f[s.NUMBERS, s.FLOOR] = (-np.inf, 0.0, 1.0)[seed % 3]
    return rng, m, f, Held(m, f)


@pytest.mark.parametrize("seed", range(40))
def test_a_miss_takes_the_slot_of_the_head_that_gains_most(seed: int) -> None:
    _, m, f, book = held(seed)
    for first in FIRSTS:
        for head in range(2):
            for stamp in (-1, 9):
                for spare in (True, False):
                    ours = slots.weakest.py_func(m, f, first, head, stamp, spare)
                    assert ours == book.weakest(first, head, lambda k, stamp=stamp: m[s.MARK, k] == stamp, spare)
            absent = [k for k in range(first, first + EXPERTS) if m[SLOT_OF, k] < 0 and m[s.MARK, k] != 9]
            best = book.strongest(head, absent)
            assert slots.strongest.py_func(m, f, first, head, 9) == best
    for key in np.flatnonzero(m[SLOT_OF, :KEYS] < 0).tolist():
        first = key // EXPERTS * EXPERTS
        for keep, left in ((0, 2), (1, 0), (1, -1), (1, 1)):
            m[s.INTS, s.KEEP], m[s.LEFT, first], m[s.LIVE, s.PHASE] = keep, left, s.NO_PHASE
            gaps = {}
            for head in range(2):
                slot = book.weakest(first, head, lambda k: False, True)
                if book.value(head, key) >= f[s.NUMBERS, s.FLOOR]:
                    if m[REG, USED] < m[REG, CAP]:
                        gaps[head] = np.inf
                    elif slot >= 0:
                        gaps[head] = book.value(head, key) - book.value(head, m[KEY_OF, slot])
            taker = max(gaps, key=lambda h: (gaps[h], -h), default=-1)
            taker = taker if gaps.get(taker, 0) > 0 else -1
            asked = keep == 1 and left > 0
            before = m.copy()
            assert slots.admit.py_func(m, f, key) == (asked and taker >= 0)
            if not asked:
                alone(before, m)
                continue
            assert m[s.LIVE, [s.PHASE, s.FIRST, s.HEAD]].tolist() == [s.ON_DEMAND, first, taker]
            alone(before, m, (s.LIVE, [s.PHASE, s.FIRST, s.HEAD]))
            slot = book.weakest(first, taker, lambda k: False, True)
            wanted = slot if slot >= 0 else book.weakest_of_all()
            assert slots.victim.py_func(m, f) == wanted
            assert m[s.LIVE, s.HEAD] == (taker if slot >= 0 else m[s.OWNER, m[KEY_OF, wanted]])


@pytest.mark.parametrize("seed", range(40))
def test_wishes_are_the_widest_gaps_and_come_in_their_owners_slots(seed: int) -> None:
    rng, m, f, book = held(seed)
    start = int(rng.integers(0, 2)) * EXPERTS
    m[s.LIVE, [s.FROM, s.TO, s.STAMP, s.AT, s.PHASE]] = start, KEYS, 8, 3, s.NO_PHASE
    m[s.LEFT, 0], m[s.LEFT, EXPERTS] = rng.integers(0, 4, 2)
    marked = {k for k in range(KEYS) if m[s.MARK, k] == 9}
    free, wanted, heads = SLOTS - int(m[REG, USED]), [], []
    for first in range(start, KEYS, EXPERTS):
        for _ in range(m[s.LEFT, first]):
            options = []
            for head in range(2):
                absent = [k for k in range(first, first + EXPERTS) if m[SLOT_OF, k] < 0 and k not in marked]
                if not absent:
                    continue
                key = book.strongest(head, absent)
                slot = -1 if free > 0 else book.weakest(first, head, lambda k: k in marked, False)
                gap = np.inf if free > 0 else 0.0
                if slot >= 0:
                    gap = book.value(head, key) - book.value(head, m[KEY_OF, slot])
                if gap > 0 and book.value(head, key) >= f[s.NUMBERS, s.FLOOR]:
                    options.append((gap, -head, key, slot))
            if not options:
                break
            _, head, key, slot = max(options)
            marked.add(key)
            if slot >= 0:
                marked.add(int(m[KEY_OF, slot]))
            else:
                free -= 1
            wanted.append(key)
            heads.append(-head)
    before = m.copy()
    n = slots.wish.py_func(m, f)
    assert m[WANT, :n].tolist() == wanted and m[s.WISH_HEAD, :n].tolist() == heads
    assert m[s.LIVE, [s.PHASE, s.AT, s.STAMP, s.WISHES]].tolist() == [s.WISHING, 0, 9, n] and m[REG, slots.CHANGES] == n
    assert {k for k in range(KEYS) if m[s.MARK, k] == 9} == marked
    written = (s.LIVE, [s.PHASE, s.AT, s.STAMP, s.WISHES]), (REG, slots.CHANGES), (s.MARK, slice(0, KEYS))
    alone(before, m, *written, (WANT, slice(0, n)), (s.WISH_HEAD, slice(0, n + 1)))
    m[REG, EVENT] = 1
    for key, head in zip(wanted, heads, strict=True):
        first = key // EXPERTS * EXPERTS
        if m[REG, USED] == SLOTS:
            slot = book.weakest(first, head, lambda k: False, True)
            least = slot if slot >= 0 else book.weakest_of_all()
            if least < 0:
                break
            assert slots.victim.py_func(m, f) == least
            assert m[s.LIVE, s.HEAD] == (head if slot >= 0 else m[s.OWNER, m[KEY_OF, least]])
            assert m[WANT, m[s.LIVE, s.AT]] == key
            m[SLOT_OF, m[KEY_OF, least]] = -1
        else:
            least = int(np.flatnonzero(m[KEY_OF, :SLOTS] < 0)[0])
            m[REG, USED] += 1
        m[KEY_OF, least], m[SLOT_OF, key], left = key, least, int(m[s.LEFT, first])
        slots.arrive.py_func(m, f, key)
        assert m[s.OWNER, key] == head and m[s.LEFT, first] == left - 1
    m[s.LIVE, s.AT] = n  # nothing is wished for any more: the weakest of all
    if (least := book.weakest_of_all()) >= 0:
        assert slots.victim.py_func(m, f) == least


def test_who_arrives_belongs_to_the_head_that_made_room() -> None:
    _, m, f = drawn(0)
    m[s.LEFT, :KEYS] = 5
    before = m.copy()
    slots.arrive.py_func(m, f, 3)
    alone(before, m)  # the initial fill
    m[REG, EVENT] = 1
    for phase, head, owner in ((s.ON_DEMAND, 1, 1), (s.NO_PHASE, -1, 0), (s.NO_PHASE, 0, 0)):
        m[s.LIVE, s.PHASE], m[s.LIVE, s.HEAD], m[s.OWNER, 11], m[s.LEFT, EXPERTS] = phase, head, 7, 5
        slots.arrive.py_func(m, f, 11)
        assert m[s.OWNER, 11] == owner and m[s.LEFT, EXPERTS] == 4 and m[s.LEFT, 0] == 5


def test_shares_are_even_and_the_first_get_what_is_over() -> None:
    assert [slots.shares(n, 3) for n in (0, 2, 6, 7, 8)] == [[0] * 3, [1, 1, 0], [2] * 3, [3, 2, 2], [3, 3, 2]]


def test_a_memory_of_one_context_needs_the_projection_too(monkeypatch: pytest.MonkeyPatch) -> None:
    interpreted(monkeypatch)
    rng, m, f = drawn(1)
    m[s.INTS, [s.TRANSFORMS, s.DEPTH]], m[s.LIVE, s.WINDOW], f[s.NUMBERS, s.TAU] = (s.TRAJECTORIES, 1), 5, 2.0
    x, scored = rng.standard_normal(WIDTH), f.copy()
    projection.project.py_func(m, scored, 0, x)
    decide.score.py_func(m, f, 0, x)
    wanted = sum(scored[block(s.SCORE + s.HEAD_ROWS * h, 0)] for h in range(2))
    np.testing.assert_allclose(f[block(s.recalled_row(2), 0)], wanted, atol=1e-12)
    assert m[s.ENTRY, 0] == 1


def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts that `decide` puts together, uncompiled."""
    for name in ("allowance", "project", "save", "sum_heads", "recall", "phase_of", "blend", "by_phase", "by_shift",
                 "by_trajectory", "favour"):  # fmt: skip
        monkeypatch.setattr(decide, name, getattr(decide, name).py_func)


@pytest.mark.parametrize("kinds", range(1, 16))
@pytest.mark.parametrize("depth", [0, DEPTH])
@pytest.mark.parametrize("first", FIRSTS)
def test_a_score_adds_up_its_transforms(monkeypatch: pytest.MonkeyPatch, kinds: int, depth: int, first: int) -> None:
    interpreted(monkeypatch)
    rng, m, f = drawn(kinds)
    x, standard = rng.standard_normal(WIDTH), kinds & (kinds - 1) > 0
    m[s.INTS, [s.TRANSFORMS, s.STANDARD, s.DEPTH, s.RETURN_STEP]] = kinds, standard, depth, 4
    m[s.LIVE, s.WINDOW], m[s.COUNT, first], m[s.PLACE, :KEYS] = 5, 9, rng.integers(0, EXPERTS, KEYS)
    m[s.RANK : s.RANK + 2, :KEYS] = np.tile(rng.permutation(EXPERTS), LAYERS)
    f[s.NUMBERS, [s.WEIGHT_PROJECTION, s.WEIGHT_PHASE, s.WEIGHT_CYCLIC, s.WEIGHT_TRAJECTORY]] = 0.5, 1.5, 2.0, 3.0
    f[s.NUMBERS, s.TAU], f[s.NOW, s.STEP_NOW], f[s.PARTIAL] = 0.9, 2.0, 0.0
    m[s.ENTRY, first], m[s.OLDEST, first] = 1, 2
    old, book = f.copy(), m.copy()
    projection.project.py_func(book, old, first, x)
    rows = [block(s.SCORE + s.HEAD_ROWS * h, first) for h in range(2)]
    met, m2 = kinds % 2 == 0 and depth > 0, book.copy()
    if met:  # entry 1 is the context the layer comes to
        f[block(s.recalled_row(2) + 1, first)] = sum(old[row] for row in rows)
        m[s.MEMORY + 2, first : first + EXPERTS] = book[s.MEMORY + 2, first : first + EXPERTS] = rng.integers(
            0, 3, EXPERTS
        )
    parts: list[list[tuple[float, np.ndarray]]] = []
    for h in range(2):
        theta = ring.phase_of.py_func(m2, old, first, h) if kinds & (s.PHASE_ROTATION | s.CYCLIC) else 0.0
        found = [(0.5, old[rows[h]].copy())] if kinds & s.PROJECTION else []
        for bit, weight in ((s.PHASE_ROTATION, 1.5), (s.CYCLIC, 2.0), (s.TRAJECTORIES, 3.0)):
            if kinds & bit:
                if bit == s.PHASE_ROTATION:
                    ring.by_phase.py_func(m2, old, first, h, theta)
                elif bit == s.CYCLIC:
                    ring.by_shift.py_func(m2, old, first, h, theta, 2)
                else:
                    trajectory.by_trajectory.py_func(m2, old, first)
                found.append((weight, old[block(s.SCRATCH, first)].copy()))
        parts.append(found)
        decided = theta
    decide.score.py_func(m, f, first, x)
    for h, found in enumerate(parts):
        wanted = sum(w * ((v - v.mean()) / v.std() if standard else v) for w, v in found)
        if kinds == s.PROJECTION:
            wanted = found[0][1]
        if met:
            wanted = wanted + (np.ptp(wanted) + 1000) * (m[s.MEMORY + 2, first : first + EXPERTS] == h + 1)
        np.testing.assert_allclose(f[rows[h]], wanted, atol=1e-9)
    assert f[s.THETA, first + 1] == pytest.approx(decided, abs=1e-12)
    assert m[s.LEFT, first] == (4 if met else 2) and m[s.ENTRY, first] == ((2 if met else 3) if depth else 1)
    if depth:  # what was resident is kept for the context that is left
        held = [m[s.OWNER, k] + 1 if m[SLOT_OF, k] >= 0 else 0 for k in range(first, first + EXPERTS)]
        assert m[s.MEMORY, first : first + EXPERTS].tolist() == held


@pytest.mark.parametrize("mode", [s.PER_LAYER, s.TOGETHER, s.SWITCHING])
@pytest.mark.parametrize("first", FIRSTS)
@pytest.mark.parametrize("seed", range(24))
def test_a_pool_s_first_layer_decides_for_all_where_they_move_together(
    monkeypatch: pytest.MonkeyPatch, mode: int, first: int, seed: int
) -> None:
    rng, m, f = drawn(seed)
    calls: list[Any] = []
    raging = bool(rng.random() < 0.3)
    for name in ("observe", "remember", "turn", "adapt", "score", "exchange"):
        monkeypatch.setattr(
            decide, name, lambda *given, name=name: calls.append((name, given[2] if name == "score" else 0))
        )
    monkeypatch.setattr(decide, "storm", lambda m, first: raging)
    rate, below, switch = (float(v) for v in rng.choice([0.25, 0.5, 0.75], 3))
    online, kinds, used, before = int(rng.integers(0, 2)), int(rng.integers(1, 16)), int(rng.integers(0, 2)), seed % 2
    f[s.NOW, s.HIT_RATE], f[s.MORE, s.ONLINE_BELOW], f[s.MORE, s.SWITCH_BELOW] = rate, below, switch
    m[s.INTS, [s.ONLINE, s.TRANSFORMS, s.SHARED]] = online, kinds, mode
    m[s.LIVE, [s.USED, s.JOINT, s.PHASE, s.FROM, s.TO]] = used, before, 7, 7, 7
    x, old = rng.standard_normal(WIDTH), f.copy()
    decide.decide.py_func(m, f, np.zeros(0, int), np.zeros(0), x)
    assert not calls and m[s.LIVE, [s.PHASE, s.FROM, s.TO]].tolist() == [s.NO_PHASE, 0, 0]
    m[s.LIVE, [s.PHASE, s.FROM, s.TO]] = 7
    decide.decide.py_func(m, f, np.array([first + 2, first][: 1 + seed % 2]), np.ones(1 + seed % 2), x)
    wanted = ["observe"] + ["remember"] * (kinds & s.TRAJECTORIES > 0)
    joint = bool(before)
    if first == 0:
        wanted += ["turn"] * bool(online and (rate < below or raging)) + ["adapt"]
        joint = mode == s.TOGETHER or (mode == s.SWITCHING and rate >= switch)
        wanted += ["exchange"] * (mode == s.SWITCHING and joint != used)
        old[s.LAST, :WIDTH] = x
    span = range(0) if joint and first else range(first, KEYS if joint else first + EXPERTS, EXPERTS)
    assert calls == [(name, 0) for name in wanted] + [("score", layer) for layer in span]
    assert m[s.LIVE, [s.PHASE, s.JOINT]].tolist() == [s.NO_PHASE, joint]
    assert m[s.LIVE, [s.FROM, s.TO]].tolist() == ([span.start, span.stop] if len(span) else [0, 0])
    assert np.array_equal(f, old)


@pytest.mark.parametrize("heads", [1, 3])
def test_an_exchange_swaps_signatures_planes_and_ranks_with_those_put_by(heads: int) -> None:
    rng = np.random.default_rng(heads)
    rows = s.frows(heads, DEPTH, False, True)
    state, floats = make_state(1, KEYS, [SLOTS], rows=s.rows(DEPTH, True), frows=rows + 2 * KEYS)
    m, f = state[0], floats[0]
    f[:] = rng.standard_normal(f.shape)
    m[s.RANK :] = rng.integers(0, EXPERTS, m[s.RANK :].shape)
    m[s.INTS, [s.KEYS, s.HEADS]] = KEYS, heads
    spare, ranks = s.spare_row(heads, DEPTH, False), s.MEMORY + 2 * DEPTH
    m[s.LIVE, [s.SIGNATURE, s.SPARE, s.SPARE_RANK, s.USED]] = rows, spare, ranks, 0
    assert m.shape[0] == ranks + s.MOST_HEADS
    planes = [s.CENTRE_X, s.CENTRE_Y, *range(s.FIXED, s.FIXED + s.HEAD_ROWS * heads)]
    wanted_f, wanted_m = f.copy(), m.copy()
    wanted_f[rows : rows + KEYS], wanted_f[rows + KEYS :] = f[rows + KEYS :], f[rows : rows + KEYS]
    for i, row in enumerate(planes):
        wanted_f[row, :KEYS], wanted_f[spare + i, :KEYS] = f[spare + i, :KEYS], f[row, :KEYS]
    for h in range(heads):
        wanted_m[s.RANK + h, :KEYS], wanted_m[ranks + h, :KEYS] = m[ranks + h, :KEYS], m[s.RANK + h, :KEYS]
    wanted_m[s.LIVE, s.USED] = 1
    assert spare + len(planes) == rows
    spaces.exchange.py_func(m, f)
    assert np.array_equal(f, wanted_f) and np.array_equal(m, wanted_m)


@pytest.mark.parametrize("first", FIRSTS)
@pytest.mark.parametrize("joint", [False, True])
def test_the_hybrid_adds_fading_counts_and_recency_to_the_scores(
    monkeypatch: pytest.MonkeyPatch, first: int, joint: bool
) -> None:
    rng, m, f = drawn(1)
    monkeypatch.setattr(rotary_hybrid, "blend", projection.blend.py_func)
    scored = rng.standard_normal((2, KEYS))

    def decided(m: Any, f: Any, *_: Any) -> None:
        m[s.LIVE, s.FROM], m[s.LIVE, s.TO] = (0, KEYS) if joint else (first, first + EXPERTS)
        f[[s.SCORE, s.SCORE + s.HEAD_ROWS], :KEYS] = scored

    monkeypatch.setattr(rotary_hybrid, "decide", decided)
    m[s.INTS, s.STANDARD], f[s.FREQUENCY], f[s.RECENCY] = 1, 0, 0
    f[s.MORE, [s.WEIGHT_RECENCY, s.WEIGHT_FREQUENCY, s.HALF_LIFE]] = 0.5, 2.0, 0.75
    counts, recent = np.zeros(KEYS), np.zeros(KEYS)
    for event in range(6):
        keys = first + rng.permutation(EXPERTS)[: 1 + event % 3]
        rotary_hybrid.decide_and_count.py_func(m, f, keys, np.ones(len(keys)), None)
        mine = slice(first, first + EXPERTS)
        counts[mine], recent[mine] = counts[mine] * 0.75, recent[mine] * 0.75
        counts[keys], recent[keys] = counts[keys] + 1, 1
        np.testing.assert_allclose(f[s.FREQUENCY, :KEYS], counts)
        np.testing.assert_allclose(f[s.RECENCY, :KEYS], recent)
        for low in FIRSTS if joint else (first,):
            part = slice(low, low + EXPERTS)
            for h in range(2):
                wanted = scored[h, part].copy()
                for weight, row in ((0.5, recent), (2.0, counts)):
                    wanted += weight * (row[part] - row[part].mean()) / (row[part].std() or 1.0)
                np.testing.assert_allclose(f[s.SCORE + s.HEAD_ROWS * h, part], wanted, atol=1e-12)
    rotary_hybrid.decide_and_count.py_func(m, f, np.zeros(0, int), np.zeros(0), None)
    np.testing.assert_allclose(f[s.FREQUENCY, :KEYS], counts)


def test_the_hybrid_s_weights_and_half_life_are_in_the_state() -> None:
    policy = rotary_hybrid.RotaryHybrid(weight_recency=0.5, weight_frequency=3.0, half_life=4.0)
    trace = toy()
    m, f, _ = initial_state(
        lay_out(PoolConfig(slots=4), policy, trace.shape), policy, trace.shape, "hidden", 5, trace, 0
    )
    assert (f[:, s.MORE, [s.WEIGHT_RECENCY, s.WEIGHT_FREQUENCY]] == (0.5, 3.0)).all()
    np.testing.assert_allclose(f[:, s.MORE, s.HALF_LIFE], 0.5**0.25)
    assert (m[:, s.INTS, s.STANDARD] == 1).all() and policy.standardised and policy.traits.calibration
