"""Replay with a predictor: the live controller's decisions as a log, counted, timed, and every load followed to its end."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from rgpu.errors import InputError
from rgpu.planning.threshold import Threshold
from rgpu.planning.top_k import TopK
from rgpu.policies.loop import DEMAND_LOADS, HITS, PREFETCH_HITS, PROACTIVE_LOADS, WASTED
from rgpu.policies.lru import Lru
from rgpu.policies.static_hot import StaticHot
from rgpu.replay.audit import audit
from rgpu.replay.controller import Controller, replay_events
from rgpu.replay.engine import replay
from rgpu.replay.log import DecisionLog
from rgpu.replay.log_file import LogFile
from rgpu.replay.pool import PoolConfig, lay_out
from rgpu.replay.prefetch_outcome import PENDING, USEFUL, outcomes
from rgpu.replay.prefetch_outcome import WASTED as GONE
from rgpu.replay.prefetching import NoPrefetch, RecordedForecasts, as_result, replay_prefetch
from rgpu.replay.stream import routing_events
from rgpu.replay.timing.cost import experts_only
from rgpu.replay.timing.facts import pass_facts
from rgpu.replay.timing.link import AHEAD, GPU_TRACK, LINK_TRACK
from rgpu.replay.timing.link import EXPERTS as COMPUTED
from rgpu.replay.timing.machine import Machine
from rgpu.replay.timing.simulate import Window, simulate
from rgpu.traces.trace import Trace
from tests.clocks import cost_of_layers, machine
from tests.predicting import EXPERTS, TOP_K, learnable_trace, make

POOLS = [PoolConfig(slots=3), PoolConfig("global", 13)]


@pytest.fixture(scope="module")
def trace() -> Trace:
    return learnable_trace()


@pytest.fixture
def predictor(trace: Trace, tmp_path: Any) -> Any:
    return make("gate_lookahead", tmp_path).fit(trace)


@pytest.mark.parametrize("pool", POOLS)
def test_without_loads_it_is_the_bulk_replay(trace: Trace, predictor: Any, pool: PoolConfig) -> None:
    found = replay_prefetch(trace, Lru(), pool, predictor, NoPrefetch)
    whole = replay(trace, Lru(), pool, reset="sequence", by_sequence=True, decisions=True)
    assert whole.decisions is not None
    assert np.array_equal(found.counts[:, :WASTED], whole.pieces[:, :WASTED])
    for name in ("codes", "victims", "proactive", "fills", "stretches"):
        assert np.array_equal(getattr(found.decisions, name), getattr(whole.decisions, name)), name
    one, other = as_result(found, trace, 1.0).to_json(), whole.to_json()
    assert {k: v for k, v in one.items() if k != "accesses_per_s"} == {
        k: v for k, v in other.items() if k != "accesses_per_s"
    }
    assert np.array_equal(as_result(found, trace, 1.0).hits_event, whole.hits_event)
    filled = replay_prefetch(trace, StaticHot(), pool, predictor, NoPrefetch, calibration=trace)
    hot = replay(trace, StaticHot(), pool, reset="sequence", calibration=trace, decisions=True).decisions
    assert hot is not None and np.array_equal(filled.decisions.fills, hot.fills)


@pytest.mark.parametrize("pool", POOLS)
def test_decisions_are_the_controllers(trace: Trace, predictor: Any, pool: PoolConfig) -> None:
    one = trace.select(np.array([2]))
    predictor.reset()
    live = Controller(Lru(), one.shape, pool, predictor=predictor, planner=TopK(2, horizon=2, next_token=True))
    replay_events(live, routing_events(one))
    found = replay_prefetch(one, Lru(), pool, predictor, lambda: TopK(2, horizon=2, next_token=True), reset="none")
    demand = [entry for entry in live.log if entry[2] == 0]
    assert found.decisions.codes.tolist() == [code for entry in demand for code in entry[4]]
    loads = [c for entry in live.log if entry[2] != 0 for c in entry[4] if c >= 0]
    assert found.decisions.proactive[:, 3].tolist() == loads
    assert np.array_equal(found.counts.sum(0)[:WASTED], live.counts[:WASTED])


@pytest.mark.parametrize("name", ["gate_lookahead", "previous_token", "popularity"])
def test_recorded_forecasts_decide_as_the_predictor_itself(trace: Trace, tmp_path: Any, name: str) -> None:
    predictor = make(name, tmp_path).fit(trace)
    pair = [
        replay_prefetch(trace, Lru(), POOLS[0], p, lambda: Threshold(0.3, horizon=2))
        for p in (predictor, RecordedForecasts(predictor, trace))
    ]
    assert np.array_equal(pair[0].decisions.codes, pair[1].decisions.codes)
    assert np.array_equal(pair[0].decisions.proactive, pair[1].decisions.proactive)
    assert pair[0].counts[:, PROACTIVE_LOADS].sum() > 0


@pytest.mark.parametrize("pool", POOLS)
def test_a_planner_that_asks_is_told_its_room_before_all_else(trace: Trace, predictor: Any, pool: PoolConfig) -> None:
    calls: list[str] = []
    most = lay_out(pool, Lru(), trace.shape)

    class Asking(TopK):
        def told(self, slots: Any, pool_of: Any) -> None:
            calls.append("told")
            assert list(slots) == list(most.main) and np.array_equal(pool_of, most.pool_of)

        def plan(self, forecast: Any, resident_LE: np.ndarray) -> Any:
            calls.append("plan")
            return super().plan(forecast, resident_LE)

    replay_prefetch(trace, Lru(), pool, predictor, lambda: Asking(2))
    assert calls[0] == "told" and calls[1] == "plan" and calls.count("told") == trace.sequences


@pytest.mark.parametrize("pool", POOLS)
def test_loads_end_as_counted_and_the_log_is_legal_and_timed(trace: Trace, predictor: Any, pool: PoolConfig) -> None:
    found = replay_prefetch(trace, Lru(), pool, predictor, lambda: TopK(3))
    shadow = replay_prefetch(trace, Lru(), pool, predictor, NoPrefetch).decisions
    ended, total = outcomes(found.decisions, shadow), found.counts.sum(0)
    sums = ended.counts()
    assert sums["useful"] == total[PREFETCH_HITS] == (ended.used >= 0).sum() > 0
    assert sums["wasted"] == total[WASTED] > 0
    assert sums["useful"] + sums["wasted"] + sums["pending"] == total[PROACTIVE_LOADS] == len(found.decisions.proactive)
    assert 0 < sums["harmful"] <= total[DEMAND_LOADS]
    assert total[HITS] + total[DEMAND_LOADS] == len(found.decisions.codes)
    assert audit(LogFile(found.decisions, EXPERTS)).problem is None
    machine = Machine(name="m", bytes_per_s=1e9, launch_s=1e-6, link_bytes_per_s=1e8)
    timing = simulate(
        found.decisions, pass_facts(trace), machine, experts_only(trace.layers, tuple(trace.header.expert_bytes)), TOP_K
    ).summary()
    moved = [timing[f"bytes_{n}"] for n in ("useful", "late", "wasted", "cancelled", "pending")]
    assert sum(moved) == 64 * total[PROACTIVE_LOADS] and timing["bytes_late"] > 0


def naive(log: DecisionLog, shadow: DecisionLog) -> Iterator[tuple[int, bool]]:
    """(end, harmful) of each load by looking ahead from it through the rest of its stretch, the slow way."""
    for row, (event, pool, key, _, victim) in enumerate(log.proactive.tolist()):
        last = int(log.stretches[log.stretches > event][0])
        end, harm = PENDING, False
        rest = list(_story(log, row, event, last))
        for what, own, which, _ in rest:
            if own == pool and which == key:
                end = USEFUL if what == "use" else GONE
                break
        for what, own, which, at in rest if victim >= 0 else []:
            if own == pool and which == victim:
                harm = what == "use" and log.codes[at] not in (-1, -5) and bool(shadow.hit[at])
                break
            if what == "load" and (own, which) == (pool, victim):
                break
        yield end, harm


def _story(log: DecisionLog, row: int, event: int, last: int) -> Iterator[tuple[str, int, int, int]]:
    """Uses, loads and evictions after a proactive load, in order."""
    events, table = log.events, log.proactive.tolist()
    nxt = row + 1
    for e in range(event, last):
        if e > event:
            span = range(int(events.offs[e]), int(events.offs[e + 1]))
            for a in span:
                yield "use", int(events.pool[e]), int(events.keys[a]), a
            for a in span:
                if log.codes[a] >= 0 and log.victims[a] >= 0:
                    yield "gone", int(events.pool[e]), int(log.victims[a]), a
        while nxt < len(table) and table[nxt][0] == e:
            if table[nxt][4] >= 0:
                yield "gone", table[nxt][1], table[nxt][4], -1
            yield "load", table[nxt][1], table[nxt][2], -1
            nxt += 1


@pytest.mark.parametrize("pool", [PoolConfig(slots=2), PoolConfig(slots=3), PoolConfig("global", 9)])
@pytest.mark.parametrize("seed", [0, 1])
def test_outcomes_agree_with_looking_ahead(tmp_path: Any, pool: PoolConfig, seed: int) -> None:
    trace = learnable_trace(seed, sequences=3, tokens=20)
    predictor = make("previous_token", tmp_path).fit(trace)
    log = replay_prefetch(trace, Lru(), pool, predictor, lambda: TopK(2, horizon=2, next_token=True)).decisions
    shadow = replay_prefetch(trace, Lru(), pool, predictor, NoPrefetch).decisions
    got = outcomes(log, shadow)
    expected = list(naive(log, shadow))
    assert got.ended.tolist() == [end for end, _ in expected]
    assert got.harmful.tolist() == [harm for _, harm in expected]


def test_a_shadow_of_other_events_is_refused(trace: Trace, predictor: Any) -> None:
    log = replay_prefetch(trace, Lru(), POOLS[0], predictor, lambda: TopK(2)).decisions
    other = replay(trace.select(np.array([0])), Lru(), POOLS[0], reset="sequence", decisions=True).decisions
    assert other is not None
    with pytest.raises(InputError, match="shadow"):
        outcomes(log, other)


def test_a_late_forecast_says_nothing_of_the_nearest_layers(trace: Trace, predictor: Any) -> None:
    event = next(iter(routing_events(trace)))
    early, late = (RecordedForecasts(predictor, trace, lead) for lead in (1, 2))
    early.observe(event)
    late.observe(event)
    assert early.predict().layers.tolist() == [1, 2, 3, 0]
    assert late.predict().layers.tolist() == [2, 3, 0]
    assert np.array_equal(early.predict().probs_HE[1:], late.predict().probs_HE)
    with pytest.raises(InputError, match="lead"):
        RecordedForecasts(predictor, trace, 0)


def test_what_a_state_before_attention_asks_for_is_copied_from_the_end_of_the_event(
    trace: Trace, tmp_path: Any
) -> None:
    predictor = make("pre_attention", tmp_path).fit(trace)
    log = replay_prefetch(trace, Lru(), PoolConfig(slots=4), predictor, lambda: TopK(2)).decisions
    facts = pass_facts(trace)
    where = machine(bytes_per_s=1e6, link_bytes_per_s=1e6, link_latency_s=1e-6)
    cost = cost_of_layers(trace.layers, dense_bytes=100.0, size=64)
    made = simulate(log, facts, where, cost, TOP_K, record=Window(0, facts.passes)).slices
    assert made is not None
    computed_V = np.zeros(len(log.events.pool), np.int64)
    for what, end, event in made[made[:, 0] == GPU_TRACK][:, [1, 3, 4]]:
        if what == COMPUTED:
            computed_V[event] = max(computed_V[event], end)
    ahead = made[(made[:, 0] == LINK_TRACK) & (made[:, 1] == AHEAD)]
    at_once = 0
    for pool, key in {(int(p), int(k)) for p, k in log.proactive[:, [1, 2]]}:
        own = log.proactive[(log.proactive[:, 1] == pool) & (log.proactive[:, 2] == key)]
        copied = ahead[(ahead[:, 6] == key) & (ahead[:, 5] // max(log.layout.main) == pool)]
        if len(copied):
            assert copied[0, 2] >= computed_V[own[0, 0]]
            at_once += copied[0, 2] == computed_V[own[0, 0]]
    assert at_once  # an idle link begins as soon as the state is there
