"""Transform (i): score z = W_r h against the expert signatures, head by head; and W_r's slow turn in use.

<W_r h, s_e> = <h, W_r^T s_e>, so signatures are rotated once and z is never formed. An online update W_r <- W_r R turns
every rotated signature by R^T, with R the rotation in the plane of (last input, mean signature of what it missed): the
gradient of their agreement in the tangent space of the orthogonal group is of rank two, so this is its exact geodesic.
"""

import numpy as np

from rgpu.policies.loop import SLOT_OF, hook
from rgpu.policies.rotation import state as s


@hook
def project(m, f, first, feature):
    """f[SCORE of each head, first + e]: <head's part of the feature, its rotated signature> plus the head's bias."""
    experts = m[s.INTS, s.EXPERTS]
    heads = m[s.INTS, s.HEADS]
    width = feature.shape[0]
    row = m[s.LIVE, s.SIGNATURE] + first
    for h in range(heads):
        low = h * width // heads
        high = (h + 1) * width // heads
        score = s.SCORE + s.HEAD_ROWS * h
        bias = s.BIAS + s.HEAD_ROWS * h
        whole = experts // 4 * 4
        for e in range(0, whole, 4):  # four sums side by side hide the latency of an addition; each keeps its order
            a = 0.0
            b = 0.0
            c = 0.0
            d = 0.0
            for i in range(low, high):
                x = np.float64(feature[i])
                a += f[row + e, i] * x
                b += f[row + e + 1, i] * x
                c += f[row + e + 2, i] * x
                d += f[row + e + 3, i] * x
            f[score, first + e] = a + f[bias, first + e]
            f[score, first + e + 1] = b + f[bias, first + e + 1]
            f[score, first + e + 2] = c + f[bias, first + e + 2]
            f[score, first + e + 3] = d + f[bias, first + e + 3]
        for e in range(whole, experts):
            a = 0.0
            for i in range(low, high):
                a += f[row + e, i] * np.float64(feature[i])
            f[score, first + e] = a + f[bias, first + e]


@hook
def sum_heads(m, f, first):
    """f[PROJECTED]: the heads' scores added up: the projection that the return memory compares."""
    for e in range(m[s.INTS, s.EXPERTS]):
        total = 0.0
        for h in range(m[s.INTS, s.HEADS]):
            total += f[s.SCORE + s.HEAD_ROWS * h, first + e]
        f[s.PROJECTED, first + e] = total


@hook
def turn(m, f, keys, width):
    """Rotate the last input towards the signatures of the event's misses by RATE radians, in every head."""
    heads = m[s.INTS, s.HEADS]
    row = m[s.LIVE, s.SIGNATURE]
    for h in range(heads):
        low = h * width // heads
        high = (h + 1) * width // heads
        length = 0.0
        for i in range(low, high):
            length += f[s.LAST, i] ** 2
            f[s.TEMP_B, i] = 0.0
        if length == 0.0:
            continue
        for key in keys:
            if m[SLOT_OF, key] < 0:
                for i in range(low, high):
                    f[s.TEMP_B, i] += f[row + key, i]
        along = 0.0
        total = 0.0
        for i in range(low, high):
            f[s.TEMP_A, i] = f[s.LAST, i] / np.sqrt(length)
            along += f[s.TEMP_A, i] * f[s.TEMP_B, i]
            total += f[s.TEMP_B, i] ** 2
        across = 0.0
        for i in range(low, high):
            f[s.TEMP_B, i] -= along * f[s.TEMP_A, i]
            across += f[s.TEMP_B, i] ** 2
        if across <= 1e-12 * total:  # nothing was missed, or it lies on the input's own line: no plane to turn in
            continue
        inside = 0.0
        for i in range(low, high):  # once more: the first pass leaves an error of rounding along TEMP_A
            f[s.TEMP_B, i] /= np.sqrt(across)
            inside += f[s.TEMP_A, i] * f[s.TEMP_B, i]
        norm = 0.0
        for i in range(low, high):
            f[s.TEMP_B, i] -= inside * f[s.TEMP_A, i]
            norm += f[s.TEMP_B, i] ** 2
        for i in range(low, high):
            f[s.TEMP_B, i] /= np.sqrt(norm)
        cosine = np.cos(f[s.MORE, s.RATE])
        sine = np.sin(f[s.MORE, s.RATE])
        for key in range(m[s.INTS, s.KEYS]):
            a = 0.0
            b = 0.0
            for i in range(low, high):
                a += f[row + key, i] * f[s.TEMP_A, i]
                b += f[row + key, i] * f[s.TEMP_B, i]
            da = (cosine - 1.0) * a + sine * b
            db = (cosine - 1.0) * b - sine * a
            for i in range(low, high):
                f[row + key, i] += da * f[s.TEMP_A, i] + db * f[s.TEMP_B, i]


@hook
def blend(m, f, first, head, source, weight, fresh):
    """Add weight * f[source] to the head's score (`fresh`: replace it), standardised over the layer where several add up.

    Standardised: mean 0 and deviation 1 over the layer's experts, since angles, ring places and dot products differ in
    unit. A single transform keeps its own.
    """
    experts = m[s.INTS, s.EXPERTS]
    score = s.SCORE + s.HEAD_ROWS * head
    mean = 0.0
    deviation = 1.0
    if m[s.INTS, s.STANDARD]:
        for e in range(first, first + experts):
            mean += f[source, e]
        mean /= experts
        deviation = 0.0
        for e in range(first, first + experts):
            deviation += (f[source, e] - mean) ** 2
        deviation = np.sqrt(deviation / experts)
        if deviation == 0.0:
            deviation = 1.0
    for e in range(first, first + experts):
        value = weight * (f[source, e] - mean) / deviation
        f[score, e] = value if fresh else f[score, e] + value
