"""Fitting a profile of the engine: timings made from known costs give these costs back, whatever a few outliers say."""

from typing import Any

import numpy as np
import pytest

from rgpu.errors import InputError
from rgpu.experiments.benching.copy_timing import split_copy
from rgpu.experiments.benching.event_fit import (
    EventSamples,
    fit_dense,
    fit_events,
    medians,
    same_members,
    samples_of,
)
from rgpu.experiments.benching.live_events import Configuration, LiveRun, event_counts
from rgpu.policies.loop import BYPASS, DEMAND, HIT, PREFETCH
from rgpu.types import MoEShape
from tests.support import routed_trace

COSTS = np.array([90e-6, 12e-6, 40e-6, 50e-6, 10e-6, 60e-6])  # event, hidden, slot, in place, submit, start
LAYERS = 2


def samples(seed: int = 0, n: int = 400, members: int | None = None, outliers: int = 40) -> EventSamples:
    rng = np.random.default_rng(seed)
    total = rng.integers(4, 12, n) if members is None else np.full(n, members)
    missed = rng.integers(0, total + 1)
    in_place = rng.random(n) < 0.4
    store = np.where(in_place, missed, 0)
    hidden = (rng.random(n) < 0.2).astype(float)
    starts = (missed > 0).astype(float)
    columns = np.column_stack([np.ones(n), hidden, total - store, store, missed, starts])
    seconds = columns @ COSTS
    seconds[rng.permutation(n)[:outliers]] += 5e-3
    return EventSamples(seconds, *(columns[:, c].astype(float) for c in (2, 3, 4, 5, 1)))


def found(fit: Any) -> np.ndarray:
    return np.array([fit.event_s, fit.hidden_s, fit.expert_s, fit.in_place_s, fit.submit_s, fit.start_s])


def test_known_costs_come_back_despite_outliers() -> None:
    given = samples()
    assert not same_members([given])
    fit = fit_events([given])
    assert found(fit) == pytest.approx(COSTS, rel=1e-3)
    assert fit.residual < 1e-6


def test_as_many_members_everywhere_need_one_number_from_elsewhere() -> None:
    given = samples(members=4)
    assert same_members([given])
    assert found(fit_events([given], expert_s=float(COSTS[2]))) == pytest.approx(COSTS, rel=1e-3)


def test_no_cost_is_negative() -> None:
    given = samples(outliers=0)
    given.seconds[:] = 90e-6 - 1e-6 * given.copies
    assert (found(fit_events([given])) >= 0).all()


def test_events_that_lack_something_are_refused() -> None:
    given = samples()
    given.hidden[:] = 0
    with pytest.raises(InputError, match="hidden states"):
        fit_events([given])
    with pytest.raises(InputError, match=r"got 3 events"):
        fit_events([EventSamples(*(getattr(samples(), n)[:3] for n in EventSamples.__slots__))])


def run_of(config: Configuration, codes: list[list[int]], layer_s: float = 3e-4, slope_s: float = 2e-6) -> LiveRun:
    """A run of a trace without prompts whose first pass is taken for the prompt's; every event has the codes of its pass."""
    trace = routed_trace(0, tokens=len(codes), layers=LAYERS, experts=16, sequences=1)
    context = np.arange(1, len(codes)) + 1.0
    passes = len(codes) - 1
    dense = np.repeat((layer_s + slope_s * context)[:, None], LAYERS, 1)
    dense[:, 0] += 4e-4
    log = [
        (layer, p, kind, tuple(range(len(own))), tuple(own), (-1,) * len(own))
        for p, own in enumerate(codes)
        for layer in range(LAYERS)
        for kind in (DEMAND, PREFETCH)
    ]
    return LiveRun(
        config, np.full(passes, 0.01), np.zeros(passes), dense, np.full((passes, LAYERS), 5e-4),
        np.full(passes, 6e-4), log, 0, trace,
        MoEShape(LAYERS, 16, 4, expert_bytes=(1000,) * LAYERS),
    )  # fmt: skip


CODES = [[0, 1, 2, 3], [HIT, HIT, 4, BYPASS], [HIT] * 4, [BYPASS] * 4, [HIT] * 9]


def test_events_are_counted_by_what_they_do() -> None:
    counts = event_counts(run_of(Configuration("fifo", 8), CODES).log, LAYERS)
    assert counts.members.tolist() == [[4, 4], [4, 4], [4, 4], [9, 9]]
    assert counts.kept[:, 0].tolist() == [1, 0, 0, 0]
    assert counts.staged[:, 0].tolist() == [1, 0, 4, 0]
    fetch = samples_of(run_of(Configuration("fifo", 8), CODES), 1e-5)
    assert fetch.from_slots.tolist() == [4, 4, 4, 4, 4, 4]  # nine members are more than slots: left out
    assert fetch.copies.tolist() == [2, 2, 0, 0, 4, 4]
    assert fetch.starts.tolist() == [2, 2, 0, 0, 4, 4]
    assert fetch.seconds == pytest.approx(4.9e-4)
    cpu = samples_of(run_of(Configuration("fifo", 8, "cpu", hidden=True), CODES), 0.0)
    assert (cpu.from_slots.tolist(), cpu.from_store.tolist()) == ([2, 2, 4, 4, 0, 0], [2, 2, 0, 0, 4, 4])
    assert (cpu.copies.tolist(), cpu.starts.tolist()) == ([1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0])
    assert cpu.hidden.all()


def test_the_dense_part_is_a_line_over_context() -> None:
    fit = fit_dense([run_of(Configuration("fifo", 8), [[HIT] * 4] * 40)])
    assert fit.layer_s == pytest.approx(3e-4, rel=1e-6)
    assert fit.context_s == pytest.approx(2e-6, rel=1e-6)
    assert fit.pass_s == pytest.approx(1e-3, rel=1e-6)  # the first layer's more, and the head


def test_repeats_become_one_run_of_medians() -> None:
    runs = [run_of(Configuration("fifo", 8), CODES, layer_s=s) for s in (1e-4, 3e-4, 9e-3)]
    assert medians(runs).dense_PL == pytest.approx(runs[1].dense_PL)


def test_a_pass_that_waited_for_others_does_not_calibrate() -> None:
    codes = [[HIT] * 4] * 13
    runs = [run_of(Configuration("fifo", 8), codes, layer_s=s) for s in (1e-4, 3e-4, 9e-3)]
    runs[2].waited_P[:3] = 0.002
    for run in runs:
        run.waited_P[3] = 0.002
    found = medians(runs)
    assert found.dense_PL[:3] == pytest.approx((runs[0].dense_PL + runs[1].dense_PL)[:3] / 2)
    assert np.isnan(found.dense_PL[3]).all()
    assert len(samples_of(found, 0.0).seconds) == 11 * LAYERS
    assert np.isfinite(fit_dense([found]).layer_s)


def test_on_a_machine_that_is_always_busy_the_least_disturbed_repeat_counts() -> None:
    runs = [run_of(Configuration("fifo", 8), CODES, layer_s=s) for s in (1e-4, 3e-4, 9e-3)]
    for run, waited in zip(runs, (0.003, 0.001, 0.002), strict=True):
        run.waited_P[:] = waited
    assert medians(runs).dense_PL == pytest.approx(runs[1].dense_PL)


def test_a_copy_more_in_a_burst_is_bytes_and_latency() -> None:
    copies = np.array([1.0, 2.0, 4.0, 8.0])
    made = split_copy(copies, 50e-6 + 30e-6 * copies, per_byte_s=1e-10, nbytes=200_000)
    assert made.bytes_per_s == pytest.approx(1e10)
    assert made.latency_s == pytest.approx(10e-6)
    none = split_copy(copies, 0 * copies, per_byte_s=-1.0, nbytes=200_000)
    assert none.latency_s >= 0 and np.isfinite(none.bytes_per_s)
