"""Prefetching judged live: runs that print and decide the same, links, orders, and sums by hand."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rgpu.errors import ConsistencyError, InputError
from rgpu.experiments.benching.copy_timing import CopyCosts
from rgpu.experiments.benching.quiet import Quiet
from rgpu.experiments.study import live_contest
from rgpu.experiments.study.live_arms import AGAIN, PERFECT, arms_of
from rgpu.experiments.study.live_clock import Clock, link_costs
from rgpu.experiments.study.live_contest import Contest, Size, named, pick, standing
from rgpu.experiments.study.live_engine import Host, Link, LiveRun, Text, TimedPlanner, TimedPredictor, run_text
from rgpu.experiments.study.live_verdict import judge
from rgpu.experiments.study.prefetch_time import BASELINE, FREE, Arm
from rgpu.experiments.study.prefetch_verdict import DEFAULT
from rgpu.experiments.suites.predicting.fitting import names
from rgpu.experiments.suites.predicting.live import FULL, size_of
from rgpu.planning.top_k import TopK
from rgpu.policies.loop import COUNTS, LOADED_BYTES, PREFETCH_HITS, PROACTIVE_LOADS, WASTED
from rgpu.predictors.popularity import Popularity
from rgpu.predictors.pre_attention import PreAttention
from rgpu.replay.stream import routing_events
from rgpu.replay.timing.engine_profile import EngineProfile, PassCosts
from rgpu.traces.trace import DECODE
from rgpu.types import ExpertKey
from tests.live_models import build
from tests.predicting import learnable_trace
from tests.support import routed_trace
from tests.unit.runtime.test_before_attention import recorded

FAST = Link(50.0)
ARMS = [BASELINE, AGAIN, Arm("popularity", "top_k"), Arm("popularity", "none", "joint_forecast"), *PERFECT]
COSTS = PassCosts(
    tokens=1, layer_us=300.0, context_us=0.0, pass_us=900.0, event_us=100.0, hidden_us=7.0, expert_us=40.0, in_place_us=50.0,
    submit_us=10.0, start_us=60.0, decide_us={"fifo": 15.0},
)  # fmt: skip


def clock(*links: Link) -> Clock:
    profile = EngineProfile(
        name="here",
        model="hand",
        expert_bytes=6144.0,
        copy_gb_per_s=1.0,
        copy_latency_us=0.0,
        passes=(COSTS,),
        sources={},
    )
    return Clock(profile, {link: CopyCosts(1e9, 1e-5) for link in links})


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Host.opened(build("qwen3_moe", tmp_path_factory.mktemp("model")), tmp_path_factory.mktemp("stores"))
    torch.set_num_threads(threads)


@pytest.fixture
def contest(host: Host) -> Contest:
    texts = [Text((5, 9, 12, 7, 30, 31, 32), 3), Text((8, 8, 40, 2, 17, 60, 61), 3)]
    made = Contest(host, texts, {}, ARMS, clock(Link(), FAST), Quiet(9.0, 0.0))
    made.record()
    trace = made.recorded[0].trace
    assert trace is not None
    made.predictors = {"popularity": Popularity().fit(trace)}
    return made


def test_a_contest_prints_and_decides_the_same(contest: Contest) -> None:
    size = Size(2, 4, 2, (0.4,), (Link(), FAST), 1, 0.0)
    found = contest.hold(size, {0.4: 4})
    assert [(t.link, t.slots) for t in found] == [(Link(), 4), (FAST, 4)]
    for table in found:
        base = table.standings[0]
        assert [s.arm for s in table.standings] == ARMS and min(table.bound_s, table.resident_s) > 0
        for own in table.standings:
            assert own.steps_S.tolist() == [4.0, 4.0]
            assert (
                (own.seconds_S > 0).all() and (own.simulated_S > 0).all() and (own.wall_S >= own.seconds_S - 1e-9).all()
            )
            assert own.per_pass["bytes_loaded"] > 0 and own.decide_us > 0
        again, ahead, evicts, perfect = table.standings[1:5]
        assert again.per_pass["bytes_decided"] == base.per_pass["bytes_decided"] and again.predict_us == 0
        assert ahead.predict_us > 0 and ahead.plan_us > 0 and evicts.per_pass["loads_ahead"] == 0
        ends = [ahead.per_pass[name] for name in ("useful", "wasted", "pending")]
        assert sum(ends) == pytest.approx(ahead.per_pass["loads_ahead"]) and ends[0] > 0
        assert perfect.per_pass["useful"] > ahead.per_pass["useful"] - 1e-9
        assert table.bound_s <= perfect.simulated_S.sum()
        judged = judge(table)
        assert {a["verdict"] for a in judged["arms"][1:]} == {"cannot tell"}  # two texts


def test_one_that_is_asked_before_attention_competes(host: Host, tmp_path: Path) -> None:
    trace = recorded(build("qwen3_moe", tmp_path / "m"), tmp_path / "t.safetensors")
    late = {"pre_attention": PreAttention(epochs=0, horizon=2).fit(trace)}
    arms = [
        BASELINE, Arm("pre_attention", "top_k"), Arm("pre_attention", "top_k", "joint_forecast"),
        Arm("pre_attention", "expected_value", "joint_forecast"),
    ]  # fmt: skip
    contest = Contest(host, [Text((5, 9, 12, 7, 30, 31, 32), 3)], late, arms, clock(FAST), Quiet(9.0, 0.0))
    (table,) = contest.hold(Size(1, 4, 1, (0.4,), (FAST,), 1, 0.0), {0.4: 4})
    own = contest.recorded[0].trace
    assert own is not None and own.pre_attention is not None
    for arm in table.standings[1:3]:
        assert arm.per_pass["loads_ahead"] > 0 and arm.predict_us > 0


def test_another_output_or_decision_stops_the_contest(contest: Contest, monkeypatch: pytest.MonkeyPatch) -> None:
    size = Size(1, 4, 1, (0.4,), (FAST,), 1, 0.0)
    monkeypatch.setattr(live_contest, "event_seconds", lambda controller, trace: 1e-5)  # decides nothing
    with pytest.raises(
        ConsistencyError, match=r"lru over emulated link of 50 GB/s at 4 slots decided live what its replay"
    ):
        contest.hold(size, {0.4: 4})
    right = contest.recorded[1].printed
    contest.recorded[1].printed = ((0,), right[1])
    with pytest.raises(ConsistencyError, match="printed other tokens or logits than the recorded run"):
        contest.hold(size, {0.4: 4})


def test_what_is_recorded_is_what_was_fed(host: Host) -> None:
    text = Text((5, 9, 12, 7, 30), 3)
    plain = Contest(host, [text], {}, ARMS, clock(FAST), Quiet(9.0, 0.0))._plain
    run = run_text(host, FAST, text, plain, hidden=True, record=True)
    trace = run.trace
    assert trace is not None and trace.token_ids is not None and trace.hidden is not None and trace.phase is not None
    assert trace.token_ids.tolist() == list(text.tokens) and (trace.phase == DECODE).sum() == 2 == len(run.wall_P)
    assert len(run.printed[0]) == 3


def test_a_link_is_as_slow_as_it_says(host: Host) -> None:
    slow = Link(0.01)
    size = host.shape().expert_bytes[0]
    found = link_costs(host, slow)
    assert found.bytes_per_s == 1e7 and found.latency_s >= 0
    source, out = slow.opened(host.store), np.empty(size, np.uint8)
    try:
        began = time.perf_counter()
        for expert in range(20):
            source.read_into(ExpertKey(0, expert % source.experts), out)
        assert time.perf_counter() - began >= 20 * size / 1e7
    finally:
        source.close()
    assert slow.label == "emulated link of 0.01 GB/s" and Link().label == "direct file reads"


def test_the_arms_of_every_round_run_in_an_order_of_its_own(host: Host) -> None:
    drawn: list[Arm] = []

    class Drawn(Contest):
        def _checked(self, *_: Any) -> Any:
            return None

        def entrants(self, *_: Any) -> Any:
            return None

        def _run(self, text: int, link: Link, arm: Arm, entrants: Any) -> Any:
            drawn.append(arm)

        def _table(self, *_: Any) -> Any:
            return None

    size = Size(2, 4, 2, (0.4,), (FAST,), 1, 0.0)
    for _ in range(2):
        contest = Drawn(host, [Text((1, 2), 1)] * 2, {}, ARMS, clock(FAST), Quiet(9.0, 0.0), recorded=[None])  # type: ignore[list-item]
        contest.hold(size, {0.4: 4})
    rounds = [tuple(drawn[i : i + len(ARMS)]) for i in range(0, len(drawn), len(ARMS))]
    assert all(set(own) == set(ARMS) for own in rounds) and len(rounds) == 8
    assert rounds[:4] == rounds[4:] and len(set(rounds[:4])) == 4  # by the seed, and none like another


def test_what_deciding_takes_is_in_the_simulated_machine() -> None:
    quick, slow = (clock(FAST).machine(FAST, decide_s, hidden=False) for decide_s in (1e-5, 6e-5))
    assert slow.sync_s - quick.sync_s == pytest.approx(5e-5)
    assert quick.sync_s == pytest.approx(1e-6 * COSTS.event_us + 1e-5, rel=0.5) and quick.name == FAST.label


def test_stopwatches_change_nothing() -> None:
    class Told(TopK):
        heard = 0

        def observe(self, event: Any) -> None:
            self.heard += 1

    ticks = iter(range(100))
    trace = routed_trace(0, tokens=6, layers=2, experts=8, sequences=1)
    fitted = Popularity().fit(trace)
    timed = TimedPredictor(fitted, now=lambda: float(next(ticks)))
    assert timed.name == fitted.name and timed.seconds == 0.0
    told = Told(2)
    planner = TimedPlanner(told)
    planner.observe(None)
    assert told.heard == 1 and hasattr(planner, "observe") and not hasattr(TimedPlanner(TopK(2)), "observe")
    for event in routing_events(trace):
        timed.observe(event)
        forecast = timed.predict()
        resident = np.zeros((2, 8), bool)
        assert planner.plan(forecast, resident) == TopK(2).plan(forecast, resident)
    assert timed.seconds == 24.0 and timed.events == 12 and planner.seconds > 0
    timed.reset()


def run_of(seconds: list[float], waited: float = 0.0, **counts: float) -> LiveRun:
    made = np.zeros(COUNTS, np.int64)
    for at, name in ((LOADED_BYTES, "bytes"), (PROACTIVE_LOADS, "ahead"), (PREFETCH_HITS, "used"), (WASTED, "wasted")):
        made[at] = counts.get(name, 0)
    moved = {"copies": 10.0, "demand_bytes": 600.0, "ahead_bytes": 400.0, "cancelled": 1.0, "cancelled_bytes": 50.0,
             "promoted": 2.0, "busy_s": 0.5, "stall_s": 0.1}  # fmt: skip
    wall = np.array(seconds) + waited
    return LiveRun(wall, np.full(len(wall), waited), np.full(len(wall), 0.25), made, moved, 2e-3, 1e-3, ((1,), "x"), [])


def test_sums_by_hand() -> None:
    runs = [[run_of([1.0, 2.0], 0.5, wasted=3, ahead=5), run_of([3.0, 2.0], 0.5, wasted=3, ahead=5)]]
    found = standing(FREE, runs, np.array([4.0]), {"useful": 2, "harmful": 1}, 2e-5, layers=4)
    assert found.seconds_S.tolist() == [4.0] and found.wall_S.tolist() == [5.0] and found.median_s == 2.0
    assert found.spread == pytest.approx(np.std([1.5, 2.5], ddof=1) / 2.0) and found.steps_S.tolist() == [2.0]
    per = found.per_pass  # over four passes
    assert per["stall_s"] == 0.25 and per["bytes_loaded"] == 500.0 and per["late"] == 1.0 and per["cancelled"] == 0.5
    assert per["bytes_wasted"] == (6 * 100.0 - 100.0) / 4  # what was cancelled did not move
    assert per["useful"] == 1.0 and per["harmful"] == 0.5 and per["loads_ahead"] == 2.5
    assert found.predict_us == pytest.approx(1e6 * 4e-3 / 16) and found.decide_us == pytest.approx(20.0)


def test_who_competes() -> None:
    whole = arms_of(names(), quick=False)
    assert whole[:2] == [BASELINE, AGAIN] and len(set(whole)) == len(whole) == 2 + 2 * len(names()) + 1 + 3
    assert {FREE, DEFAULT} <= set(whole) and {FREE, DEFAULT} <= set(arms_of(names(), quick=True))
    assert arms_of(["linear"], quick=True) == [BASELINE, AGAIN, DEFAULT, PERFECT[-1]]
    assert [named(a) for a in (BASELINE, AGAIN, FREE)] == ["lru", "lru again", "gate_lookahead, top_k"]
    assert named(PERFECT[1]) == "oracle, evict only"


def test_sizes_that_are_asked_for() -> None:
    assert size_of({}, False) == replace(FULL, links=(Link(), Link(0.5), Link(0.1)))
    assert size_of({"shares": [0.3]}, True).shares == (0.3,)
    for shares in ([0.0], [1.5], [0.25, 0.25]):
        with pytest.raises(InputError, match=r"predicting\.shares: got .*; expected different shares"):
            size_of({"shares": shares}, False)
    quick = size_of({"links": [1, 2], "repeats": 3}, True)
    assert quick.links == (Link(), Link(1.0)) and quick.repeats == 3 and quick.texts < FULL.texts
    for wrong in ([0.5, 0.0], [-1], [float("nan")]):
        with pytest.raises(InputError, match=r"predicting\.links: got .*; expected GB/s above 0"):
            size_of({"links": wrong}, False)
    with pytest.raises(InputError, match=r"predicting\.repeats: got 0; expected a number from 1"):
        size_of({"repeats": 0}, False)


def test_texts_are_spread_over_what_is_long_enough() -> None:
    trace = learnable_trace(sequences=6)
    trace.token_ids = np.arange(trace.tokens, dtype=np.int32)
    found = pick(trace, 3, 5)
    sizes = np.diff(trace.seq_offsets)
    starts = trace.seq_offsets[[0, 2, 5]]
    assert [t.tokens[0] for t in found] == starts.tolist() and len({len(t.tokens) - t.prompt for t in found}) == 1
    assert len(pick(trace, 99, 5)) == 6 and pick(trace, 3, int(sizes.max())) == []
