"""What a forecast costs: microseconds measured an event, and what the fitted predictor reads, computes and holds."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import islice
from time import perf_counter
from typing import Any

import numpy as np

from rgpu.replay.events import pass_groups
from rgpu.replay.stream import routing_events, tell
from rgpu.traces.trace import DECODE, Trace
from rgpu.types import RoutingEvent

EVENTS = 600  # of decoding, timed after a tenth as many unmeasured
CHUNKS = 10


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one event: `us` median over chunks of observe and predict on one thread, `us_lo` and `us_hi` the fastest and
    slowest chunk. `bytes_read` and `flops` of one forecast from one row, mean over layers; None where the predictor does
    not say (`BasePredictor.work`). `parameters`, `state_bytes`: of the fitted tensors."""

    us: float
    us_lo: float
    us_hi: float
    events: int
    bytes_read: float | None
    flops: float | None
    parameters: int
    state_bytes: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def cost_of(predictor: Any, trace: Trace, events: int = EVENTS, clock: Callable[[], float] = perf_counter) -> Cost:
    """Step a fitted predictor through a batch-1 trace as a live run would, reset at each sequence, and time the first
    `events` of decoding after a tenth as many to warm up. Prompts are shown to it, not timed, unless nothing decodes.

    Events are materialised first and each pass is timed on its own, so what is timed is the predictor. The clock is wall
    time: on a busy machine read `us_lo`, the fastest tenth.
    """
    made = _passes(trace, events + events // 10)
    tell(predictor, trace)
    timed: list[tuple[int, float]] = []
    for first, counts, own in made:
        if first:
            predictor.reset()
        begin = clock()
        for event in own:
            predictor.observe(event)
            predictor.predict()
        if counts:
            timed.append((len(own), clock() - begin))
    predictor.reset()
    count_P, seconds_P = np.array(timed[len(timed) // 11 :]).T
    chunks = np.array_split(np.arange(len(count_P)), min(CHUNKS, len(count_P)))
    spans = [float(seconds_P[chunk].sum() / count_P[chunk].sum() * 1e6) for chunk in chunks]
    work = [predictor.work(layer) if hasattr(predictor, "work") else None for layer in range(trace.layers)]
    counted = [w for w in work if w is not None]
    said = np.mean(counted, axis=0) if len(counted) == trace.layers else None
    tensors = getattr(predictor, "tensors_", {}).values()
    return Cost(
        us=round(float(np.median(spans)), 2),
        us_lo=round(min(spans), 2),
        us_hi=round(max(spans), 2),
        events=int(count_P.sum()),
        bytes_read=None if said is None else float(said[0]),
        flops=None if said is None else float(said[1]),
        parameters=int(sum(t.size for t in tensors if t.dtype.kind == "f")),
        state_bytes=int(sum(t.nbytes for t in tensors)),
    )


def _passes(trace: Trace, events: int) -> list[tuple[bool, bool, list[RoutingEvent]]]:
    """Passes up to `events` that count: (begins a sequence, counts, its events). Without decoding all of them count."""
    order, starts, _ = pass_groups(trace)
    sequence_P = np.repeat(np.arange(trace.sequences), np.diff(trace.seq_offsets))[order][starts[:-1]]
    first_P = np.r_[True, sequence_P[1:] != sequence_P[:-1]]
    counts_P = np.ones(len(first_P), bool)
    if trace.phase is not None and (trace.phase == DECODE).any():
        counts_P = np.logical_or.reduceat(trace.phase[order] == DECODE, starts[:-1])
    last = int(np.searchsorted(np.cumsum(counts_P) * trace.layers, events))
    flow = routing_events(trace)
    return [
        (bool(first_P[p]), bool(counts_P[p]), list(islice(flow, trace.layers)))
        for p in range(min(last + 1, len(first_P)))
    ]
