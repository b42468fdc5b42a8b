"""Experts that no memory holds on their way to a device: read by threads, in order of need, late, given up and failing."""

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from rgpu.errors import InputError
from rgpu.memory.slot_pool import CopyState, SlotPool
from rgpu.transfer.device import IN_FLIGHT, DeviceTransfer
from rgpu.transfer.errors import TransferError
from rgpu.transfer.staged_reads import AHEAD_BUFFERS, BUFFERS, THREADS, StagedReads
from rgpu.types import ExpertKey
from tests.late_streams import LateStreams
from tests.unit.transfer.scheduled import LAYOUT, NBYTES, ScheduledSource, holds

SLOTS = 12


class Source(ScheduledSource):
    layout, in_place, ram_bytes = LAYOUT, False, 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.places: set[int] = set()

    def read_into(self, key: ExpertKey, out: Any, start: int = 0) -> None:
        self.places.add(out.ctypes.data - start)
        super().read_into(key, out, start)


class Held:
    """A transfer whose reads a test lets go on."""

    def __init__(self, permits: int | None = 0, **options: Any) -> None:
        self.source, self.pool, self.streams = Source(permits), SlotPool(LAYOUT, SLOTS), LateStreams(0)
        self.transfer = DeviceTransfer(
            self.source, [self.pool], self.streams, reads=lambda s: StagedReads(s, **options)
        )  # type: ignore[arg-type]

    def submit(self, expert: int, slot: int, ahead: bool = False) -> None:
        self.transfer.submit(ExpertKey(0, expert), 0, slot, ahead)

    def arrives(self, expert: int, slot: int) -> bool:
        self.transfer.wait(0, slot)
        return self.pool.state(slot) is CopyState.READY and holds(self.pool, slot, ExpertKey(0, expert))


@pytest.fixture
def held() -> Iterator[Any]:
    made: list[Held] = []

    def make(*args: Any, **options: Any) -> Held:
        made.append(Held(*args, **options))
        return made[-1]

    yield make
    for one in made:
        one.source.allow(None)
        one.transfer.close()
        one.transfer.close()


def test_reads_overlap_in_bounded_memory(held: Any) -> None:
    it = held()
    for slot in range(SLOTS):
        it.submit(slot, slot)
    it.source.began(THREADS)
    assert it.transfer.counts().queued == SLOTS and not it.streams.queue
    it.source.allow(None)
    assert all(it.arrives(slot, slot) for slot in reversed(range(SLOTS)))
    assert len(it.source.places) <= BUFFERS and not it.source.overlaps
    counts = it.transfer.counts()
    assert (counts.copies, counts.demand_bytes, counts.queued) == (SLOTS, SLOTS * NBYTES, 0)


def test_buffers_are_locked_where_they_are_and_take_what_plans_count(held: Any) -> None:
    locked: list[tuple[int, int]] = []

    @contextmanager
    def lock(memory: torch.Tensor) -> Iterator[None]:
        locked.append((memory.data_ptr(), memory.untyped_storage().nbytes()))
        yield
        assert not any(thread.is_alive() for thread in it.transfer._reads._threads)
        locked.remove((memory.data_ptr(), memory.untyped_storage().nbytes()))

    it = held(None, lock_pages=lock)
    for slot in range(SLOTS):
        it.submit(slot, slot)
    assert all(it.arrives(slot, slot) for slot in range(SLOTS))
    assert {place for place, _ in locked} == it.source.places and len(locked) == BUFFERS
    assert all(place % 4096 == 0 and nbytes == LAYOUT.stride for place, nbytes in locked)
    it.transfer.close()
    assert not locked


def test_what_is_needed_is_read_before_what_may_be(held: Any) -> None:
    it = held()
    for slot in range(8):
        it.submit(slot, slot, ahead=True)
    it.source.began(AHEAD_BUFFERS)
    it.submit(20, 8)
    it.source.began(AHEAD_BUFFERS + 1)
    assert it.source.pieces[-1] == (20, 0)  # a thread and a buffer were left for it
    it.source.allow(None)
    assert it.arrives(20, 8) and it.arrives(7, 7)
    assert it.transfer.counts().promoted == 1
    for slot in range(7):
        assert it.arrives(slot, slot)
    assert it.transfer.counts().ahead_bytes == 8 * NBYTES and IN_FLIGHT >= AHEAD_BUFFERS


def test_it_overtakes_between_pieces(held: Any) -> None:
    it = held(threads=1, chunk_bytes=-(-NBYTES // 3))
    it.submit(1, 1, ahead=True)
    it.source.began(1)
    it.submit(2, 2)
    it.source.allow(None)
    assert it.arrives(2, 2) and it.arrives(1, 1)
    assert [expert for expert, _ in it.source.pieces] == [1, 2, 2, 2, 1, 1]


def test_a_read_is_given_up_where_nobody_wants_it(held: Any) -> None:
    it = held(chunk_bytes=100)
    for slot in range(3):
        it.submit(slot, slot, ahead=True)
    it.source.began(3)
    assert it.transfer.cancel(0, 0) and not it.transfer.cancel(0, 0) and it.pool.state(0) is CopyState.EMPTY
    it.submit(11, 1)  # into the slot of another one
    it.submit(12, 2, ahead=True)
    it.source.allow(None)
    assert it.arrives(11, 1) and it.arrives(12, 2)
    counts = it.transfer.counts()
    assert (counts.copies, counts.cancelled, counts.cancelled_bytes) == (2, 3, 3 * NBYTES)
    assert not it.transfer.cancel(0, 1)
    for slot in range(SLOTS):  # every buffer is there again
        it.submit(slot, slot)
    assert all(it.arrives(slot, slot) for slot in range(SLOTS))


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize(
    ("fault", "kind", "line"),
    [(InputError("cannot read x"), InputError, "cannot read x"), (OSError("gone"), TransferError, "copy failed: gone")],
)
def test_a_read_that_fails_ends_all(held: Any, ahead: bool, fault: Exception, kind: type[Exception], line: str) -> None:
    it = held(None)
    it.source.faults[ExpertKey(0, 5)] = fault
    it.submit(5, 0, ahead)
    for call in (lambda: it.transfer.wait(0, 0), lambda: it.submit(1, 1), lambda: it.transfer.wait(0, 1)):
        with pytest.raises(kind, match=f"^{line}$"):
            call()
    assert it.pool.state(0) is CopyState.LOADING


def test_threads_that_are_gone_are_noticed(held: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StagedReads, "_run", lambda _: None)
    it = held(None)
    it.submit(1, 1)
    with pytest.raises(TransferError, match="a thread that reads experts has ended"):
        it.transfer.wait(0, 1)


def test_closing_leaves_nothing_behind(held: Any) -> None:
    before = threading.active_count()
    it = held()
    for slot in range(SLOTS):
        it.submit(slot, slot, ahead=slot % 2 > 0)
    it.source.began(1)
    it.source.allow(None)
    it.transfer.close()
    assert threading.active_count() == before
    with pytest.raises(TransferError, match="closed"):
        it.submit(1, 1)


def play(seed: int, steps: int, failing: bool) -> int:
    """An executor against late copies and reads that are late, too; returns how many waits were checked."""
    draw, delays = random.Random(seed), random.Random(seed + 1)

    def pause() -> None:
        if delays.random() < 0.1:
            time.sleep(delays.random() * 0.001)

    source, pool = Source(pause=pause), SlotPool(LAYOUT, SLOTS)
    if failing:
        source.faults[ExpertKey(0, 999)] = OSError("read failed")
    sizes: dict[str, Any] = {
        "threads": draw.randint(1, 4),
        "buffers": draw.randint(2, 5),
        "ahead": 1,
        "chunk_bytes": 100,
    }
    transfer = DeviceTransfer(source, [pool], LateStreams(seed), reads=lambda s: StagedReads(s, **sizes))  # type: ignore[arg-type]
    last: dict[int, ExpertKey] = {}
    checked = submitted = 0
    try:
        for step in range(steps):
            slot, action = draw.randrange(SLOTS), draw.random()
            if action < 0.6:
                late = failing and step > steps // 2
                key = ExpertKey(0, 999) if late else ExpertKey(draw.randrange(3), draw.randrange(40))
                transfer.submit(key, 0, slot, ahead=draw.random() < 0.6)
                last[slot], submitted = key, submitted + 1
            elif action < 0.7:
                if transfer.cancel(0, slot):
                    del last[slot]
            elif action < 0.8:
                for _, there in transfer.landed():
                    assert holds(pool, there, last[there])
            elif slot in last:
                transfer.wait(0, slot)
                assert holds(pool, slot, last[slot])
                checked += 1
        for slot, key in last.items():
            transfer.wait(0, slot)
            assert holds(pool, slot, key)
        counts = transfer.counts()
        assert (counts.queued, counts.copies + counts.cancelled) == (0, submitted)
        assert counts.demand_bytes + counts.ahead_bytes + counts.cancelled_bytes == submitted * NBYTES
        assert not failing
    except TransferError as error:
        assert failing and "read failed" in str(error)
    finally:
        transfer.close()
    assert not source.overlaps and len(source.places) <= sizes["buffers"]
    return checked


@pytest.mark.parametrize("failing", [False, True])
def test_at_random(failing: bool) -> None:
    assert sum(play(seed, 400, failing) for seed in range(6)) > 60


@pytest.mark.slow
@pytest.mark.parametrize("failing", [False, True])
def test_at_random_for_long(failing: bool) -> None:
    assert sum(play(seed, 8_000, failing) for seed in range(6)) > 3000
