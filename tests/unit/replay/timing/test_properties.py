"""What holds for every policy, machine, handler and overlap: parts sum to the whole, no schedule beats the bound."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rgpu.policies.belady_bypass import BeladyBypass
from rgpu.policies.loop import BYPASS, HIT
from rgpu.policies.lru import Lru
from rgpu.replay.engine import replay
from rgpu.replay.log import DecisionLog
from rgpu.replay.pool import PoolConfig
from rgpu.replay.timing.bound import time_bound
from rgpu.replay.timing.cost import ModelCost
from rgpu.replay.timing.facts import PassFacts, pass_facts
from rgpu.replay.timing.machine import Machine
from rgpu.replay.timing.memory_tier import disk_loads
from rgpu.replay.timing.simulate import MISSES, OVERLAPS, DiskLoads, simulate
from rgpu.traces.trace import Trace
from tests.clocks import cost_of_layers, facts_of, log_of, machine
from tests.support import ALL, routed_trace

SIZE = 1000
POLICIES = [p for p in ALL if p.name != "belady_bypass"]
AHEAD = [
    i for i, p in enumerate(POLICIES) if p.name in ("ring", "rotary", "router_lag", "static_hot")
]  # they load unasked
RATES = st.sampled_from([1e5, 3e5, 1e6, 4e6, math.inf])
TIMES = st.sampled_from([0.0, 1e-5, 1e-3])


@st.composite
def machines(draw: Any) -> Machine:
    return Machine(
        name="drawn", bytes_per_s=draw(RATES), flop_per_s=draw(st.sampled_from([1e5, math.inf])),
        launch_s=draw(TIMES), link_bytes_per_s=draw(RATES), link_latency_s=draw(TIMES),
        link_chunk_bytes=draw(st.sampled_from([0.0, 100.0, 333.0])), zero_copy_bytes_per_s=draw(RATES), sync_s=draw(TIMES),
        cpu_bytes_per_s=draw(RATES), cpu_flop_per_s=draw(st.sampled_from([1e5, math.inf])), cpu_call_s=draw(TIMES),
        host_bytes_per_s=draw(RATES), disk_bytes_per_s=draw(RATES), disk_latency_s=draw(TIMES),
        submit_s=draw(TIMES), start_s=draw(TIMES), in_place=draw(st.booleans()),
    )  # fmt: skip


Spec = tuple[int, int, int, str, int, int, str, int, int]
SPECS = st.tuples(
    st.integers(0, 10**6), st.sampled_from([1, 1, 3]), st.integers(0, len(POLICIES) - 1) | st.sampled_from(AHEAD),
    st.sampled_from(["layer", "global"]),
    st.integers(3, 9), st.integers(1, 2), st.sampled_from(["none", "sequence"]), st.sampled_from([0, 4]), st.integers(0, 99),
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """What a drawn specification stands for: small numbers, so that a failing one can be read."""

    trace: Trace
    log: DecisionLog
    facts: PassFacts
    cost: ModelCost
    pool: PoolConfig
    reset: str


def made(spec: Spec) -> Run:
    seed, group, number, scope, slots, staging, reset, window, draw = spec
    trace = routed_trace(seed, tokens=24, group=group, sizes=(SIZE, SIZE))
    policy = POLICIES[number]
    pool = PoolConfig("layer" if policy.traits.feature else scope, slots=slots, staging=staging)
    log = replay(trace, policy, pool, calibration=trace, reset=reset, decisions=True).decisions
    assert log is not None
    rng = np.random.default_rng(draw)
    dense, flop, kv, attention, expert = (rng.choice([0.0, 500.0, 3000.0], 2) for _ in range(5))
    sizes, windowed = np.full(2, float(SIZE)), np.array([True, False])
    head = float(dense[-1])
    cost = ModelCost("drawn", dense, flop, kv, attention, sizes, expert, windowed, window, "test", head, 700.0)
    return Run(trace, log, pass_facts(trace, window), cost, pool, reset)


@settings(max_examples=400, deadline=None)
@given(SPECS, machines(), st.sampled_from(MISSES), st.sampled_from(OVERLAPS), st.booleans())
def test_parts_sum_and_nothing_beats_the_bound(spec: Spec, there: Machine, miss: str, overlap: str, tier: bool) -> None:
    run = made(spec)
    there = replace(there, in_place=there.in_place and miss != "split")
    log, facts, cost = run.log, run.facts, run.cost
    disk: DiskLoads | None = disk_loads(log, Lru(), 3 * SIZE, cost.expert_bytes) if tier else None
    found = simulate(log, facts, there, cost, 2, miss=miss, overlap=overlap, disk=disk, quick=False)
    assert (found.parts[:, 1:].sum(1) == found.parts[:, 0]).all() and (found.parts >= 0).all()
    assert found.link_busy_ps <= found.parts[:, 0].sum() and found.disk_busy_ps <= found.parts[:, 0].sum() + 1
    least = replay(run.trace, BeladyBypass(), run.pool, reset=run.reset)
    for handlers in (("fetch", miss), MISSES):  # what `handler_bound` and `bound` allow
        bound = time_bound(log.events, facts, there, cost, 2, least.demand_loads * SIZE, handlers)
        assert found.seconds >= bound.seconds * (1 - 1e-9) - 1e-12 * len(log.events.pool)
    submitted = len(log.proactive) * SIZE
    summary = found.summary()
    ends = sum(summary[f"bytes_{name}"] for name in ("useful", "late", "wasted", "cancelled", "pending"))
    assert ends == submitted
    if there.link_latency_s == 0 and miss != "zero_copy" and not tier:  # the link is busy with what is counted as moved
        moved = sum(summary[f"bytes_{name}"] for name in ("demand", "fill", "proactive", "upload"))
        beyond = SIZE if there.link_chunk_bytes == 0 else there.link_chunk_bytes + 1  # a copy that the end cuts off
        busy = found.link_busy_ps / 1e12 * there.link_rate if there.link_rate < math.inf else moved
        rounded = 1 + summary["link_copies"]  # whole bytes of what a cancelled copy had moved, whole picoseconds
        assert moved - beyond - rounded <= busy <= moved + rounded
    if miss == "fetch":
        assert summary["bytes_demand"] == int((log.kept | log.staged).sum()) * SIZE
    if disk is None:
        again = simulate(log, facts, there, cost, 2, miss=miss, overlap=overlap)
        assert np.array_equal(again.parts, found.parts) and np.array_equal(again.tally, found.tally)
        assert again.link_busy_ps == found.link_busy_ps


@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: p.name)
@pytest.mark.parametrize("chunk", [0.0, 100.0])
def test_every_member_is_computed_once(policy: Any, chunk: float) -> None:
    for seed, group in ((1, 1), (2, 3)):
        trace = routed_trace(seed, tokens=60, group=group, sizes=(SIZE, SIZE))
        log = replay(trace, policy, PoolConfig(slots=5), calibration=trace, reset="sequence", decisions=True).decisions
        assert log is not None
        members = len(log.codes) * SIZE
        for miss in MISSES:
            for overlap in OVERLAPS:
                for link in (2e5, 1.1e6):
                    there = Machine(
                        name="x", bytes_per_s=1e6, link_bytes_per_s=link, link_chunk_bytes=chunk, sync_s=0.9e-3,
                        cpu_bytes_per_s=1e6, zero_copy_bytes_per_s=link,
                    )  # fmt: skip
                    facts, cost = pass_facts(trace), cost_of_layers(2, size=SIZE)
                    found = simulate(log, facts, there, cost, 2, miss=miss, overlap=overlap, quick=False)
                    summary = found.summary()
                    computed = found.parts[:, 1].sum() / 1e6 + summary["bytes_cpu"]
                    assert computed == pytest.approx(members, abs=2 * len(log.events.pool)), (miss, overlap, link)


@settings(max_examples=150, deadline=None)
@given(
    machines(), st.integers(0, 3), st.integers(1, 4), st.booleans(), st.sampled_from(OVERLAPS), st.sampled_from([1, 40])
)
def test_a_division_is_no_slower_than_either_side_alone(
    there: Machine, hits: int, misses: int, kept: bool, overlap: str, tokens: float
) -> None:
    there = replace(there, in_place=False)
    event = [(k, HIT) for k in range(hits)] + [(9 + k, 4 + k if kept else BYPASS) for k in range(misses)]
    log = log_of([event], slots=9, staging=0 if kept else 1)
    facts, cost = facts_of(1, tokens), cost_of_layers(size=SIZE)
    cost.expert_flop[:] = 700.0
    took = {m: simulate(log, facts, there, cost, 2, miss=m, overlap=overlap) for m in ("fetch", "cpu", "split")}
    least = min(took["fetch"].seconds, took["cpu"].seconds)
    bound = time_bound(log.events, facts, there, cost, 2, misses * SIZE, ("fetch", "split"))
    assert bound.seconds * (1 - 1e-9) - 1e-12 <= took["split"].seconds <= least + 1e-11
    summary = took["split"].summary()
    assert summary["bytes_demand"] + summary["bytes_cpu"] == misses * SIZE
    if not kept:  # no uploads: at most one is divided
        assert misses <= summary["link_copies"] + summary["cpu_experts"] <= misses + 1


def test_a_division_pays_for_what_moves() -> None:
    log, facts, cost = (
        log_of([[(k, BYPASS) for k in range(4)]], slots=9, staging=1),
        facts_of(1),
        cost_of_layers(size=1e6),
    )
    for rates, ms, copies, calls in (
        ({"link_bytes_per_s": 1e9, "cpu_call_s": 0.1, "link_latency_s": 1e-3}, 8, 4, 0),
        ({"link_bytes_per_s": 1e9, "cpu_call_s": 1e-3, "link_latency_s": 0.1}, 8, 0, 4),
        ({"link_bytes_per_s": 5e8, "cpu_call_s": 0, "link_latency_s": 0.1, "host_bytes_per_s": 1e9}, 4, 0, 4),
        ({"link_bytes_per_s": 1e9, "cpu_call_s": 0, "link_latency_s": 0}, 2, 2, 2),
        ({"link_bytes_per_s": 1e9, "cpu_call_s": 5e-4, "link_latency_s": 0}, 2.5, 3, 2),  # 2.5 of them copied
    ):
        there = machine(cpu_bytes_per_s=1e9, **rates)
        found = simulate(log, facts, there, cost, 1, miss="split", overlap="stream")
        assert found.seconds == pytest.approx(1e-3 * ms) and found.summary()["link_copies"] == copies, rates
        assert found.summary()["cpu_experts"] == calls


def on_demand(log: DecisionLog) -> tuple[DecisionLog, int]:
    """(the same log without loads ahead, loads of it that were used): what was loaded ahead is a miss where it is first used,
    into the slot that was kept for it, so that the same bytes are copied on demand."""
    events, codes = log.events, log.codes.copy()
    ahead: dict[tuple[int, int], int] = {}
    rows = np.concatenate([log.fills[:, :4], log.proactive[:, :4]])
    rows[:, 0] = 2 * rows[:, 0] - (np.arange(len(rows)) < len(log.fills))  # fills come before their event, others after
    loads: list[tuple[int, int, int, int]] = sorted((int(r[0]), int(r[1]), int(r[2]), int(r[3])) for r in rows)
    at, used = 0, 0
    for e in range(len(events.pool)):
        while at < len(loads) and loads[at][0] < 2 * e:
            ahead[loads[at][1], loads[at][2]] = loads[at][3]
            at += 1
        if e in log.stretches[1:-1]:
            kept = [load for load in loads[:at] if load[0] == 2 * e - 1]
            ahead = {(pool, key): slot for _, pool, key, slot in kept}
        for a in range(events.offs[e], events.offs[e + 1]):
            key = int(events.pool[e]), int(events.keys[a])
            if key in ahead and codes[a] < 0 and codes[a] != BYPASS:
                codes[a] = ahead[key]
                used += 1
            ahead.pop(key, None)
    return replace(log, codes=codes, proactive=log.proactive[:0],
                   fills=log.fills[:0]), used  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(SPECS, RATES, RATES, st.sampled_from([0.0, 100.0, 333.0]), st.sampled_from(OVERLAPS))
def test_prefetch_alone_gives_at_most_twice(spec: Spec, device: float, link: float, chunk: float, overlap: str) -> None:
    """Without latency and read-back, the loads that a policy made ahead made on demand instead take at most twice as long."""
    run = made(spec)
    log, facts, cost = run.log, run.facts, run.cost
    there = Machine(name="plain", bytes_per_s=device, link_bytes_per_s=link, link_chunk_bytes=chunk)
    found = simulate(log, facts, there, cost, 2, overlap=overlap)
    plain, used = on_demand(log)
    summary = found.summary()
    assert summary["bytes_useful"] + summary["bytes_late"] <= used * SIZE  # initial fills are used too
    demand = simulate(plain, facts, there, cost, 2, overlap=overlap)
    assert demand.summary()["bytes_demand"] == summary["bytes_demand"] + used * SIZE
    assert demand.seconds <= 2 * found.seconds + 1e-12 * len(log.codes)
    if not len(log.proactive) and not len(log.fills):
        assert demand.seconds == found.seconds


@settings(max_examples=30, deadline=None)
@given(SPECS, st.sampled_from(OVERLAPS))
def test_a_faster_link_never_slows_a_demand_log(spec: Spec, overlap: str) -> None:
    run = made(spec)
    log, facts, cost = run.log, run.facts, run.cost
    if len(log.proactive) or len(log.fills):
        return
    took = [
        simulate(log, facts, Machine(name="x", bytes_per_s=1e6, link_bytes_per_s=b), cost, 2, overlap=overlap).seconds
        for b in (1e5, 3e5, 1e6, math.inf)
    ]
    assert took == sorted(took, reverse=True)


@pytest.mark.parametrize("overlap", OVERLAPS)
def test_overlap_only_helps_demand_fetches(overlap: str) -> None:
    trace = routed_trace(5, tokens=60, sizes=(SIZE, SIZE))
    log = replay(trace, Lru(), PoolConfig(slots=3), decisions=True).decisions
    assert log is not None
    there = Machine(name="x", bytes_per_s=1e6, link_bytes_per_s=1e6)
    cost = cost_of_layers(2, size=SIZE)
    took = {o: simulate(log, pass_facts(trace), there, cost, 2, overlap=o).seconds for o in OVERLAPS}
    assert took["stream"] <= took["expert"] <= took["wave"]
