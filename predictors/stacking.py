"""Logistic weights of what speaks for an expert, fitted on sequences that did not make it speak.

Source: stacked generalisation (Wolpert 1992) with Platt's logistic calibration (1999). Legend: N samples, F features,
P passes, H rows of a forecast, E experts.
"""

import numpy as np

from rgpu.predictors.routed import known_or_last, real_rows, sequence_of
from rgpu.traces.split import split
from rgpu.traces.trace import Trace

SAMPLES = 2048  # passes that weights are fitted on: each gives E samples
EDGE = np.float32(1e-5)  # chances nearer to 0 or 1 than this count as this


def held_out(part: Trace, share: float, seed: int) -> tuple[Trace, Trace]:
    """Sequences to fit on, and `share` of the documents held out for weights; the whole part twice where there is but one."""
    parts = split(part, 1 - share, seed)
    if not len(parts.calibration) or not len(parts.scored):
        return part, part
    return part.select(parts.calibration), part.select(parts.scored)


def speaking_rows_of(trace: Trace) -> tuple[np.ndarray, np.ndarray]:
    """The last token of each pass of each sequence, in order (int64 [P]), and whether it is its sequence's first (bool)."""
    real = real_rows(trace)
    sequence, passes = sequence_of(trace, real), trace.passes[real]
    order = np.lexsort((real, passes, sequence))
    real, sequence, passes = real[order], sequence[order], passes[order]
    last = np.r_[(sequence[1:] != sequence[:-1]) | (passes[1:] != passes[:-1]), np.ones(min(1, len(real)), bool)]
    of_pass = sequence[last]
    return real[last], np.r_[np.ones(min(1, len(of_pass)), bool), of_pass[1:] != of_pass[:-1]]


def targets_of(
    trace: Trace, rows_P: np.ndarray, first_P: np.ndarray, layer: int, ahead: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Passes (at most `SAMPLES`, evenly spread) whose forecast of `layer` can be checked, and float64 [P', E] of 0 and 1."""
    at = np.arange(len(rows_P))
    if ahead:
        at = np.flatnonzero(~first_P[1:])
        ids_NK = trace.expert_ids[rows_P[at + 1], layer]
    else:
        ids_NK = trace.expert_ids[rows_P, layer]
    ids_NK = known_or_last(ids_NK, trace.header.num_experts)
    known = np.flatnonzero((ids_NK < trace.header.num_experts).all(1))
    known = known[np.unique(np.linspace(0, len(known) - 1, SAMPLES).astype(np.int64))] if len(known) else known
    true_NE = np.zeros((len(known), trace.header.num_experts))
    np.put_along_axis(true_NE, ids_NK[known], 1.0, axis=1)
    return at[known], true_NE


def fit_logistic(x_FN: np.ndarray, true_N: np.ndarray, start_F: np.ndarray, ridge: float = 1e-6) -> np.ndarray:
    """float64 [F + 1]: weights and, last, the intercept that minimise log-loss, by Newton's method from `start_F`.

    `ridge`, a sample: keeps weights of features that say the same, or nothing, near their start.
    """
    x_FN = np.concatenate([x_FN.astype(np.float64), np.ones((1, x_FN.shape[1]))])
    start_F = np.append(start_F.astype(np.float64), 0.0)
    weight_F, best = start_F, np.inf
    step_F = np.zeros(len(start_F))
    for _ in range(60):
        tried_F = weight_F + step_F
        z_N = tried_F @ x_FN
        loss = float(np.mean(np.logaddexp(0, z_N) - true_N * z_N)) + ridge / 2 * float(((tried_F - start_F) ** 2).sum())
        if not loss < best:  # too long a step, or none left to gain
            if np.abs(step_F).max() < 1e-7:
                break
            step_F = step_F / 4
            continue
        gain, weight_F, best = best - loss, tried_F, loss
        if gain < 1e-10:
            break
        p_N = 1 / (1 + np.exp(-z_N))
        gradient_F = x_FN @ (p_N - true_N) / len(true_N) + ridge * (weight_F - start_F)
        hessian_FF = (x_FN * (p_N * (1 - p_N))) @ x_FN.T / len(true_N) + ridge * np.eye(len(weight_F))
        step_F = -np.linalg.solve(hessian_FF, gradient_F)
    return weight_F


def log_odds(probs: np.ndarray) -> np.ndarray:
    """float32, the same shape; finite."""
    clipped = np.clip(probs, EDGE, np.float32(1) - EDGE)
    return np.log(clipped / (np.float32(1) - clipped))


def logistic(z: np.ndarray) -> np.ndarray:
    """float32, the same shape: chances of log-odds."""
    return np.float32(1) / (np.float32(1) + np.exp(-z))


def shared_out(probs_NHE: np.ndarray, top_k: int) -> np.ndarray:
    """float32 [N, H, E]: the chances scaled so that a row sums to `top_k`, kept a hair below 1, in their order."""
    total_NH1 = np.maximum(probs_NHE.sum(-1, keepdims=True), np.float32(1e-12))
    share_NHE = probs_NHE / total_NH1
    ceiling_NHE = np.float32(1) - np.float32(2**-12) * (np.float32(1) - share_NHE)
    return np.minimum(share_NHE * np.float32(top_k), ceiling_NHE)
