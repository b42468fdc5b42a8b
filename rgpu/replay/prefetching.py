"""Replay with a predictor and a planner, into a decision log that every machine is timed from.

The decisions are the live ones: the same controller makes them, event by event. Legend: V events, A accesses, P passes,
H rows of a forecast, E experts, L MoE layers, S stretches between two resets.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from rgpu.contracts import Forecast, Planner, Predictor
from rgpu.errors import InputError, TraceError
from rgpu.policies.loop import (
    COLD,
    COUNTS,
    DEMAND_LOADS,
    FILL,
    FILL_LOADS,
    HITS,
    LOADED_BYTES,
    PREFETCH_HITS,
    PROACTIVE_LOADS,
    WASTED,
)
from rgpu.policies.policy import Policy
from rgpu.replay.controller import Controller
from rgpu.replay.decision import Decision
from rgpu.replay.engine import ReplayResult
from rgpu.replay.events import build_events, pass_groups
from rgpu.replay.log import DecisionLog
from rgpu.replay.pool import PoolConfig, lay_out
from rgpu.replay.prediction import speaking_passes
from rgpu.replay.resets import segments
from rgpu.replay.stream import routing_events, tell
from rgpu.traces.trace import Trace
from rgpu.types import RoutingEvent


@dataclass(frozen=True, slots=True)
class Prefetched:
    """`decisions` of the run, and `counts` int64 [S, COUNTS]: the loop's counters of each stretch (`policies.state`)."""

    decisions: DecisionLog
    counts: np.ndarray


class RecordedForecasts:
    """What `predictor` forecasts on a batch-1 trace, made layer by layer at once and given out again event by event.

    Bit for bit what its own observe and predict give (a contract of every predictor that has `predict_trace`), so that many
    planners and pools are judged on one prediction. float32 [P, H, E] a layer is held. `lead`: MoE layers that a forecast
    comes too late for: rows of this pass nearer than that are left out (1: none).
    """

    def __init__(self, predictor: Any, trace: Trace, lead: int = 1) -> None:
        if lead < 1:
            raise InputError(f"lead: got {lead}; expected layers from 1; set lead=1")
        self.name = str(predictor.name)
        self.needs = tuple(getattr(predictor, "needs", ()))  # says when a forecast can be made
        rows_P, sequence_P = speaking_passes(trace)
        first_P = np.r_[True, sequence_P[1:] != sequence_P[:-1]]
        self._targets: list[tuple[np.ndarray, np.ndarray]] = []
        self._probs_L: list[np.ndarray] = []
        for layer in range(trace.layers):
            layers, ahead = predictor.targets(layer)
            kept = (ahead > 0) | (layers >= layer + lead)
            self._targets.append((layers[kept], ahead[kept]))
            self._probs_L.append(predictor.predict_trace(trace, layer, rows_P, first_P)[:, kept])
        self._pass = {int(number): p for p, number in enumerate(trace.passes[rows_P])}
        self._at = (0, 0)

    def reset(self) -> None:
        """Nothing to forget: forecasts are looked up by pass."""

    def observe(self, event: RoutingEvent) -> None:
        self._at = (event.layer, self._pass[event.pass_id])

    def predict(self) -> Forecast:
        layer, p = self._at
        layers, ahead = self._targets[layer]
        return Forecast(layers, ahead, self._probs_L[layer][p])


class NoPrefetch:
    """The planner that loads nothing: what a run without prefetch does, whatever is forecast."""

    width = 0

    def plan(self, forecast: Forecast, resident_LE: np.ndarray) -> list[Any]:
        return []


def replay_prefetch(
    trace: Trace, policy: Policy, pool: PoolConfig, predictor: Predictor, planner: Callable[[], Planner], *,
    reset: str = "sequence", calibration: Trace | None = None, seed: int = 0, touch_order: str = "rank",
) -> Prefetched:  # fmt: skip
    """Drive a fitted predictor and planners (a new one for each stretch) through `trace`, pools emptied as `reset` says.

    The predictor is reset at every sequence. Raises InputError or TraceError on what cannot be replayed.
    """
    events = build_events(trace, scope=pool.scope, touch_order=touch_order)
    if not len(events.keys):
        raise TraceError("replay: got a trace without any recorded expert; expected at least one routed token")
    bounds = segments(trace, reset) * trace.layers
    starts = set(_sequence_starts(trace).tolist())
    layout = lay_out(pool, policy, trace.shape)
    codes, victims = np.empty(len(events.keys), np.int32), np.empty(len(events.keys), np.int32)
    counts = np.zeros((len(bounds) - 1, COUNTS), np.int64)
    proactive: list[np.ndarray] = [np.zeros((0, 5), np.int64)]
    fills: list[np.ndarray] = [np.zeros((0, 5), np.int64)]
    controller: Controller | None = None
    stretch = -1
    tell(predictor, trace)
    for e, event in enumerate(routing_events(trace)):
        if e == bounds[stretch + 1]:
            stretch += 1
            controller = Controller(
                policy, trace.shape, pool, predictor=predictor, planner=planner(), calibration=calibration, seed=seed,
                touch_order=touch_order, keep_log=False,
            )  # fmt: skip
            fills += [_rows(e, made, layout.base) for made in controller.start()]
        assert controller is not None
        if event.layer == 0 and e // trace.layers in starts:
            predictor.reset()
        made = controller.observe(event)
        at = slice(int(events.offs[e]), int(events.offs[e + 1]))
        codes[at], victims[at] = made.codes, made.victims
        proactive += [_rows(e, loads, layout.base) for loads in controller.ahead()]
        counts[stretch] = controller.counts
    log = DecisionLog(
        policy.name, events, layout, codes, victims, np.concatenate(proactive), np.concatenate(fills), bounds
    )
    return Prefetched(log, counts)


def _rows(event: int, made: Decision, base: np.ndarray) -> np.ndarray:
    """Rows of a log for what was loaded; what was resident already, or found no slot, is no load."""
    loaded = made.codes >= 0
    keys = base[made.layers[loaded]].astype(np.int64) + made.experts[loaded]
    n = len(keys)
    victims = np.full(n, -1) if made.kind == FILL else made.victims[loaded]
    return np.column_stack([np.full(n, event), np.full(n, made.pool), keys, made.slots[loaded], victims]).astype(
        np.int64
    )


def _sequence_starts(trace: Trace) -> np.ndarray:
    """Numbers of the passes in which a sequence begins."""
    order, starts, _ = pass_groups(trace)
    owner = np.repeat(np.arange(trace.sequences), np.diff(trace.seq_offsets))[order][starts[:-1]]
    return np.flatnonzero(np.r_[True, owner[1:] != owner[:-1]])


def as_result(found: Prefetched, trace: Trace, seconds: float) -> ReplayResult:
    """The same as what a bulk replay returns; `seconds` of deciding, forecasts included."""
    log = found.decisions
    events, layout = log.events, log.layout
    hits_V = np.add.reduceat(log.hit, events.offs[:-1], dtype=np.int32)
    members_V = np.diff(events.offs)
    hits_V[members_V == 0] = 0
    room = (np.asarray(layout.main) + layout.staging)[events.pool]
    decode, total = events.decode, found.counts.sum(0)
    measured = trace.phase is not None and members_V[decode].sum() > 0
    pending = int(total[PROACTIVE_LOADS] - total[PREFETCH_HITS] - total[WASTED])
    return ReplayResult(
        log.policy, layout.scope, layout.slots, len(log.codes), events.assignments, int(total[HITS]), int(total[PREFETCH_HITS]),
        int(total[COLD]), int(total[DEMAND_LOADS]), int(total[PROACTIVE_LOADS]), int(total[FILL_LOADS]), int(total[WASTED]),
        pending, int(total[LOADED_BYTES]) if layout.size_of.all() else None, int((members_V > room).sum()),
        float(hits_V[decode].sum() / members_V[decode].sum()) if measured else None, seconds, events, hits_V, found.counts,
        decisions=log,
    )  # fmt: skip
