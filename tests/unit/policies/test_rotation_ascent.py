"""The ascent that fits W_r against the words of `fit`, step by step, and where it stops."""

from typing import Any

import numpy as np
import pytest

from rgpu.policies.rotation.learning import fit, random_rotation


def climbed(s_EF: np.ndarray, x_NF: np.ndarray, y_NE: np.ndarray, steps: int, orthogonal: bool) -> tuple[Any, Any]:
    """(objective of every step, rows) of the ascent that `fit` describes."""
    rank = np.linalg.matrix_rank(s_EF)
    u, size, v = np.linalg.svd(s_EF, full_matrices=False)
    left, q = (u * size)[:, :rank], v[:rank]

    def log_p(q: np.ndarray, beta: float) -> np.ndarray:
        z = beta * x_NF @ q.T @ left.T
        return z - np.log(np.exp(z).sum(1, keepdims=True))  # type: ignore[no-any-return]

    def value(q: np.ndarray, beta: float) -> float:
        return float((y_NE * log_p(q, beta)).sum() / len(x_NF))

    scale = (x_NF @ s_EF.T).std() or 1.0
    beta = max((b / scale for b in (0.125, 0.25, 0.5, 1, 2, 4, 8)), key=lambda b: value(q, b))
    history, rate = [value(q, beta)], 0.0
    for step in range(1, steps + 1):
        if step % 10 == 0:
            beta = max((beta, 0.8 * beta, 1.25 * beta), key=lambda b: value(q, b))
        best = value(q, beta)
        slope = beta / len(x_NF) * left.T @ (y_NE - np.exp(log_p(q, beta))).T @ x_NF
        if orthogonal:
            slope = slope - (slope @ q.T + q @ slope.T) @ q / 2
        rate = 1.5 * rate if rate else 0.3 / float(np.linalg.norm(slope))
        for _ in range(20):
            tried = q + rate * slope
            if orthogonal:
                ortho, r = np.linalg.qr(tried.T)
                tried = (ortho @ np.diag(np.sign(np.diag(r)))).T
            if value(tried, beta) > best:
                break
            rate /= 2
        else:
            break
        q = tried
        history.append(value(q, beta))
    return np.array(history), q


@pytest.mark.parametrize("orthogonal", [True, False])
@pytest.mark.parametrize("sharp", [0.0, 0.3, 3.0])
@pytest.mark.parametrize("seed", range(2))
def test_the_ascent_takes_the_steps_it_describes(seed: int, sharp: float, orthogonal: bool) -> None:
    rng = np.random.default_rng(seed)
    s_EF, x_NF = rng.standard_normal((6, 4)), rng.standard_normal((40, 4)) * 3
    scores = sharp * x_NF @ random_rotation(4, (seed,)) @ s_EF.T + rng.gumbel(size=(40, 6))
    y_NE = (scores >= np.sort(scores)[:, -2:-1]) / 2.0
    found = fit(s_EF, x_NF, y_NE, 33, orthogonal)
    history, rows = climbed(s_EF, x_NF, y_NE, 33, orthogonal)
    assert len(history) > 12
    np.testing.assert_allclose(found.objective, history, rtol=1e-7)
    np.testing.assert_allclose(found.rows_rF, rows, atol=1e-5)
    u, size, _ = np.linalg.svd(s_EF, full_matrices=False)
    np.testing.assert_allclose(found.rotated_EF, (u * size) @ rows, atol=1e-4)


def drawn(seed: int, experts: int, width: int, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(signatures, inputs, targets), where nothing tells one from another."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((experts, width)), rng.standard_normal((rows, width)),
            np.eye(experts)[rng.integers(0, experts, rows)])  # fmt: skip


@pytest.mark.parametrize("orthogonal", [True, False])
@pytest.mark.parametrize("factor", [2.0**-40, 2.0**40])
def test_the_size_of_signatures_does_not_matter(factor: float, orthogonal: bool) -> None:
    s_EF, x_NF, y_NE = drawn(3, 6, 4, 40)
    one, other = fit(s_EF, x_NF, y_NE, 5, orthogonal), fit(s_EF * factor, x_NF, y_NE, 5, orthogonal)
    assert len(one.objective) == 6
    np.testing.assert_allclose(other.objective, one.objective, rtol=1e-9)
    np.testing.assert_allclose(other.rotated_EF, one.rotated_EF * factor, rtol=1e-6)


def test_rows_are_as_many_as_signatures_are_independent() -> None:
    s_EF, x_NF, y_NE = drawn(3, 6, 4, 40)
    s_EF = s_EF[:, :2] @ drawn(4, 2, 4, 1)[0]
    for found in (fit(s_EF, x_NF, y_NE, 0), fit(s_EF, x_NF, y_NE, 3)):
        assert found.rows_rF.shape == (2, 4)
        np.testing.assert_allclose(found.rows_rF @ found.rows_rF.T, np.eye(2), atol=1e-12)


@pytest.mark.parametrize("orthogonal", [True, False])
def test_scores_that_are_all_equal_have_a_sharpness_too(orthogonal: bool) -> None:
    s_EF, x_NF, y_NE = np.array([[1.0, 2], [1, -2]]), np.array([[1.0, 0]] * 5), np.array([[1.0, 0]] * 5)
    found, (history, rows) = fit(s_EF, x_NF, y_NE, 6, orthogonal), climbed(s_EF, x_NF, y_NE, 6, orthogonal)
    np.testing.assert_allclose(found.objective, history, rtol=1e-9)
    np.testing.assert_allclose(found.rows_rF, rows, atol=1e-9)


def test_the_sharpest_scores_tried_are_eight_deviations() -> None:
    s_EF, x_NF, _ = drawn(5, 6, 4, 40)
    scores = x_NF @ s_EF.T  # what is routed is what scores most, so the sharper the better
    z = 8 / scores.std() * (scores - scores.max(1, keepdims=True))
    found = fit(s_EF, x_NF, np.eye(6)[scores.argmax(1)], 0)
    assert found.objective.tolist() == pytest.approx([-np.log(np.exp(z).sum(1)).mean()])


@pytest.mark.parametrize("seed", range(4))
def test_a_sharpness_that_is_too_high_falls_on_the_way(seed: int) -> None:
    rng = np.random.default_rng(seed)
    s_EF, x_NF = rng.standard_normal((6, 4)), rng.standard_normal((200, 4))
    scores = x_NF @ s_EF.T
    y_NE = np.eye(6)[(1.6 / scores.std() * scores + rng.gumbel(size=scores.shape)).argmax(1)]
    found, (history, rows) = fit(s_EF, x_NF, y_NE, 12), climbed(s_EF, x_NF, y_NE, 12, True)
    np.testing.assert_allclose(found.objective, history, rtol=1e-9)
    np.testing.assert_allclose(found.rows_rF, rows, atol=1e-7)


@pytest.mark.parametrize("orthogonal", [True, False])
def test_where_next_to_nothing_is_left_to_gain_no_step_is_taken(orthogonal: bool) -> None:
    eye = np.tile(np.eye(16), (100, 1))  # every input is its expert's signature
    found = fit(np.eye(16), eye, eye, 5, orthogonal)
    assert len(found.objective) == 1 and -1e-12 < found.objective[0] < 0


@pytest.mark.parametrize("orthogonal", [True, False])
def test_a_step_is_halved_until_it_gains_but_tried_twenty_times_at_most(orthogonal: bool) -> None:
    s_EF, y_NE = np.array([[1.0, 0], [-1, 0]]), np.eye(2)[[0, 1, 1, 0]]
    for k in range(23):
        x_NF = np.array([[1.0, 1], [-1, 1], [1, -1], [-1, 2]]) * (1, 27 * 2.0**k)
        assert len(fit(s_EF, x_NF, y_NE, 1, orthogonal).objective) == (2 if k < 20 else 1), k


def test_steps_end_where_none_gains() -> None:
    found = fit(*drawn(6, 4, 3, 30), 2000)
    assert 20 < len(found.objective) < 2001 and (np.diff(found.objective) > 0).all()


def test_one_step_turns_already() -> None:
    s_EF, x_NF, y_NE = drawn(7, 4, 3, 30)
    found = fit(s_EF, x_NF, y_NE, 1)
    assert len(found.objective) == 2 and np.abs(found.rotated_EF - s_EF).max() > 0.01


@pytest.mark.parametrize("seed", range(20))
def test_what_nothing_is_known_of_keeps_its_direction(seed: int) -> None:
    """Signatures and inputs are the same mirrored in the second direction: nothing turns there."""
    turn = random_rotation(4, (seed,))
    s_EF = np.array([[2.0, 1], [2, -1], [-2, 1], [-2, -1]]) @ turn[:2]
    rng = np.random.default_rng(seed)
    x_NF = rng.standard_normal((20, 4))
    best = (x_NF[:, 0] + 2 * x_NF[:, 2] < 0) * 2 + (x_NF[:, 1] < 0)
    x_NF, y_NE = np.concatenate([x_NF, x_NF * (1, -1, 1, 1)]) @ turn, np.eye(4)[np.concatenate([best, best ^ 1])]
    found, (history, rows) = fit(s_EF, x_NF, y_NE, 3), climbed(s_EF, x_NF, y_NE, 3, True)
    np.testing.assert_allclose(found.objective, history, rtol=1e-9)
    np.testing.assert_allclose(found.rows_rF, rows, atol=1e-7)
