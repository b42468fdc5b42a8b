"""The bound in seconds by hand and by a fine search over splits."""

import numpy as np
import pytest

from rgpu.errors import InputError
from rgpu.policies.loop import BYPASS, HIT
from rgpu.replay.timing.bound import time_bound
from rgpu.replay.timing.simulate import simulate
from tests.clocks import SIZE, cost_of_layers, facts_of, log_of, machine


def test_each_resource_binds() -> None:
    log = log_of([[(k, HIT) for k in range(4)]] * 10)
    cost, facts = cost_of_layers(dense_bytes=1e6), facts_of(10)
    device = machine(bytes_per_s=1e9, launch_s=1e-3, sync_s=1e-3)
    alone = time_bound(log.events, facts, device, cost, 1, 0)
    assert alone.seconds == pytest.approx(10 * (2e-3 + 1e-3 + 4e-3)) and alone.binding == "device"
    assert alone.tpot_s == pytest.approx(alone.seconds / 10)
    link = machine(bytes_per_s=1e9, link_bytes_per_s=1e7)
    found = time_bound(log.events, facts, link, cost, 1, 5 * SIZE)
    assert found.seconds == pytest.approx(0.5) and found.binding == "link"
    shared = machine(link_bytes_per_s=1e8, cpu_bytes_per_s=3e8)
    assert time_bound(log.events, facts, shared, cost, 1, 8 * SIZE).seconds == pytest.approx(8 * SIZE / 4e8)
    tight = machine(link_bytes_per_s=1e8, cpu_bytes_per_s=3e8, host_bytes_per_s=2e8)
    assert time_bound(log.events, facts, tight, cost, 1, 8 * SIZE).seconds == pytest.approx(8 * SIZE / 2e8)


def test_copies_of_a_fetch_only_bound_pay_their_latency() -> None:
    log = log_of([[(0, HIT)]] * 3)
    there = machine(link_bytes_per_s=1e9, link_latency_s=1e-2)
    found = time_bound(log.events, facts_of(3), there, cost_of_layers(), 1, 2 * SIZE, ["fetch"])
    assert found.seconds == pytest.approx(2 * (1e-2 + 1e-3))


@pytest.mark.parametrize("seed", range(20))
def test_the_best_split_is_found(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rates = 10 ** rng.uniform(6, 9, 4)
    there = machine(
        bytes_per_s=rates[0], link_bytes_per_s=rates[1], cpu_bytes_per_s=rates[2], host_bytes_per_s=rates[3]
    )
    log = log_of([[(k, HIT) for k in range(3)]] * 10)
    cost = cost_of_layers(dense_bytes=float(rng.uniform(0, 5e6)))
    misses = float(rng.integers(0, 30)) * SIZE
    found = time_bound(log.events, facts_of(10), there, cost, 1, misses)
    m = np.linspace(0, 30 * SIZE, 300_001)
    x = np.maximum(0, misses - m)
    device = 10 * cost.dense_bytes[0] / there.bytes_per_s + np.maximum(0, 30 * SIZE - m) / there.bytes_per_s
    times = np.maximum.reduce([device, x / there.link_rate, m / there.cpu_rate, (x + m) / there.host_bytes_per_s])
    assert found.seconds == pytest.approx(times.min(), rel=1e-3)
    assert found.seconds <= times.min() * (1 + 1e-9)


def test_an_ideal_schedule_meets_the_bound() -> None:
    log = log_of([[(k, BYPASS) for k in range(4)]] * 6, slots=2, staging=1)
    there = machine(link_bytes_per_s=1e8, cpu_bytes_per_s=3e8)
    found = simulate(log, facts_of(6), there, cost_of_layers(), 1, miss="split")
    bound = time_bound(log.events, facts_of(6), there, cost_of_layers(), 1, 24 * SIZE)
    assert found.seconds == pytest.approx(bound.seconds, rel=1e-6)


def test_mistakes() -> None:
    log = log_of([[(0, HIT)]])
    with pytest.raises(InputError, match="^handlers: got 'guess'"):
        time_bound(log.events, facts_of(1), machine(), cost_of_layers(), 1, 0, ["guess"])
    with pytest.raises(InputError, match="^miss_bytes: got -1"):
        time_bound(log.events, facts_of(1), machine(), cost_of_layers(), 1, -1)
