"""Thousands of steps against a source that is late, out of order across slots and sometimes fails."""

import random
import time

import pytest

from rgpu.memory.slot_pool import CopyState, SlotPool
from rgpu.transfer.errors import TransferError
from rgpu.transfer.host import HostTransfer
from rgpu.types import ExpertKey
from tests.unit.transfer.scheduled import LAYOUT, NBYTES, ScheduledSource, holds

SLOTS = 6


def run(seed: int, steps: int, threads: int, chunk_bytes: int, failing: bool) -> int:
    """Plays an executor: pins what it waits for, submits ahead, sometimes cancels. Returns the waits that were checked."""
    draw = random.Random(seed)
    delays = random.Random(seed + 1)

    def pause() -> None:
        if delays.random() < 0.1:
            time.sleep(delays.random() * 0.001)

    source, pool = ScheduledSource(pause=pause), SlotPool(LAYOUT, SLOTS)
    if failing:
        source.faults[ExpertKey(0, 999)] = OSError("read failed")
    transfer = HostTransfer(source, [pool], threads=threads, chunk_bytes=chunk_bytes)
    last: dict[int, ExpertKey] = {}
    checked = submitted = 0
    try:
        for step in range(steps):
            slot, action = draw.randrange(SLOTS), draw.random()
            if action < 0.55:
                key = (
                    ExpertKey(0, 999)
                    if failing and step > steps // 2
                    else ExpertKey(draw.randrange(3), draw.randrange(40))
                )
                transfer.submit(key, 0, slot, ahead=draw.random() < 0.6)
                last[slot], submitted = key, submitted + 1
            elif action < 0.65:
                if transfer.cancel(0, slot):
                    del last[slot]
            elif slot in last:
                transfer.wait(0, slot)
                pool.pin(slot, last[slot])
                assert holds(pool, slot, last[slot])
                pool.unpin(slot)
                checked += 1
        for slot, key in last.items():
            transfer.wait(0, slot)
            assert holds(pool, slot, key)
        transfer.close()  # the piece of a cancelled copy may be under way until then
        counts = transfer.counts()
        assert (counts.queued, counts.copies + counts.cancelled) == (0, submitted)
        assert counts.demand_bytes + counts.ahead_bytes + counts.cancelled_bytes == submitted * NBYTES
        assert not failing
    except TransferError as error:
        assert failing and "read failed" in str(error)
        ready = [slot for slot in last if pool.state(slot) is CopyState.READY]
        assert all(holds(pool, slot, last[slot]) for slot in ready)
    finally:
        transfer.close()
    assert not source.overlaps
    return checked


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("failing", [False, True])
def test_short(threads: int, failing: bool) -> None:
    assert run(threads, 400, threads, 100, failing) > 20


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("chunk_bytes", [64, 200, NBYTES])
@pytest.mark.parametrize("failing", [False, True])
def test_long(threads: int, chunk_bytes: int, failing: bool) -> None:
    for seed in range(3):
        assert run(seed, 8_000, threads, chunk_bytes, failing) > 500
