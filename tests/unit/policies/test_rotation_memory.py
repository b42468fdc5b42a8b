"""What the rotary family remembers of routing and contexts, and the signals of its pool, against numpy on drawn states."""

import numpy as np
import pytest

from rgpu.policies.loop import EVENT, KEY_OF, REG, SLOT_OF
from rgpu.policies.rotation import adaptive, memory, trajectory
from rgpu.policies.rotation import state as s
from tests.unit.policies.rotation_states import DEPTH, EXPERTS, FIRSTS, KEYS, WIDTH, alone, block, drawn


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
