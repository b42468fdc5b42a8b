"""Scores that fade with a half-life, as whole numbers whose order stands still between uses: nothing is ever swept.

Forward decay (Cormode et al. 2009, "Forward decay: a practical time decay model for streaming systems"): new uses grow
instead of old ones fading. A score is an exponent and 40 bits, so it never overflows and compares as it is.
"""

import numpy as np

from rgpu.policies.hooks import lean
from rgpu.policies.loop import EVENT, REG

FADE_BITS = 40
FADE_ONE = 1 << FADE_BITS
FADE_BIAS = 64  # keeps the exponent of small amounts positive, so that 0 stays below every score
NOW, STEP, LIFE, EPOCH = range(4)  # columns of a clock's row of f


@lean
def tick(f, row, time):
    """Advance the clock of fading scores by one to `time`: what is added now weighs 2 ** (time / half-life)."""
    if time == f[row, LIFE] * (f[row, EPOCH] + 1.0):  # exactly 1 at each epoch: rounding does not pile up
        f[row, NOW] = 1.0
        f[row, EPOCH] += 1.0
    else:
        f[row, NOW] *= f[row, STEP]


@lean
def tick_pass(m, f, row, layers):
    """`tick` once a pass, in a pool of so many layers that sees an event of each."""
    event = m[REG, EVENT]
    if layers == 1:
        tick(f, row, event)
    elif (event - 1) % layers == 0:
        tick(f, row, (event - 1) // layers + 1)


@lean
def grown(score, f, row, amount):
    """A fading score after `amount` (>= 0) was added now: a whole number (exponent, 40 bits) that compares as it is."""
    epoch = int(f[row, EPOCH])
    exponent = epoch
    whole = int(amount * f[row, NOW] * FADE_ONE)
    if score > 0:
        exponent = (score >> FADE_BITS) - FADE_BIAS
        old = (score & (FADE_ONE - 1)) + FADE_ONE
        if exponent <= epoch:
            whole += old >> min(epoch - exponent, 62)
            exponent = epoch
        else:
            whole = old + (whole >> min(exponent - epoch, 62))
    if whole == 0:
        return score
    while whole >= 2 * FADE_ONE:
        whole >>= 1
        exponent += 1
    while whole < FADE_ONE:
        whole <<= 1
        exponent -= 1
    return ((exponent + FADE_BIAS) << FADE_BITS) | (whole - FADE_ONE)


@lean
def log2_now(score, f, row):
    """log2 of what a fading score is worth now, straight between powers of two; 0 where nothing was ever added."""
    if score <= 0:
        return 0.0
    exponent = (score >> FADE_BITS) - FADE_BIAS - f[row, EPOCH]
    part = (1.0 + (score & (FADE_ONE - 1)) / FADE_ONE) / f[row, NOW]
    if part < 1.0 - 1e-9:  # what the 40 bits lost must not push a whole number of uses under it
        exponent -= 1.0
        part *= 2.0
    return exponent + max(part, 1.0) - 1.0


def start_clock(f: np.ndarray, row: int, half_life: int) -> None:
    """Set up a clock in row `row` of every pool's f."""
    f[:, row, [NOW, STEP, LIFE, EPOCH]] = 1.0, 2.0 ** (1.0 / half_life), half_life, 0.0


@lean
def bits(n):
    """floor(log2(n)) of n >= 1."""
    count = 0
    while n > 1:
        n >>= 1
        count += 1
    return count


# By log2, rounded down: a count is under half, under, over or over twice what an even share of uses would give; an age is
# 1, 2-3, .. 64 on.
USE_BUCKETS, AGE_BUCKETS = 4, 7


@lean
def use_bucket(log2_count, log2_even):
    return max(0, min(USE_BUCKETS - 1, int(np.floor(log2_count - log2_even)) + 2))


@lean
def age_bucket(age):
    return min(AGE_BUCKETS - 1, bits(max(1, age)))


def even_share(top_k: int, experts: int, half_life: int) -> float:
    """log2 of the fading count of an expert used as often as every other, for one token a pass; at least 1 use."""
    return float(np.log2(max(1.0, top_k / experts * half_life / np.log(2.0))))
