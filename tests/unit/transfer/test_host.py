"""The host transfer engine: what goes first, what is given up, failure, end."""

import itertools
import signal
import threading
from typing import Any

import pytest

from rgpu.errors import ConsistencyError, InputError
from rgpu.memory.slot_pool import CopyState, SlotPool
from rgpu.transfer import host
from rgpu.transfer.counts import Span
from rgpu.transfer.errors import TransferError
from rgpu.transfer.host import HostTransfer
from rgpu.types import ExpertKey
from tests.unit.transfer.scheduled import LAYOUT, NBYTES, ScheduledSource, holds


def expert(number: int) -> ExpertKey:
    return ExpertKey(0, number)


class Rig:
    """A source, two pools of four slots and an engine over them."""

    def __init__(self, permits: int | None = None, **settings: Any) -> None:
        self.source = ScheduledSource(permits)
        self.pools = [SlotPool(LAYOUT, 4) for _ in range(2)]
        self.transfer = HostTransfer(self.source, self.pools, **settings)

    def __enter__(self) -> "Rig":
        return self

    def __exit__(self, *exc: object) -> None:
        self.source.allow(None)
        self.transfer.close()

    def finish(self) -> None:
        self.source.allow(None)
        for pool, slots in enumerate(self.pools):
            for slot in range(slots.rows):
                self.transfer.wait(pool, slot)

    @property
    def order(self) -> list[int]:
        return [number for number, _ in self.source.pieces]


def test_copies_on_demand_arrive_in_order_at_their_address() -> None:
    with Rig() as rig:
        for number in range(8):
            rig.transfer.submit(expert(number), number % 2, number // 2)
        rig.finish()
        assert rig.order == list(range(8))
        assert rig.transfer.copies == 8
        for number in range(8):
            assert holds(rig.pools[number % 2], number // 2, expert(number))
            assert rig.pools[number % 2].key(number // 2) == expert(number)


def test_demand_overtakes_what_is_ahead_and_has_not_begun() -> None:
    with Rig(permits=0) as rig:
        for number in range(3):
            rig.transfer.submit(expert(number), 0, number, ahead=True)
        rig.source.began(1)
        rig.transfer.submit(expert(8), 1, 0)
        rig.transfer.submit(expert(9), 1, 1)
        rig.source.allow(None)
        rig.transfer.wait(1, 1)  # before any copy ahead is waited for, which would promote it
        rig.finish()
        assert rig.order == [0, 8, 9, 1, 2]
        counts = rig.transfer.counts()
        assert (counts.demand_bytes, counts.ahead_bytes, counts.copies) == (2 * NBYTES, 3 * NBYTES, 5)
        assert (counts.queued, counts.cancelled) == (0, 0)


def test_copies_on_demand_keep_their_order_in_pieces() -> None:
    with Rig(permits=0, chunk_bytes=100) as rig:
        for number in range(3):
            rig.transfer.submit(expert(number), 0, number)
        rig.finish()
        starts = range(0, NBYTES, 100)
        assert rig.source.pieces == [(number, start) for number in range(3) for start in starts]


def test_demand_overtakes_between_pieces() -> None:
    with Rig(permits=0, chunk_bytes=100) as rig:
        rig.transfer.submit(expert(1), 0, 0, ahead=True)
        rig.source.began(1)
        rig.transfer.submit(expert(2), 0, 1)
        rig.source.allow(None)
        rig.transfer.wait(0, 1)
        rig.finish()
        starts = range(0, NBYTES, 100)
        assert rig.source.pieces == [(1, 0), *((2, s) for s in starts), *((1, s) for s in starts[1:])]
        assert holds(rig.pools[0], 0, expert(1)) and holds(rig.pools[0], 1, expert(2))


def test_waiting_moves_a_copy_ahead_to_the_front() -> None:
    with Rig(permits=0) as rig:
        for number in range(3):
            rig.transfer.submit(expert(number), 0, number, ahead=True)
        rig.source.began(1)
        rig.transfer.submit(expert(9), 1, 0)
        rig.transfer.submit(expert(8), 1, 1)
        waiter = threading.Thread(target=rig.transfer.wait, args=(0, 2))
        waiter.start()
        while not rig.transfer.counts().promoted:
            pass
        assert not rig.transfer.cancel(0, 2)  # somebody waits for it
        rig.source.allow(None)
        waiter.join(10)
        rig.transfer.wait(1, 1)
        rig.finish()
        assert rig.order == [0, 2, 9, 8, 1]


def test_a_superseded_copy_is_not_made() -> None:
    with Rig(permits=0) as rig:
        rig.transfer.submit(expert(0), 0, 0)
        rig.source.began(1)
        rig.transfer.submit(expert(1), 0, 1, ahead=True)
        rig.transfer.submit(expert(2), 0, 1)
        rig.transfer.submit(expert(3), 0, 1, ahead=True)
        counts = rig.transfer.counts()
        assert (counts.cancelled, counts.cancelled_bytes, counts.queued) == (2, 2 * NBYTES, 2)
        rig.finish()
        assert rig.order == [0, 3] and holds(rig.pools[0], 1, expert(3))


@pytest.mark.parametrize("threads", [1, 2])
def test_a_superseded_copy_under_way_is_given_up_between_pieces(threads: int) -> None:
    with Rig(permits=0, chunk_bytes=100, threads=threads) as rig:
        rig.transfer.submit(expert(1), 0, 0, ahead=True)
        rig.source.began(1)
        rig.transfer.submit(expert(2), 0, 0)
        rig.finish()
        assert rig.source.overlaps == 0
        assert rig.source.pieces == [(1, 0), *((2, s) for s in range(0, NBYTES, 100))]
        counts = rig.transfer.counts()
        assert (counts.cancelled, counts.cancelled_bytes, counts.copies) == (1, NBYTES - 100, 1)
        assert (counts.ahead_bytes, counts.demand_bytes) == (100, NBYTES)
        assert holds(rig.pools[0], 0, expert(2))


def test_cancel() -> None:
    with Rig(permits=0, chunk_bytes=100) as rig:
        rig.transfer.submit(expert(1), 0, 0, ahead=True)
        rig.source.began(1)
        rig.transfer.submit(expert(2), 0, 1, ahead=True)
        rig.transfer.submit(expert(3), 0, 2)
        assert rig.transfer.cancel(0, 0)  # under way
        assert rig.transfer.cancel(0, 1)
        assert not rig.transfer.cancel(0, 1)
        assert not rig.transfer.cancel(0, 2)  # on demand
        for slot in (0, 1):
            assert (rig.pools[0].state(slot), rig.pools[0].key(slot)) == (CopyState.EMPTY, None)
            rig.transfer.wait(0, slot)
            with pytest.raises(ConsistencyError, match="EMPTY"):
                rig.pools[0].pin(slot, expert(slot + 1))
        rig.transfer.submit(expert(4), 0, 0, ahead=True)
        rig.finish()
        assert rig.pools[0].state(1) is CopyState.EMPTY
        assert holds(rig.pools[0], 0, expert(4)) and holds(rig.pools[0], 2, expert(3))
        counts = rig.transfer.counts()
        assert (counts.cancelled, counts.cancelled_bytes) == (2, 2 * NBYTES - 100)
        assert not rig.transfer.cancel(0, 0)  # complete
        assert rig.pools[0].state(0) is CopyState.READY


def test_still_waits_for_a_piece_of_what_was_cancelled() -> None:
    """Its slot is EMPTY, but a thread writes into it until the piece ends."""
    with Rig(permits=0) as rig:
        rig.transfer.submit(expert(1), 0, 0, ahead=True)
        rig.source.began(1)
        assert rig.transfer.cancel(0, 0) and rig.pools[0].state(0) is CopyState.EMPTY
        waited = threading.Thread(target=rig.transfer.still)
        waited.start()
        waited.join(0.05)
        assert waited.is_alive()
        rig.source.allow(None)
        waited.join(5)
        assert not waited.is_alive()
        rig.transfer.still()


def test_wait_blocks_until_the_copy_is_there() -> None:
    with Rig(permits=0) as rig:
        rig.transfer.submit(expert(7), 0, 2)
        arrived = threading.Event()
        waiter = threading.Thread(target=lambda: (rig.transfer.wait(0, 2), arrived.set()))
        waiter.start()
        assert not arrived.wait(0.02)
        rig.transfer.wait(1, 0)  # another slot has nothing to wait for
        rig.source.allow(None)
        waiter.join(10)
        assert arrived.is_set() and holds(rig.pools[0], 2, expert(7))


def test_threads_copy_into_different_slots_at_the_same_time() -> None:
    with Rig(permits=0, threads=3) as rig:
        for slot in range(3):
            rig.transfer.submit(expert(slot), 0, slot)
        rig.source.began(3)
        rig.finish()
        assert all(holds(rig.pools[0], slot, expert(slot)) for slot in range(3))


def test_an_exception_in_the_thread_surfaces() -> None:
    with Rig() as rig:
        rig.transfer.submit(expert(1), 0, 3)
        rig.transfer.wait(0, 3)
        rig.source.faults[expert(99)] = OSError("read failed")
        rig.transfer.submit(expert(99), 0, 0)
        with pytest.raises(TransferError, match="read failed") as raised:
            rig.transfer.wait(0, 0)
        assert isinstance(raised.value.__cause__, OSError)
        with pytest.raises(TransferError):
            rig.transfer.wait(1, 1)
        with pytest.raises(TransferError):
            rig.transfer.submit(expert(1), 0, 1)
        assert rig.pools[0].state(0) is CopyState.LOADING  # half of it is there: never READY
        assert rig.pools[0].state(3) is CopyState.READY and holds(rig.pools[0], 3, expert(1))


def test_what_the_user_can_mend_stays_an_input_error() -> None:
    with Rig() as rig:
        rig.source.faults[expert(99)] = InputError("truncated expert store x: delete it and run again")
        rig.transfer.submit(expert(99), 0, 0)
        with pytest.raises(InputError, match="^truncated expert store x: delete it and run again$"):
            rig.transfer.wait(0, 0)


def test_close_drops_what_was_not_begun_and_joins() -> None:
    rig = Rig(permits=0)
    for slot in range(4):
        rig.transfer.submit(expert(slot), 0, slot)
    threading.Timer(0.02, rig.source.allow, [None]).start()
    rig.transfer.close()
    rig.transfer.close()
    assert len(rig.order) <= 1
    assert not any(thread.is_alive() for thread in rig.transfer._threads)
    with pytest.raises(TransferError, match="closed"):
        rig.transfer.submit(expert(1), 0, 0)
    with pytest.raises(TransferError, match="closed"):
        rig.transfer.wait(0, 3)


def test_close_ends_a_wait() -> None:
    rig, raised = Rig(permits=0), []

    def wait() -> None:
        with pytest.raises(TransferError, match="closed"):
            rig.transfer.wait(0, 1)
        raised.append(True)

    for slot in (0, 1):
        rig.transfer.submit(expert(slot), 0, slot)
    rig.source.began(1)
    waiter = threading.Thread(target=wait)
    waiter.start()
    closer = threading.Thread(target=rig.transfer.close)
    closer.start()
    waiter.join(10)
    assert raised and closer.is_alive()  # a piece is still being read
    rig.source.allow(None)
    closer.join(10)
    assert not closer.is_alive()


def test_wait_ends_when_the_threads_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HostTransfer, "_run", lambda self: None)
    monkeypatch.setattr(host, "_POLL_S", 0.01)
    with Rig() as rig:
        rig.transfer.submit(expert(1), 0, 0)
        with pytest.raises(TransferError, match="a thread that copies has ended"):
            rig.transfer.wait(0, 0)


def test_a_fork_has_no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    with Rig(permits=0) as rig:
        rig.transfer.submit(expert(1), 0, 0)
        with monkeypatch.context() as patch:
            patch.setattr(host.os, "getpid", lambda: 1)
            with pytest.raises(TransferError, match="forked"):
                rig.transfer.wait(0, 0)
            with pytest.raises(TransferError, match="forked"):
                rig.transfer.submit(expert(1), 0, 1)


def test_threads_that_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = threading.Thread.start, []

    def start(thread: threading.Thread) -> None:
        calls.append(thread)
        if len(calls) == 2:
            raise RuntimeError("can't start new thread")
        original(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(TransferError, match="cannot start 2 threads"):
        Rig(threads=2)
    assert not calls[0].is_alive()


def test_ctrl_c_in_wait_leaves_an_engine_that_goes_on(request: pytest.FixtureRequest) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    with Rig(permits=0) as rig:
        rig.transfer.submit(expert(5), 0, 0)
        main = threading.main_thread().ident
        assert main is not None
        threading.Timer(0.02, signal.pthread_kill, [main, signal.SIGINT]).start()
        with pytest.raises(KeyboardInterrupt):
            rig.transfer.wait(0, 0)
        rig.transfer.submit(expert(6), 0, 1)
        rig.finish()
        assert holds(rig.pools[0], 0, expert(5)) and holds(rig.pools[0], 1, expert(6))


def test_a_submission_cut_short_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    with Rig() as rig:
        with monkeypatch.context() as patch:

            def interrupted(*_: object) -> None:
                raise KeyboardInterrupt

            patch.setattr(host, "_Copy", interrupted)  # after the pool has heard of the copy
            with pytest.raises(KeyboardInterrupt):
                rig.transfer.submit(expert(1), 0, 0)
        with pytest.raises(TransferError, match="lost when its submission was interrupted"):
            rig.transfer.wait(0, 0)
        rig.transfer.submit(expert(2), 0, 0)
        rig.transfer.wait(0, 0)
        assert holds(rig.pools[0], 0, expert(2))


def test_a_copy_into_a_pinned_slot_changes_nothing() -> None:
    with Rig() as rig:
        rig.transfer.submit(expert(1), 0, 0)
        rig.transfer.wait(0, 0)
        rig.pools[0].pin(0, expert(1))
        with pytest.raises(ConsistencyError, match="while a computation reads"):
            rig.transfer.submit(expert(2), 0, 0)
        rig.transfer.wait(0, 0)
        assert holds(rig.pools[0], 0, expert(1))
        rig.pools[0].unpin(0)


def test_observer_sees_every_piece_and_the_clock_counts_stalls() -> None:
    spans: list[Span] = []
    ticks = itertools.count()
    with Rig(permits=0, chunk_bytes=100, observer=spans.append, now=lambda: float(next(ticks))) as rig:
        rig.transfer.submit(expert(1), 0, 0, ahead=True)
        rig.transfer.submit(expert(2), 1, 3)
        rig.finish()
    assert {(s.kind, s.key.expert, s.pool, s.slot) for s in spans} == {("ahead", 1, 0, 0), ("demand", 2, 1, 3)}
    assert sum(s.nbytes for s in spans) == 2 * NBYTES
    assert all(s.begin_s < s.end_s for s in spans)
    counts = rig.transfer.counts()
    assert counts.busy_s == sum(s.end_s - s.begin_s for s in spans)
    assert counts.stall_s > 0


def test_an_observer_that_fails_ends_copying() -> None:
    def observer(_: Span) -> None:
        raise ValueError("no room for the timeline")

    with Rig(observer=observer) as rig:
        rig.transfer.submit(expert(1), 0, 0)
        rig.transfer.submit(expert(2), 0, 1)
        with pytest.raises(TransferError, match="no room for the timeline"):
            rig.transfer.wait(0, 1)


@pytest.mark.parametrize("settings", [{"threads": 0}, {"chunk_bytes": 0}])
def test_settings_that_cannot_be(settings: dict[str, int]) -> None:
    with pytest.raises(InputError, match="expected 1 or more of each"):
        Rig(**settings)
