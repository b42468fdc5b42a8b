"""W_r: fixed, random, or fitted after training on the calibration split with the model frozen.

Source: KR 10-2026-0070380, claim 5 (b), [0072]: agreement of the next routing with what the rotated projection ranks.
Here: mean log-likelihood of the layer's next routing under softmax(beta S W_r h). Only the part of W_r that maps onto
the span of the signatures S acts on scores, so with S = left @ basis (basis: r orthonormal rows) the fit moves the rows
basis @ W_r: r x F instead of F x F. Orthogonal: ascent along the tangent, retracted by QR, step halved until the
objective rises; every such point is basis @ W_r of some orthogonal W_r. Linear: the same without the retraction.
Legend: N pairs, E experts, F feature width, r rank of the signatures.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Fit:
    """`rotated_EF`: signatures with W_r applied; `objective`: mean log-likelihood in nats before each step and after
    the last; `rows_rF`: the rows basis @ W_r."""

    rotated_EF: np.ndarray
    objective: np.ndarray
    rows_rF: np.ndarray


def pairs(x_NF: np.ndarray, y_NE: np.ndarray, offsets: np.ndarray, lead: int, most: int) -> tuple[np.ndarray, ...]:
    """(input, target) rows: each token and the routing `lead` tokens later in its sequence, at most `most`, evenly."""
    sequence_N = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    at = np.arange(len(x_NF) - lead)
    at = at[sequence_N[at] == sequence_N[at + lead]]
    at = at[(y_NE[at + lead] > 0).any(1)]
    if len(at) > most:
        at = at[np.linspace(0, len(at) - 1, most).astype(np.int64)]
    target = (y_NE[at + lead] > 0).astype(np.float64)
    return x_NF[at], target / target.sum(1, keepdims=True) if len(at) else target


def random_rotation(width: int, seed: tuple[int, ...]) -> np.ndarray:
    """A Haar-random orthogonal matrix but for signs, [width, width]."""
    q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((width, width)))
    return q  # type: ignore[no-any-return]


def _value(scores_NE: np.ndarray, y_NE: np.ndarray) -> tuple[float, np.ndarray]:
    """Mean log-likelihood and its gradient by score, times N."""
    z = scores_NE - scores_NE.max(1, keepdims=True)
    p = np.exp(z)
    norm = p.sum(1, keepdims=True)
    return float((y_NE * (z - np.log(norm))).sum() / len(z)), y_NE - p / norm


def fit(signature_EF: np.ndarray, x_NF: np.ndarray, y_NE: np.ndarray, steps: int, orthogonal: bool = True) -> Fit:
    """Fit W_r from the identity; deterministic. Without pairs, or with signatures of zeros, W_r stays the identity."""
    u, size, basis = np.linalg.svd(signature_EF, full_matrices=False)
    kept = size > 1e-10 * max(float(size.max(initial=0.0)), 1e-300)
    left_Er, q_rF = u[:, kept] * size[kept], basis[kept]
    if not len(x_NF) or not kept.any():
        return Fit(signature_EF.copy(), np.zeros(1), q_rF)

    def value(q: np.ndarray, beta: float) -> tuple[float, np.ndarray]:
        return _value(beta * (x_NF @ q.T) @ left_Er.T, y_NE)

    scale = float(np.std(x_NF @ signature_EF.T)) or 1.0
    beta = max((2.0**p / scale for p in range(-3, 4)), key=lambda b: value(q_rF, b)[0])
    best, residual = value(q_rF, beta)
    history: list[float] = [best]
    rate: float | None = None
    for step in range(steps):
        if step % 10 == 9:  # the sharpness follows; only better ones are taken, so the objective never falls
            beta = max((beta * c for c in (1.0, 0.8, 1.25)), key=lambda b: value(q_rF, b)[0])
            best, residual = value(q_rF, beta)
        slope = left_Er.T @ (residual.T @ x_NF) * (beta / len(x_NF))
        if orthogonal:
            both = slope @ q_rF.T
            slope = slope - 0.5 * (both + both.T) @ q_rF
        length = float(np.linalg.norm(slope))
        if length < 1e-9:
            break
        rate = 0.3 / length if rate is None else rate * 1.5
        for _ in range(20):
            tried = q_rF + rate * slope
            if orthogonal:
                q, r = np.linalg.qr(tried.T)
                tried = (q * np.where(np.diagonal(r) < 0, -1.0, 1.0)).T
            now, gradient = value(tried, beta)
            if now > best:
                q_rF, best, residual = tried, now, gradient
                break
            rate *= 0.5
        else:
            break
        history.append(best)
    return Fit(left_Er @ q_rF if len(history) > 1 else signature_EF.copy(), np.asarray(history), q_rF)
