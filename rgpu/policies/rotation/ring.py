"""Transforms (ii) phase rotation and (iii) cyclic indexing: experts on a ring, and the place that the input points to.

The plane is that of the top two principal components of the head's rotated signatures, with the layer's mean input as
origin. Its axes lie in the span of the signatures, so coordinates are sums of scores that are there already. Read as:
(ii) the window of a head starts at the input's own angle; (iii) the window moves on by the angle times E / 2 pi.
"""

import numpy as np

from rgpu.policies.loop import hook
from rgpu.policies.rotation import state as s

TURN = 2 * np.pi


@hook
def phase_of(m, f, first, head):
    """Angle of the input in the head's plane, in (-pi, pi], from the raw projection scores."""
    score = s.SCORE + s.HEAD_ROWS * head
    x = -f[s.CENTRE_X, first + head]
    y = -f[s.CENTRE_Y, first + head]
    for e in range(first, first + m[s.INTS, s.EXPERTS]):
        x += f[s.AXIS_X + s.HEAD_ROWS * head, e] * f[score, e]
        y += f[s.AXIS_Y + s.HEAD_ROWS * head, e] * f[score, e]
    return np.arctan2(y, x)


@hook
def direction_of(m, projected):
    """+1 or -1: as configured, or the sign of the projected movement."""
    way = m[s.INTS, s.DIRECTION]
    if way == s.BY_SIGN:
        way = -1 if projected < 0 else 1
    return way


@hook
def by_phase(m, f, first, head, theta):
    """f[SCRATCH]: 1 for the expert at the input's angle, falling to -1 along the direction of movement (or both ways)."""
    before = f[s.THETA, first + head]
    movement = (theta - before + np.pi) % TURN - np.pi
    way = direction_of(m, movement)
    cycle = m[s.LIVE, s.CYCLE_NOW]
    start = theta
    if cycle > 0:  # the window stops at `cycle` places a turn
        start = np.round(theta * cycle / TURN) * TURN / cycle
    angle = s.ANGLE + s.HEAD_ROWS * head
    for e in range(first, first + m[s.INTS, s.EXPERTS]):
        if m[s.INTS, s.AHEAD]:
            f[s.SCRATCH, e] = 1.0 - ((way * (f[angle, e] - start)) % TURN) / np.pi
        else:
            f[s.SCRATCH, e] = np.cos(f[angle, e] - start)


@hook
def by_shift(m, f, first, head, theta, limit):
    """Move the head's place by the input's phase, at most `limit` places; f[SCRATCH]: 1 at the place, falling after it."""
    experts = m[s.INTS, s.EXPERTS]
    projected = np.int64(np.round(theta * experts / TURN))
    way = direction_of(m, projected)
    moved = min(abs(projected), limit)
    m[s.PLACE, first + head] = (m[s.PLACE, first + head] + way * moved) % experts
    start = m[s.PLACE, first + head]
    cycle = m[s.LIVE, s.CYCLE_NOW]
    if cycle > 0:
        start = start * cycle // experts * experts // cycle
    for e in range(first, first + experts):
        offset = (m[s.RANK + head, e] - start) % experts
        if m[s.INTS, s.AHEAD]:
            f[s.SCRATCH, e] = 1.0 - 2.0 * offset / experts
        else:
            f[s.SCRATCH, e] = np.cos(TURN * offset / experts)


def plane(rotated_EF: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(coefficients [2, E], axes [2, F], angle [E]) of the plane of a head's rotated signatures.

    axis = coefficients @ signatures, so <input, axis> = coefficients @ scores. Signs are fixed by the largest component.
    """
    centred_EF = rotated_EF - rotated_EF.mean(0)
    left, size, right = np.linalg.svd(centred_EF, full_matrices=False)
    coefficients, axes = np.zeros((2, len(rotated_EF))), np.zeros((2, rotated_EF.shape[1]))
    for i in range(min(2, len(size))):
        if size[i] > 1e-12 * max(size[0], 1e-300):
            sign = np.sign(right[i, np.abs(right[i]).argmax()])
            coefficients[i], axes[i] = sign * left[:, i] / size[i], sign * right[i]
    x, y = axes @ centred_EF.T
    return coefficients, axes, np.arctan2(y, x)


def ring(angle_E: np.ndarray, order: str, rng: np.random.Generator) -> np.ndarray:
    """int64 [E]: index of each expert on the ring, ordered by "phase", "id" or "random"."""
    experts = len(angle_E)
    if order == "id":
        return np.arange(experts)
    sequence = rng.permutation(experts) if order == "random" else np.argsort(angle_E % TURN, kind="stable")
    rank = np.empty(experts, np.int64)
    rank[sequence] = np.arange(experts)
    return rank
