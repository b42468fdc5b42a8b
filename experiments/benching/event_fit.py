"""From timed events to the numbers of a profile: least squares without negative costs, outliers left out.

Legend: P decode passes, L MoE layers, V events, R repeats.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from rgpu.errors import InputError
from rgpu.experiments.benching.live_events import LiveRun, event_counts
from rgpu.replay.timing.facts import pass_facts
from rgpu.runtime.executor import CPU

TIMES = ("wall_P", "waited_P", "dense_PL", "experts_PL", "head_P")
CLEAN, FEWEST = 0.01, 8  # share of a pass that it may have waited; passes of a configuration that must be left
SLOTS = 2  # the column of members that are computed from slots
ROUNDS, OUTLIER = 4, 4.0  # of leaving out what lies further from the fit than so many median absolute residuals


@dataclass(frozen=True, slots=True)
class EventSamples:
    """Float64 [V]: `seconds` of an event without its policy, members computed from slots and from the store, copies
    submitted, times that idle copying was set going, 1 where the event carries hidden states."""

    seconds: np.ndarray
    from_slots: np.ndarray
    from_store: np.ndarray
    copies: np.ndarray
    starts: np.ndarray
    hidden: np.ndarray


@dataclass(frozen=True, slots=True)
class EventCosts:
    """Seconds: an event's fixed part, with hidden states more, a member from its slot, from the store, a copy submitted,
    copying set going; `residual` of the median event, over its time."""

    event_s: float
    hidden_s: float
    expert_s: float
    in_place_s: float
    submit_s: float
    start_s: float
    residual: float


@dataclass(frozen=True, slots=True)
class DenseCosts:
    """Seconds: a layer beside its experts, of that for each pair of token and token of context, a pass once."""

    layer_s: float
    context_s: float
    pass_s: float


def medians(runs: Sequence[LiveRun]) -> LiveRun:
    """Runs of one configuration as one, each time the median of the repeats (which decide the same, event for event). A pass
    that waited for a processor counts in no repeat in which it did; NaN where that leaves none. Where that leaves fewer than
    `FEWEST` passes, each counts in the repeat in which it waited least."""
    first = runs[0]
    share_RP = np.stack([run.waited_P / run.wall_P for run in runs])
    waited_RP = share_RP > CLEAN
    if (~waited_RP.all(0)).sum() < FEWEST:
        waited_RP = share_RP > share_RP.min(0)
    middle = {}
    for name in TIMES:
        times = np.stack([getattr(run, name) for run in runs])
        times[waited_RP] = np.nan
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of passes without a clean repeat
            middle[name] = np.nanmedian(times, 0)
    return LiveRun(first.config, log=first.log, hits=first.hits, trace=first.trace, shape=first.shape, **middle)


def samples_of(run: LiveRun, decide_s: float) -> EventSamples:
    """The events of a run whose members all had a slot, so that each was served in one wave."""
    found = event_counts(run.log, run.shape.layers)
    fits = (found.members < run.config.slots) & np.isfinite(run.experts_PL)
    members, kept, staged = (a[fits].astype(np.float64) for a in (found.members, found.kept, found.staged))
    in_place = run.config.handler == CPU
    missed = kept + staged
    return EventSamples(
        run.experts_PL[fits] - decide_s,
        members - missed if in_place else members,
        missed if in_place else 0 * missed,
        kept if in_place else missed,
        (kept > 0) + (0 if in_place else staged),
        np.full(len(members), float(run.config.hidden)),
    )


def same_members(samples: Sequence[EventSamples]) -> bool:
    """Whether every event has as many members: then they cannot be told from an event's fixed part."""
    return len({float(v) for s in samples for v in np.unique(s.from_slots + s.from_store)}) < 2


def fit_events(samples: Sequence[EventSamples], expert_s: float | None = None) -> EventCosts:
    """What every part of an event takes; `expert_s`: a member from its slot, where that is known. Too few events, or no
    misses among them: `InputError`."""
    whole = EventSamples(*(np.concatenate([getattr(s, n) for s in samples]) for n in EventSamples.__slots__))
    parts = (whole.hidden, whole.from_slots, whole.from_store, whole.copies, whole.starts)
    columns_VC = np.column_stack([np.ones(len(whole.seconds)), *parts])
    if len(columns_VC) < 4 * columns_VC.shape[1] or not (columns_VC.max(0, initial=0.0) > 0).all():
        raise InputError(
            f"calibration: got {len(columns_VC)} events that lack hits, misses in either place or hidden states; expected all "
            "of these; generate more tokens"
        )
    inside = np.ones(len(whole.seconds), bool)
    known_V = whole.from_slots * (expert_s or 0.0)
    free = [c for c in range(columns_VC.shape[1]) if c != SLOTS or expert_s is None]
    found_C = np.full(columns_VC.shape[1], expert_s or 0.0)
    for _ in range(ROUNDS):
        found_C[free], _ = nnls(columns_VC[inside][:, free], (whole.seconds - known_V)[inside])
        off_V = np.abs(columns_VC @ found_C - whole.seconds)
        inside = off_V <= max(OUTLIER * float(np.median(off_V[inside])), 1e-12)
    residual = float(np.median(off_V) / np.median(whole.seconds))
    event_s, hidden_s, expert_s, in_place_s, submit_s, start_s = (float(v) for v in found_C)
    return EventCosts(event_s, hidden_s, expert_s, in_place_s, submit_s, start_s, residual)


def fit_dense(runs: Sequence[LiveRun]) -> DenseCosts:
    """A layer's time over the pairs of token and context of its pass; the first layer and the head as once a pass."""
    pairs = [pass_facts(run.trace).work[1:, 3] for run in runs]
    layer_V = np.concatenate([run.dense_PL[:, 1:].ravel() for run in runs])
    pairs_V = np.concatenate([np.repeat(p, run.dense_PL.shape[1] - 1) for p, run in zip(pairs, runs, strict=True)])
    inside = np.isfinite(layer_V)
    if inside.sum() < 8:
        raise InputError(
            f"calibration: got {inside.sum()} layers timed without waiting; expected more; calibrate on an idle machine"
        )
    columns_VC = np.column_stack([np.ones(len(layer_V)), pairs_V])
    for _ in range(ROUNDS):
        found_C, _ = nnls(columns_VC[inside], layer_V[inside])
        off_V = np.nan_to_num(np.abs(columns_VC @ found_C - layer_V), nan=np.inf)
        inside = off_V <= max(OUTLIER * float(np.median(off_V[inside])), 1e-12)
    once_P = np.concatenate(
        [r.dense_PL[:, 0] + r.head_P - (found_C[0] + found_C[1] * p) for r, p in zip(runs, pairs, strict=True)]
    )
    return DenseCosts(float(found_C[0]), float(found_C[1]), max(0.0, float(np.nanmedian(once_P))))
