"""Background copies: order, chunk borders, residual stalls, cancellation, the disk below."""

import numpy as np
import pytest

from rgpu.policies.loop import BYPASS, HIT, PREFETCH_HIT
from rgpu.replay.timing.simulate import DiskLoads, simulate
from tests.clocks import SIZE, cost_of_layers, facts_of, log_of, machine

# copy 10 ms in chunks of 1 ms, compute 1 ms, dense part 2 ms
THERE = machine(bytes_per_s=1e9, link_bytes_per_s=1e8, link_chunk_bytes=1e5)
COST = cost_of_layers(dense_bytes=2e6)
MS = 1e-3


def test_a_late_prefetch_stalls_for_its_rest() -> None:
    log = log_of([[(0, 0)], [(1, PREFETCH_HIT)]], proactive=[(0, 0, 1, 1, -1)])
    found = simulate(log, facts_of(2), THERE, COST, 1)
    assert found.seconds_P == pytest.approx([13 * MS, (10 + 1) * MS])  # the copy began with pass 1
    assert found.parts[1, 2] / 1e12 == pytest.approx(8 * MS)
    summary = found.summary()
    assert summary["late_hits"] == 1 and summary["bytes_late"] == SIZE and summary["bytes_useful"] == 0


@pytest.mark.parametrize("chunk", [0.0, 1e5, 1e6])
@pytest.mark.parametrize("order", [(10, 11), (11, 10)])
def test_every_late_member_is_computed(order: tuple[int, int], chunk: float) -> None:
    ahead = [(0, 0, 10, 0, 0), (0, 0, 11, 1, 1)]
    log = log_of([[(5, 2)], [(k, PREFETCH_HIT) for k in order]], slots=3, proactive=ahead)
    there = machine(bytes_per_s=1e9, link_bytes_per_s=1e9, sync_s=0.95 * MS, link_chunk_bytes=chunk)
    found = simulate(log, facts_of(2), there, cost_of_layers(), 1)
    # wanted at 0.95 ms, when 0.05 ms are left of the first copy: it goes on, the second lands at 2 ms, one more to compute
    assert found.parts[1, 1] / 1e12 == pytest.approx(2 * MS) and found.seconds_P[1] == pytest.approx(3 * MS)
    summary = found.summary()
    assert summary["late_hits"] == 2 and summary["bytes_late"] == 2 * SIZE and summary["bytes_pending"] == 0


def test_a_demand_copy_overtakes_at_a_chunk_border() -> None:
    log = log_of([[(0, 0)], [(2, 2)], [(1, PREFETCH_HIT)]], proactive=[(0, 0, 1, 1, -1)])
    there = machine(bytes_per_s=1e9, link_bytes_per_s=1e8, link_chunk_bytes=1.5e5)
    found = simulate(log, facts_of(3), there, COST, 1)
    # pass 1: 2 ms dense, the running chunk of 1.5 ms ends at 3 ms, copy to 13 ms, compute to 14 ms; the background copy goes
    # on at 13 ms with 7 of its 10 ms left: pass 2 (begun at 14, dense until 16) waits until 20
    assert found.seconds_P == pytest.approx([13 * MS, 14 * MS, 7 * MS])
    whole = machine(bytes_per_s=1e9, link_bytes_per_s=1e8)  # never interrupted: the demand copy waits until 10 ms
    assert simulate(log, facts_of(3), whole, COST, 1).seconds_P == pytest.approx([13 * MS, 21 * MS, 3 * MS])


def test_a_load_evicted_before_it_began_moves_nothing() -> None:
    ahead = [(0, 0, 1, 1, -1), (0, 0, 2, 2, -1), (0, 0, 3, 2, 2)]
    log = log_of([[(0, 0)], [(3, PREFETCH_HIT)]], proactive=ahead)
    summary = simulate(log, facts_of(2), THERE, COST, 1).summary()
    assert summary["cancelled_loads"] == 1 and summary["bytes_cancelled"] == SIZE
    assert summary["bytes_late"] == SIZE and summary["bytes_pending"] == SIZE


def test_a_load_evicted_under_way_stops_at_a_border() -> None:
    log = log_of([[(0, 0)], [(2, 1)]], proactive=[(0, 0, 1, 1, -1)])
    summary = simulate(log, facts_of(2), THERE, COST, 1).summary()
    assert summary["bytes_wasted"] == 2 * SIZE // 10 and summary["bytes_cancelled"] == 8 * SIZE // 10
    assert summary["bytes_proactive"] == 2 * SIZE // 10


def test_initial_fill_is_copied_in_the_background() -> None:
    log = log_of([[(0, HIT)], [(1, HIT)]], fills=[(0, 0, 0, 0, -1), (0, 0, 1, 1, -1)])
    found = simulate(log, facts_of(2), THERE, COST, 1)
    assert found.seconds_P == pytest.approx([11 * MS, 10 * MS])
    assert found.summary()["bytes_fill"] == 2 * SIZE


def test_a_reset_empties_the_queue() -> None:
    log = log_of([[(0, 0)], [(0, 0)]], proactive=[(0, 0, 1, 1, -1)], resets=[1])
    found = simulate(log, facts_of(2), THERE, COST, 1)
    assert found.seconds_P == pytest.approx([13 * MS, 13 * MS]) and found.summary()["bytes_pending"] == SIZE


def test_a_reset_counts_what_is_under_way() -> None:
    ahead = [(0, 0, 1, 1, -1), (0, 0, 2, 2, -1)]
    log = log_of([[(0, 0)], [(0, HIT)], [(0, 0)]], proactive=ahead, resets=[2])
    there = machine(bytes_per_s=1e9, link_bytes_per_s=1e8, link_chunk_bytes=2e5)
    found = simulate(log, facts_of(3), there, COST, 1)
    # pass 1 takes 3 ms of the first copy, which ends at its border of 4 ms; 1 ms of pass 2 has then gone by, its copy begins
    # after the dense part
    assert found.seconds_P == pytest.approx([13 * MS, 3 * MS, 13 * MS])
    summary = found.summary()
    assert summary["bytes_proactive"] == 4e5 and summary["bytes_pending"] == 2 * SIZE
    assert found.link_busy_ps == pytest.approx((10 + 4 + 10) * 1e9)
    whole = simulate(log, facts_of(3), machine(bytes_per_s=1e9, link_bytes_per_s=1e8), COST, 1)
    assert whole.seconds_P == pytest.approx([13 * MS, 3 * MS, (7 + 10 + 1) * MS])  # never interrupted: lands at 10 ms
    assert whole.summary()["bytes_proactive"] == SIZE


def test_a_reset_ends_a_read_and_the_end_of_a_run_counts_no_more() -> None:
    log = log_of([[(0, 0)], [(0, HIT)], [(0, 0)]], proactive=[(0, 0, 1, 1, -1)], resets=[2])
    there = machine(bytes_per_s=1e9, link_bytes_per_s=1e8, disk_bytes_per_s=1e8)
    disk = DiskLoads(np.array([0, 0, 1], np.uint8), np.ones(1, np.uint8), np.zeros(0, np.uint8))
    found = simulate(log, facts_of(3), there, COST, 1, disk=disk)
    # the read begun at 13 ms ends at 23 ms, 7 ms after the reset; then the next one, its copy, its compute
    assert found.seconds_P == pytest.approx([13 * MS, 3 * MS, (7 + 10 + 10 + 1) * MS])
    assert found.disk_bytes == 2 * SIZE and found.disk_busy_ps == pytest.approx(20e9)
    cut = simulate(log_of([[(0, 0)], [(0, HIT)]], proactive=[(0, 0, 1, 1, -1)]), facts_of(2), there, COST, 1)
    assert cut.link_busy_ps == pytest.approx((10 + 3) * 1e9)


def test_cpu_misses_are_uploaded_behind_the_event() -> None:
    log = log_of([[(0, 0)], [(1, 1)], [(0, HIT)]])
    there = machine(bytes_per_s=1e9, link_bytes_per_s=1e8, cpu_bytes_per_s=2.5e8, cpu_call_s=MS)
    found = simulate(log, facts_of(3), there, COST, 1, miss="cpu")
    # 2 ms dense, 1 + 4 ms on the CPU; at 14 ms expert 0 has landed only in part (begun at 7, wanted at 16): waits to 17
    assert found.seconds_P == pytest.approx([7 * MS, 7 * MS, 4 * MS])
    assert (
        found.summary()["cpu_experts"] == 2 and found.summary()["bytes_upload"] == 1.1 * SIZE
    )  # 1 ms of the second one
    again = log_of([[(0, 0)], [(1, 1)], [(1, HIT)]])
    found = simulate(
        again, facts_of(3), there, COST, 1, miss="cpu"
    )  # its upload has not begun: the CPU computes it again
    assert found.seconds_P == pytest.approx([7 * MS, 7 * MS, 7 * MS]) and found.summary()["late_hits"] == 1


def test_the_cpu_is_slower_beside_copies() -> None:
    log = log_of([[(0, 0)], [(1, BYPASS)]], proactive=[(0, 0, 2, 2, -1)], slots=9, staging=1)
    there = machine(link_bytes_per_s=1e8, cpu_bytes_per_s=1e9, host_bytes_per_s=1.5e8)  # 5e7 beside a copy, alone 1.5e8
    found = simulate(log, facts_of(2), there, cost_of_layers(), 1, miss="cpu")
    # pass 0 on the CPU alone, 6.67 ms; pass 1: two copies (upload, ahead) take 20 ms, beside them 1 MB takes 20 ms
    assert found.seconds_P == pytest.approx([1 / 150, 20 * MS], rel=1e-6)


def test_a_load_from_disk_reads_first() -> None:
    log = log_of([[(0, 0)], [(1, PREFETCH_HIT)]], proactive=[(0, 0, 1, 1, -1)])
    one, none = np.ones(1, np.uint8), np.zeros(0, np.uint8)
    there = machine(bytes_per_s=1e9, link_bytes_per_s=1e8, disk_bytes_per_s=5e7, disk_latency_s=MS)
    found = simulate(log, facts_of(2), there, COST, 1, disk=DiskLoads(np.array([1, 0], np.uint8), one, none))
    assert found.seconds_P == pytest.approx([(2 + 21 + 10 + 1) * MS, (21 + 10 + 1) * MS])
    assert found.disk_bytes == 2 * SIZE
    found = simulate(log, facts_of(2), there, COST, 1, disk=DiskLoads(np.array([0, 0], np.uint8), 0 * one, none))
    assert found.seconds_P == pytest.approx([13 * MS, 11 * MS]) and found.disk_bytes == 0


@pytest.mark.parametrize("from_disk", range(4))
@pytest.mark.parametrize("staging", [0, 1])
def test_what_is_in_host_memory_does_not_wait_for_the_disk(from_disk: int, staging: int) -> None:
    log = log_of([[(k, BYPASS if staging else k) for k in range(4)]], slots=8, staging=staging)
    read, none = np.zeros(4, np.uint8), np.zeros(0, np.uint8)
    read[from_disk] = 1
    disk = DiskLoads(read, none, none)
    there = machine(link_bytes_per_s=1e9, disk_bytes_per_s=2e8, cpu_bytes_per_s=1e9)  # copy, CPU 1 ms; read 5 ms
    for miss in ("fetch", "cpu"):
        found = simulate(log, facts_of(1), there, cost_of_layers(), 4, miss=miss, disk=disk)
        assert found.seconds == pytest.approx((5 + 1) * MS), miss
    ahead = [(0, 0, k, k, -1) for k in range(4)]
    late = log_of([[(9, 7)], [(k, PREFETCH_HIT) for k in range(4)]], slots=8, proactive=ahead)
    there = machine(bytes_per_s=1e9, link_bytes_per_s=1e9, disk_bytes_per_s=2e8)
    found = simulate(late, facts_of(2), there, cost_of_layers(), 4, disk=DiskLoads(np.zeros(5, np.uint8), read, none))
    assert found.seconds_P[1] == pytest.approx((5 + 1 + 1) * MS)


def test_waves_stay_in_order_beside_the_disk() -> None:
    log = log_of([[(5, HIT), (0, 0), (1, 1), (2, 0), (3, 2)], [(2, HIT), (1, HIT), (3, HIT)]], slots=3,
                 fills=[(0, 0, 5, 0, -1)])  # fmt: skip
    there = machine(bytes_per_s=1e9, link_bytes_per_s=1e9, disk_bytes_per_s=2e8)
    disk = DiskLoads(np.array([0, 0, 1, 1, 0, 0, 0, 0], np.uint8), np.zeros(0, np.uint8), np.zeros(1, np.uint8))
    found = simulate(log, facts_of(2), there, cost_of_layers(), 3, disk=disk)
    # the fill lands at 1 and is computed until 2; wave 2: 0 copied 2 to 3, 1 read by 5 and copied to 6, computed until 7;
    # wave 3: 3 in host memory is copied first, 2 read by 10 into the slot of 0
    assert found.seconds_P == pytest.approx([12 * MS, 3 * MS])
