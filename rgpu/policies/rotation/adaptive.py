"""Adaptive controls: step, cycle length and window, from distance, entropy, hit rate, misses in a row and divergence.

Source: KR 10-2026-0070380, claims 6, 7 and 10, [0076], [0077], [0085], [0105]. Precedence is ours: distance sets the
step, a surge of entropy adds to it, a storm of misses raises it to the high step, a good hit rate shrinks it last.
"""

import numpy as np

from rgpu.policies.loop import EVENT, REG, SLOT_OF, hook
from rgpu.policies.rotation import state as s
from rgpu.policies.rotation.trajectory import divergence, share


@hook
def observe(m, f, first, keys, weights):
    """Hit rate and entropy of the event, averaged over the pool; misses in a row of the layer."""
    hits = 0
    entropy = 0.0
    for j in range(keys.shape[0]):
        hits += m[SLOT_OF, keys[j]] >= 0
        p = share(weights, j)
        if p > 0.0:
            entropy -= p * np.log(p)
    entropy /= np.log(max(2, m[s.INTS, s.EXPERTS]))
    m[s.MISSES, first] = 0 if hits == keys.shape[0] else m[s.MISSES, first] + 1
    rate = 1.0 if m[REG, EVENT] == 1 else 1.0 / f[s.MORE, s.AVERAGE]
    f[s.NOW, s.USUAL_ENTROPY] += rate * (entropy - f[s.NOW, s.USUAL_ENTROPY])
    f[s.NOW, s.HIT_RATE] += rate * (hits / keys.shape[0] - f[s.NOW, s.HIT_RATE])
    f[s.NOW, s.ENTROPY] = entropy


@hook
def storm(m, first):
    """Whether the layer has missed in so many events running that controls should change."""
    return m[s.INTS, s.STORM] > 0 and m[s.MISSES, first] >= m[s.INTS, s.STORM]


@hook
def distance(f, feature):
    """Cosine distance to the last input; -1 before there is one."""
    both = 0.0
    now = 0.0
    last = 0.0
    for i in range(feature.shape[0]):
        x = np.float64(feature[i])
        both += x * f[s.LAST, i]
        now += x * x
        last += f[s.LAST, i] ** 2
    return 1.0 - both / np.sqrt(now * last) if now > 0.0 and last > 0.0 else -1.0


@hook
def adapt(m, f, first, feature):
    """Step, cycle and window for the coming decision."""
    adaptive = m[s.INTS, s.ADAPTIVE]
    step = f[s.NUMBERS, s.STEP]
    surge = f[s.NOW, s.ENTROPY] > f[s.NUMBERS, s.ENTROPY_SURGE] * f[s.NOW, s.USUAL_ENTROPY]
    if adaptive & s.STEP_BIT:
        change = distance(f, feature)
        f[s.NOW, s.DISTANCE] = change
        if change >= f[s.NUMBERS, s.DISTANCE_HIGH]:
            step = f[s.NUMBERS, s.STEP_HIGH]
        elif 0.0 <= change <= f[s.NUMBERS, s.DISTANCE_LOW]:
            step = f[s.NUMBERS, s.STEP_LOW]
        if surge:
            step += f[s.NUMBERS, s.STEP_SURGE]
        if storm(m, first):
            step = max(step, f[s.NUMBERS, s.STEP_HIGH])
        if f[s.NOW, s.HIT_RATE] >= f[s.NUMBERS, s.HIT_RATE_HIGH]:
            step *= f[s.NUMBERS, s.HIT_RATE_SCALE]
    f[s.NOW, s.STEP_NOW] = step
    cycle = m[s.LIVE, s.CYCLE]
    if adaptive & s.CYCLE_BIT and cycle > 0:
        apart = f[s.NOW, s.ENTROPY] - f[s.NOW, s.USUAL_ENTROPY]
        if apart > f[s.MORE, s.CYCLE_ENTROPY]:
            cycle += 1
        elif apart < -f[s.MORE, s.CYCLE_ENTROPY]:
            cycle = max(1, cycle - 1)
    m[s.LIVE, s.CYCLE_NOW] = cycle
    if adaptive & s.WINDOW_BIT and m[s.INTS, s.TRANSFORMS] & s.TRAJECTORIES:
        f[s.NOW, s.DIVERGENCE] = divergence(m, f, first)
        fast = f[s.NOW, s.DIVERGENCE] >= f[s.MORE, s.KL]
        m[s.LIVE, s.WINDOW] = np.int64(f[s.MORE, s.SHORT_WINDOW] if fast else f[s.MORE, s.LONG_WINDOW])


@hook
def allowance(m, f, first):
    """Whole slots the layer may change now; the fraction left over is saved up."""
    step = f[s.NOW, s.STEP_NOW]
    if step < 0.0:
        return m[s.INTS, s.EXPERTS]
    saved = f[s.PARTIAL, first] + step
    whole = np.int64(np.floor(saved))
    f[s.PARTIAL, first] = saved - whole
    return whole
