"""`DeviceTransfer`: copies experts from host memory into slots on a GPU, on a queue of its own, without the host waiting."""

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch

from rgpu.memory.slot_pool import CopyState, SlotPool
from rgpu.store.source import ExpertSource
from rgpu.transfer.counts import AHEAD, DEMAND, Observer, Span, TransferCounts
from rgpu.transfer.errors import check_alive
from rgpu.transfer.staged_reads import Read, StagedReads
from rgpu.transfer.streams import Streams
from rgpu.types import ExpertKey

IN_FLIGHT = 4  # copies ahead that may be queued on the device: what a copy on demand waits for at most


@dataclass(slots=True, eq=False)
class _Copy:
    key: ExpertKey
    pool: int
    slot: int
    ticket: int
    ahead: bool
    read: Read | None = None  # what brings it into host memory, where that does not hold it
    begin: Any = None  # marks around the copy, once it is queued on the device
    end: Any = None


class DeviceTransfer:
    """A `TransferEngine` whose slots are on a device (`streams`). One thread uses it.

    A copy on demand is queued on the device at once. Of copies `ahead` at most `in_flight` are there at a time; the others
    wait on the host, in order, where they can be overtaken and cancelled, until `pump`, `submit` or `wait` finds room.
    Every copy begins after all that was queued for computing when it was: what still reads a slot is never overwritten.
    `wait` makes what is computed from now on begin after the slot's copy; the host does not wait. Then the slot is READY:
    it holds its expert for everything queued from then on.

    Experts of a source that holds all of them in RAM are copied from there (at full speed where that memory is page-locked,
    see `rgpu.memory.pinned`). Others are read into page-locked buffers first, by threads (`StagedReads`), several at a time and
    on demand first, and are queued on the device by the next call that finds them read; then `wait` waits on the host, but for
    the read alone. A read that fails ends all copying: the error is raised by every later `submit` and `wait`.
    """

    def __init__(
        self, store: ExpertSource, pools: list[SlotPool], streams: Streams, *, in_flight: int = IN_FLIGHT,
        observer: Observer | None = None, reads: Callable[[ExpertSource], StagedReads] = StagedReads,
    ) -> None:  # fmt: skip
        self._source = store
        self._pools = pools
        self._streams = streams
        self._in_flight = in_flight
        held = store.in_place and store.ram_bytes > 0
        self._reads = None if held else reads(store)
        self._reading: dict[Read, _Copy] = {}
        self._needed: deque[_Copy] = deque()  # on demand, without a buffer to be read into
        self._queue: deque[_Copy] = deque()  # ahead, not on the device
        self._issued: deque[_Copy] = deque()  # on the device, oldest first
        self._ahead = 0  # of these, ahead
        self._last: dict[tuple[int, int], _Copy] = {}
        self._found: set[tuple[int, int]] = set()
        self._stalls: deque[tuple[Any, Any]] = deque()
        self._counts = TransferCounts()
        self._observer = observer
        self._closed = False
        self._error: BaseException | None = None
        self._zero = streams.mark()
        streams.finish(self._zero)
        self._zero_s = time.perf_counter()  # of the device's clock on the host's

    @property
    def copies(self) -> int:
        """Copies completed."""
        self.pump()
        return self._counts.copies

    def counts(self) -> TransferCounts:
        """What was done until now. `stall_s` and `busy_s` are the device's own times, of what is complete."""
        self.pump()
        while self._stalls and self._stalls[0][1].reached():
            before, after = self._stalls.popleft()
            self._counts.stall_s += after.seconds_since(before)
        waiting = len(self._queue) + len(self._needed) + len(self._reading)
        return replace(self._counts, queued=waiting + len(self._issued))

    def submit(self, key: ExpertKey, pool: int, slot: int, ahead: bool = False) -> None:
        """Queues a copy of `key` into `slot` of `pool`; `ahead`: behind everything that is needed now."""
        self._check()
        copy = _Copy(key, pool, slot, self._pools[pool].begin(slot, key), ahead)
        before, self._last[pool, slot] = self._last.get((pool, slot)), copy
        if before is not None and before.begin is None:
            self._take_back(before)
            self._cancelled(before)
        if ahead or self._reads is not None:
            (self._queue if ahead else self._needed).append(copy)
            self.pump()
        else:
            self._issue(copy)

    def cancel(self, pool: int, slot: int) -> bool:
        """Drops the copy ahead that was submitted last for the slot where it is not on the device yet; the slot is then
        EMPTY. Whether there was one."""
        copy = self._last.get((pool, slot))
        if copy is None or not (copy in self._queue or self._reads_ahead(copy)):
            return False
        self._take_back(copy)
        self._pools[pool].drop(slot, copy.ticket)
        del self._last[pool, slot]
        self._cancelled(copy)
        return True

    def wait(self, pool: int, slot: int) -> None:
        """What is queued for computing from now on finds the slot's last copy complete."""
        self.wait_for(pool, (slot,))

    def wait_for(self, pool: int, slots: Iterable[int]) -> None:
        """The same of several slots, their stalls counted as one."""
        self._check()
        copies = [copy for slot in slots if (copy := self._last.get((pool, slot))) is not None]
        if not copies:
            return
        before = self._streams.mark(copies=False)
        for copy in copies:
            if copy.begin is None:
                self._hurry(copy)
            self._streams.computing_waits(copy.end)
        self._stalls.append((before, self._streams.mark(copies=False)))
        for copy in copies:
            # hurrying one may have found another complete
            if self._last.get((pool, copy.slot)) is copy:
                self._pools[pool].finish(copy.slot, copy.ticket)
                del self._last[pool, copy.slot]

    def pump(self) -> None:
        """Notices copies that are complete, and queues copies ahead on the device while there is room. Never waits."""
        while self._issued and self._issued[0].end.reached():
            self._landed(self._issued.popleft())
        if self._reads is not None:
            self._read_on(self._reads)
            return
        while self._queue and self._ahead < self._in_flight:
            self._issue(self._queue.popleft())

    def landed(self) -> list[tuple[int, int]]:
        """(pool, slot) of every copy that was found complete since the last call without a `wait` for it, unless another one
        for the slot was submitted since."""
        self.pump()
        found, self._found = self._found, set()
        return [(pool, slot) for pool, slot in sorted(found) if self._pools[pool].state(slot) is CopyState.READY]

    def renewed(self) -> None:
        """The pools are in other memory; no copy may be on its way."""
        self._found.clear()

    def still(self) -> None:
        """Nothing to wait for on the host: what is cancelled never reached the device."""

    def close(self) -> None:
        """Drops what is not on the device and waits for what is; safe to call twice."""
        if not self._closed:
            self._closed = True
            if self._reads is not None:
                self._reads.close()
            self._queue.clear()
            self._needed.clear()
            self._reading.clear()
            if self._issued:
                self._streams.finish(self._issued[-1].end)
            self._issued.clear()
            self._last.clear()

    def _check(self) -> None:
        failed = None if self._reads is None else self._reads.error
        check_alive(self._error or failed, self._closed)

    def _reads_ahead(self, copy: _Copy) -> bool:
        return copy.read is not None and copy.read in self._reading and not copy.read.urgent

    def _take_back(self, copy: _Copy) -> None:
        """What is not on the device is not going there."""
        for queue in (self._queue, self._needed):
            if copy in queue:
                queue.remove(copy)
        if copy.read is not None and self._reads is not None:
            del self._reading[copy.read]
            self._reads.give_up(copy.read)
            self._ahead -= copy.ahead

    def _hurry(self, copy: _Copy) -> None:
        """Returns once the copy is queued on the device, before all that are not needed now."""
        if copy in self._queue:
            self._queue.remove(copy)
            self._counts.promoted += 1
            if self._reads is None:
                return self._issue(copy)
            self._needed.appendleft(copy)
        assert self._reads is not None
        if copy.read is not None and not copy.read.urgent:
            self._reads.hurry(copy.read)
            self._counts.promoted += 1
        while True:
            self.pump()
            self._check()
            if copy.begin is not None:
                return None
            if (
                copy.read is None and self._issued
            ):  # every buffer is taken: the oldest one is free when its copy is over
                self._streams.finish(self._issued[0].end)
            else:
                self._reads.wait()

    def _read_on(self, reads: StagedReads) -> None:
        """Queues on the device what was read, and has more read where there is room."""
        try:
            for read in reads.ended():
                self._queue_on_device(self._reading.pop(read), read.buffer)
            while self._needed and reads.room(urgent=True):
                self._begin_read(reads, self._needed.popleft(), urgent=True)
            while self._queue and self._ahead < self._in_flight and reads.room(urgent=False):
                self._begin_read(reads, self._queue.popleft(), urgent=False)
        except BaseException as error:  # as in `_issue`
            self._error = error
            raise

    def _begin_read(self, reads: StagedReads, copy: _Copy, urgent: bool) -> None:
        copy.read = reads.begin(copy.key, urgent)
        self._reading[copy.read] = copy
        self._ahead += copy.ahead

    def _issue(self, copy: _Copy) -> None:
        try:
            nbytes = self._source.layout.nbytes
            self._queue_on_device(copy, self._source.rows_SB[self._source.row(copy.key), :nbytes])
            self._ahead += copy.ahead
        except BaseException as error:  # also an interrupt: what is queued on the device then cannot be told
            self._error = error
            raise

    def _queue_on_device(self, copy: _Copy, source: torch.Tensor) -> None:
        pool = self._pools[copy.pool]
        self._streams.copies_wait()
        copy.begin = self._streams.mark()
        self._streams.copy(pool.buffer[copy.slot, : pool.layout.nbytes], source)
        copy.end = self._streams.mark()
        self._issued.append(copy)

    def _landed(self, copy: _Copy) -> None:
        nbytes = self._pools[copy.pool].layout.nbytes
        if copy.read is not None and self._reads is not None:
            self._reads.release(copy.read)
        self._counts.copies += 1
        self._counts.busy_s += copy.end.seconds_since(copy.begin)
        if copy.ahead:
            self._ahead -= 1
            self._counts.ahead_bytes += nbytes
        else:
            self._counts.demand_bytes += nbytes
        if self._observer is not None:
            begin_s, end_s = (self._zero_s + mark.seconds_since(self._zero) for mark in (copy.begin, copy.end))
            kind = AHEAD if copy.ahead else DEMAND
            self._observer(Span(begin_s, end_s, copy.key, copy.pool, copy.slot, kind, nbytes))
        if self._last.get((copy.pool, copy.slot)) is copy:
            self._pools[copy.pool].finish(copy.slot, copy.ticket)
            del self._last[copy.pool, copy.slot]
            self._found.add((copy.pool, copy.slot))

    def _cancelled(self, copy: _Copy) -> None:
        self._counts.cancelled += 1
        self._counts.cancelled_bytes += self._pools[copy.pool].layout.nbytes
