"""Transform (iv): a rotation of the last k routing results, scored against signatures of such results.

Each layer keeps its last 64 routing vectors; k is fixed or follows how much routing has changed: the KL divergence of
the newest 16 from all 64, high -> short window. The window's mean (or decayed mean) is the input, the signatures are
the mean windows of the tokens routed to each expert. With W_r = I this is close to a count over a window, which is
what the published rule amounts to: it belongs to the paper's transforms, and is labelled here for what it is.
"""

import numpy as np

from rgpu.policies.loop import hook
from rgpu.policies.rotation import state as s


@hook
def share(weights, j):
    """Part of the event's gate weight that its member j has; equal parts where no weights were recorded."""
    total = 0.0
    for w in weights:
        total += w
    return weights[j] / total if total > 0.0 else 1.0 / weights.shape[0]


@hook
def remember(m, f, first, keys, weights):
    """Write the event's routing over the oldest of the layer's buffer, and keep both sums."""
    experts = m[s.INTS, s.EXPERTS]
    buffer = m[s.LIVE, s.BUFFER]
    count = m[s.COUNT, first]
    row = buffer + count % s.BUFFER_LENGTH
    leaving = buffer + (count - s.SHORT) % s.BUFFER_LENGTH
    for e in range(first, first + experts):
        f[s.LONGER, e] -= f[row, e]
        f[s.LATELY, e] -= f[leaving, e]
        f[row, e] = 0.0
    for j in range(keys.shape[0]):
        f[row, keys[j]] = share(weights, j)
    for e in range(first, first + experts):
        f[s.LONGER, e] += f[row, e]
        f[s.LATELY, e] += f[row, e]
    m[s.COUNT, first] = count + 1


@hook
def divergence(m, f, first):
    """KL of the layer's newest routing from the whole buffer's, in nats; a thousandth of mass is spread over all."""
    experts = m[s.INTS, s.EXPERTS]
    near = 0.0
    far = 0.0
    for e in range(first, first + experts):
        near += max(0.0, f[s.LATELY, e])
        far += max(0.0, f[s.LONGER, e])
    total = 0.0
    if near > 0.0 and far > 0.0:
        for e in range(first, first + experts):
            p = 0.999 * max(0.0, f[s.LATELY, e]) / near + 0.001 / experts
            q = 0.999 * max(0.0, f[s.LONGER, e]) / far + 0.001 / experts
            total += p * np.log(p / q)
    return total


@hook
def by_trajectory(m, f, first):
    """f[SCRATCH]: <pooled routing of the last k events, rotated signature> of each of the layer's experts."""
    experts = m[s.INTS, s.EXPERTS]
    window = m[s.LIVE, s.WINDOW]
    count = m[s.COUNT, first]
    decay = 1.0 - 1.0 / window if m[s.INTS, s.POOLING] else 1.0
    used = min(count, s.BUFFER_LENGTH if m[s.INTS, s.POOLING] else window)
    for e in range(first, first + experts):
        f[s.MEAN, e] = 0.0
    mass = 0.0
    weight = 1.0
    for j in range(used):
        row = m[s.LIVE, s.BUFFER] + (count - 1 - j) % s.BUFFER_LENGTH
        for e in range(first, first + experts):
            f[s.MEAN, e] += weight * f[row, e]
        mass += weight
        weight *= decay
    in_a_row = f.shape[1] // experts
    for e in range(first, first + experts):
        row = m[s.LIVE, s.TRAJECTORY] + e // in_a_row
        column = e % in_a_row * experts
        total = 0.0
        for i in range(experts):
            total += f[row, column + i] * f[s.MEAN, first + i]
        f[s.SCRATCH, e] = total / mass if mass > 0.0 else 0.0
