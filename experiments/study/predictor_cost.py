"""What a forecast costs: microseconds measured an event, and what the fitted predictor reads, computes and holds."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

import numpy as np

from rgpu.replay.stream import routing_events, tell
from rgpu.traces.trace import Trace

EVENTS = 600  # timed, after a tenth of them unmeasured
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
    """Step a fitted predictor through the first decoding events of a batch-1 trace, as a live run would.

    Events are materialised first, so what is timed is the predictor. The clock is wall time: on a busy machine read
    `us_lo`, the fastest tenth.
    """
    made = []
    for event in routing_events(trace):
        made.append(event)
        if len(made) >= events + events // 10:
            break
    tell(predictor, trace)
    predictor.reset()
    warm = len(made) // 11
    for event in made[:warm]:
        predictor.observe(event)
        predictor.predict()
    timed = made[warm:]
    spans = []
    for chunk in np.array_split(np.arange(len(timed)), min(CHUNKS, len(timed))):
        begin = clock()
        for i in chunk:
            predictor.observe(timed[i])
            predictor.predict()
        spans.append((clock() - begin) / len(chunk) * 1e6)
    predictor.reset()
    work = [predictor.work(layer) if hasattr(predictor, "work") else None for layer in range(trace.layers)]
    counted = [w for w in work if w is not None]
    said = np.mean(counted, axis=0) if len(counted) == trace.layers else None
    tensors = getattr(predictor, "tensors_", {}).values()
    return Cost(
        us=round(float(np.median(spans)), 2),
        us_lo=round(min(spans), 2),
        us_hi=round(max(spans), 2),
        events=len(timed),
        bytes_read=None if said is None else float(said[0]),
        flops=None if said is None else float(said[1]),
        parameters=int(sum(t.size for t in tensors if t.dtype.kind == "f")),
        state_bytes=int(sum(t.nbytes for t in tensors)),
    )
