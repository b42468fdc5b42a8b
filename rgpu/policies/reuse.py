"""What a calibration trace says about when an idle expert is needed again: samples at the moments a policy would decide.

Legend: L layers, C count buckets, A age buckets. Time is in passes of a layer; sequences stand alone. A sample is an expert
that was used before in its sequence and is not a member of the event: its age, its fading count of uses (half-life given)
and its gate weight at its last use, and how far its next use is.
"""

from typing import Any

import numpy as np

from rgpu.policies.fading import (
    AGE_BUCKETS,
    EPOCH,
    NOW,
    USE_BUCKETS,
    age_bucket,
    bits,
    even_share,
    grown,
    log2_now,
    start_clock,
    tick,
    use_bucket,
)
from rgpu.policies.loop import compiled

AGE, COUNT, WEIGHT, ONE, DISTANCE = range(5)  # rows and columns of the moments: log2 where it is a count of something


@compiled
def _collect(
    offs, keys, weights, owner, experts, horizon, cap, even, clock, following, whole, real, needed, total, moments
):  # type: ignore[no-untyped-def]
    last, coming, score = whole[0], whole[1], whole[2]  # scratch, a row each
    count, weight, x = real[0], real[1], real[2]
    x[ONE] = 1.0
    events = owner.shape[0]
    start = 0
    while start < events:
        stop = start
        while stop < events and owner[stop] == owner[start]:
            stop += 1
        coming[:] = -1
        for t in range(stop - 1, start - 1, -1):
            for a in range(offs[t], offs[t + 1]):
                following[a] = coming[keys[a]]
                coming[keys[a]] = t
        last[:] = -1
        score[:] = 0
        clock[0, NOW] = 1.0
        clock[0, EPOCH] = 0.0
        for t in range(start, stop):
            tick(clock, 0, t - start + 1)
            for a in range(offs[t], offs[t + 1]):
                key = keys[a]
                last[key] = t
                coming[key] = following[a]
                score[key] = grown(score[key], clock, 0, 1.0)
                count[key] = log2_now(score[key], clock, 0)
                weight[key] = weights[a]
            for key in range(experts):
                if last[key] < 0 or last[key] == t:
                    continue
                age = t - last[key]
                left = stop - 1 - t  # events to come: what lies beyond them is not known
                away = coming[key] - t if coming[key] >= 0 else left + 1
                if coming[key] >= 0 or left >= horizon:
                    total[use_bucket(count[key], even), age_bucket(age)] += 1
                    if away <= horizon:
                        needed[use_bucket(count[key], even), age_bucket(age)] += 1
                if coming[key] >= 0 or left >= cap:
                    x[AGE] = bits(age)
                    x[COUNT] = count[key]
                    x[WEIGHT] = weight[key]
                    x[DISTANCE] = np.log2(min(away, cap))
                    for i in range(5):
                        for j in range(5):
                            moments[i, j] += x[i] * x[j]
        start = stop


def reuse_samples(trace: Any, half_life: int, horizon: int, cap: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(needed, total, moments): float64 [L, C, A] samples needed again within `horizon` passes, and all whose answer the
    sequence holds; float64 [L, 5, 5] sums of products of (AGE, COUNT, WEIGHT, ONE, DISTANCE), distances capped at `cap`."""
    from rgpu.replay.events import (
        build_events,
        pass_groups,
    )  # the events' layout is replay's; nothing else of it is used

    events = build_events(trace, by_layer=True)
    order, starts, numbers = pass_groups(trace)
    owner = np.repeat(np.arange(trace.sequences), np.diff(trace.seq_offsets))[order][starts[:-1]]
    layers, passes = trace.layers, len(numbers)
    needed, total = np.zeros((layers, USE_BUCKETS, AGE_BUCKETS)), np.zeros((layers, USE_BUCKETS, AGE_BUCKETS))
    moments, clock = np.zeros((layers, 5, 5)), np.zeros((1, 1, 8))
    start_clock(clock, 0, half_life)
    experts = trace.header.num_experts
    whole, real = np.zeros((3, experts), np.int64), np.zeros((3, max(5, experts)))
    even = even_share(trace.header.top_k, trace.header.num_experts, half_life)
    for layer in range(layers):
        offs = events.offs[layer * passes : (layer + 1) * passes + 1]
        part = slice(int(offs[0]), int(offs[-1]))
        following = np.empty(part.stop - part.start, np.int64)
        _collect(offs - offs[0], events.keys[part], events.weights[part], owner, experts, horizon, cap, even, clock[0],
                 following, whole, real, needed[layer], total[layer], moments[layer])  # fmt: skip
    return needed, total, moments
