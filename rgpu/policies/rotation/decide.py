"""One decision of the rotary family, put together: what happens at an event before hits and misses are served.

A pool is one rotation domain. In `per_layer` every event decides for its own layer. In `grouped` and `synchronised` the
domain's first layer decides once a token for all its layers, from its own input; the others follow. `switching` does
the latter while the hit rate is good and the former while it is not, each with signatures
taken in the input that it reads.
"""

from rgpu.policies.loop import hook
from rgpu.policies.rotation import state as s
from rgpu.policies.rotation.adaptive import adapt, allowance, observe, storm
from rgpu.policies.rotation.memory import favour, recall, save
from rgpu.policies.rotation.projection import blend, project, sum_heads, turn
from rgpu.policies.rotation.ring import by_phase, by_shift, phase_of
from rgpu.policies.rotation.spaces import exchange
from rgpu.policies.rotation.trajectory import by_trajectory, remember


@hook
def score(m, f, first, feature):
    """Scores of one layer's experts in every head, and how many of its slots may change."""
    kinds = m[s.INTS, s.TRANSFORMS]
    allowed = allowance(m, f, first)
    m[s.LEFT, first] = allowed
    if kinds != s.TRAJECTORIES or m[s.INTS, s.DEPTH] > 0:
        project(m, f, first, feature)
    back = -1
    if m[s.INTS, s.DEPTH] > 0:
        save(m, first)
        sum_heads(m, f, first)
        back = recall(m, f, first)
    for h in range(m[s.INTS, s.HEADS]):
        fresh = True
        theta = 0.0
        if kinds & (s.PHASE_ROTATION | s.CYCLIC):
            theta = phase_of(m, f, first, h)
        if kinds & s.PROJECTION:
            if m[s.INTS, s.STANDARD]:
                blend(m, f, first, h, s.SCORE + s.HEAD_ROWS * h, f[s.NUMBERS, s.WEIGHT_PROJECTION], True)
            fresh = False
        if kinds & s.PHASE_ROTATION:
            by_phase(m, f, first, h, theta)
            blend(m, f, first, h, s.SCRATCH, f[s.NUMBERS, s.WEIGHT_PHASE], fresh)
            fresh = False
        if kinds & s.CYCLIC:
            by_shift(m, f, first, h, theta, allowed)
            blend(m, f, first, h, s.SCRATCH, f[s.NUMBERS, s.WEIGHT_CYCLIC], fresh)
            fresh = False
        if kinds & s.TRAJECTORIES:
            by_trajectory(m, f, first)
            blend(m, f, first, h, s.SCRATCH, f[s.NUMBERS, s.WEIGHT_TRAJECTORY], fresh)
        f[s.THETA, first + h] = theta
    if back >= 0:
        favour(m, f, first, back)
        m[s.LEFT, first] = max(allowed, m[s.INTS, s.RETURN_STEP])


@hook
def decide(m, f, keys, weights, feature):
    """`on_event`: observe the event, and where this layer decides, score every layer it decides for."""
    m[s.LIVE, s.PHASE] = s.NO_PHASE
    m[s.LIVE, s.FROM] = 0
    m[s.LIVE, s.TO] = 0
    if keys.shape[0] == 0:
        return
    experts = m[s.INTS, s.EXPERTS]
    first = keys[0] // experts * experts
    observe(m, f, first, keys, weights)
    if m[s.INTS, s.TRANSFORMS] & s.TRAJECTORIES:
        remember(m, f, first, keys, weights)
    if first == 0:
        if m[s.INTS, s.ONLINE] and (f[s.NOW, s.HIT_RATE] < f[s.MORE, s.ONLINE_BELOW] or storm(m, first)):
            turn(m, f, keys, feature.shape[0])
        adapt(m, f, first, feature)
        for i in range(feature.shape[0]):
            f[s.LAST, i] = feature[i]
        mode = m[s.INTS, s.SHARED]
        good = f[s.NOW, s.HIT_RATE] >= f[s.MORE, s.SWITCH_BELOW]
        m[s.LIVE, s.JOINT] = mode == s.TOGETHER or (mode == s.SWITCHING and good)
        if mode == s.SWITCHING and m[s.LIVE, s.JOINT] != m[s.LIVE, s.USED]:
            exchange(m, f)
    together = m[s.LIVE, s.JOINT]
    if together and first > 0:
        return
    m[s.LIVE, s.FROM] = first
    m[s.LIVE, s.TO] = m[s.INTS, s.KEYS] if together else first + experts
    for layer in range(m[s.LIVE, s.FROM], m[s.LIVE, s.TO], experts):
        score(m, f, layer, feature)
