"""`DeviceTransfer`: copies experts from host memory into slots on a GPU, on a queue of its own, without the host waiting."""

import time
from collections import deque
from dataclasses import dataclass, replace
from typing import Any

import torch

from rgpu.memory.slot_pool import CopyState, SlotPool
from rgpu.store.source import ExpertSource
from rgpu.transfer.counts import AHEAD, DEMAND, Observer, Span, TransferCounts
from rgpu.transfer.errors import check_alive
from rgpu.transfer.streams import Streams
from rgpu.types import ExpertKey

IN_FLIGHT = 4  # copies ahead that may be queued on the device: what a copy on demand waits for at most
BOUNCES = 4  # buffers through which experts pass that no memory holds


@dataclass(slots=True, eq=False)
class _Copy:
    key: ExpertKey
    pool: int
    slot: int
    ticket: int
    ahead: bool
    begin: Any = None  # marks around the copy, once it is queued on the device
    end: Any = None


class DeviceTransfer:
    """A `TransferEngine` whose slots are on a device (`streams`). One thread uses it.

    A copy on demand is queued on the device at once. Of copies `ahead` at most `in_flight` are there at a time; the others
    wait on the host, in order, where they can be overtaken and cancelled, until `pump`, `submit` or `wait` finds room.
    Every copy begins after all that was queued for computing when it was: what still reads a slot is never overwritten.
    `wait` makes what is computed from now on begin after the slot's copy; the host does not wait. Then the slot is READY:
    it holds its expert for everything queued from then on.

    Experts that the source holds are copied from there (at full speed where that memory is page-locked, see
    `rgpu.memory.pinned`); others are read into a page-locked buffer first, by the caller's thread. A read that fails ends all
    copying: the error is raised then and at every later `submit` and `wait`.
    """

    def __init__(
        self, store: ExpertSource, pools: list[SlotPool], streams: Streams, *, in_flight: int = IN_FLIGHT,
        observer: Observer | None = None,
    ) -> None:  # fmt: skip
        self._source = store
        self._pools = pools
        self._streams = streams
        self._in_flight = in_flight
        self._queue: deque[_Copy] = deque()  # ahead, not on the device
        self._issued: deque[_Copy] = deque()  # on the device, oldest first
        self._ahead = 0  # of these, ahead
        self._last: dict[tuple[int, int], _Copy] = {}
        self._found: set[tuple[int, int]] = set()
        self._stalls: deque[tuple[Any, Any]] = deque()
        self._bounce: deque[tuple[torch.Tensor, Any]] = deque()  # and until when they are read
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
        return replace(self._counts, queued=len(self._queue) + len(self._issued))

    def submit(self, key: ExpertKey, pool: int, slot: int, ahead: bool = False) -> None:
        """Queues a copy of `key` into `slot` of `pool`; `ahead`: behind everything that is needed now."""
        check_alive(self._error, self._closed)
        copy = _Copy(key, pool, slot, self._pools[pool].begin(slot, key), ahead)
        before, self._last[pool, slot] = self._last.get((pool, slot)), copy
        if before is not None and before.begin is None:
            self._queue.remove(before)
            self._cancelled(before)
        if ahead:
            self._queue.append(copy)
            self.pump()
        else:
            self._issue(copy)

    def cancel(self, pool: int, slot: int) -> bool:
        """Drops the copy ahead that was submitted last for the slot where it is not on the device yet; the slot is then
        EMPTY. Whether there was one."""
        copy = self._last.get((pool, slot))
        if copy is None or copy not in self._queue:
            return False
        self._queue.remove(copy)
        self._pools[pool].drop(slot, copy.ticket)
        del self._last[pool, slot]
        self._cancelled(copy)
        return True

    def wait(self, pool: int, slot: int) -> None:
        """What is queued for computing from now on finds the slot's last copy complete."""
        check_alive(self._error, self._closed)
        copy = self._last.get((pool, slot))
        if copy is None:
            return
        if copy.begin is None:
            self._queue.remove(copy)
            self._counts.promoted += 1
            self._issue(copy)
        before = self._streams.mark(copies=False)
        self._streams.computing_waits(copy.end)
        self._stalls.append((before, self._streams.mark(copies=False)))
        self._pools[pool].finish(slot, copy.ticket)
        del self._last[pool, slot]

    def pump(self) -> None:
        """Notices copies that are complete, and queues copies ahead on the device while there is room. Never waits."""
        while self._issued and self._issued[0].end.reached():
            self._landed(self._issued.popleft())
        while self._queue and self._ahead < self._in_flight:
            self._issue(self._queue.popleft())

    def landed(self) -> list[tuple[int, int]]:
        """(pool, slot) of every copy that was found complete since the last call without a `wait` for it, unless another one
        for the slot was submitted since."""
        self.pump()
        found, self._found = self._found, set()
        return [(pool, slot) for pool, slot in sorted(found) if self._pools[pool].state(slot) is CopyState.READY]

    def close(self) -> None:
        """Drops what is not on the device and waits for what is; safe to call twice."""
        if not self._closed:
            self._closed = True
            self._queue.clear()
            if self._issued:
                self._streams.finish(self._issued[-1].end)
            self._issued.clear()
            self._last.clear()
            self._bounce.clear()

    def _issue(self, copy: _Copy) -> None:
        try:
            self._queue_on_device(copy)
        except BaseException as error:  # also an interrupt: what is queued on the device then cannot be told
            self._error = error
            raise

    def _queue_on_device(self, copy: _Copy) -> None:
        source, passing = self._host(copy.key)
        pool = self._pools[copy.pool]
        self._streams.copies_wait()
        copy.begin = self._streams.mark()
        self._streams.copy(pool.buffer[copy.slot, : pool.layout.nbytes], source)
        copy.end = self._streams.mark()
        if passing:
            self._bounce.append((source, copy.end))
        self._issued.append(copy)
        self._ahead += copy.ahead

    def _host(self, key: ExpertKey) -> tuple[torch.Tensor, bool]:
        """(uint8 [nbytes] in host memory, whether it only passes through a buffer there)."""
        nbytes = self._source.layout.nbytes
        if self._source.in_place:
            return self._source.rows_SB[self._source.row(key), :nbytes], False
        if len(self._bounce) < BOUNCES:
            buffer = torch.empty(nbytes, dtype=torch.uint8, pin_memory=torch.cuda.is_available())
        else:
            buffer, used = self._bounce.popleft()
            self._streams.finish(used)
        self._source.read_into(key, buffer.numpy())
        return buffer, True

    def _landed(self, copy: _Copy) -> None:
        nbytes = self._pools[copy.pool].layout.nbytes
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
