"""`HostTransfer`: copies experts from their source into slots in host memory, on background threads, what is needed first."""

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from rgpu.errors import InputError
from rgpu.memory.slot_pool import CopyState, SlotPool
from rgpu.store.source import ExpertSource
from rgpu.transfer.counts import AHEAD, DEMAND, Observer, Span, TransferCounts
from rgpu.transfer.errors import TransferError, check_alive
from rgpu.types import ExpertKey

CHUNK_BYTES = 4 << 20
_POLL_S = 0.5  # how often one who waits looks whether the threads live


@dataclass(slots=True, eq=False)
class _Copy:
    """One submitted copy. `urgent`: on demand, or ahead and waited for by now."""

    key: ExpertKey
    pool: int
    slot: int
    ticket: int
    ahead: bool
    urgent: bool
    done: int = 0  # bytes
    running: bool = False


class HostTransfer:
    """A `TransferEngine` of `threads` daemon threads.

    Copies on demand go first, in the order submitted, then copies `ahead`, until somebody waits for one. A copy is made in
    pieces of `chunk_bytes`, between which one that goes first overtakes it. Into one slot only the last submitted counts:
    earlier ones are given up at their next piece, and no two pieces are written into it at a time.

    An exception in a thread ends all copying and is raised by the next `wait` or `submit`: an `InputError` (a store that
    was truncated, a disk that fails) as such, anything else as `TransferError`. `close` drops what is not complete and
    joins the threads once their pieces end; it is safe to call twice and after an interrupt. `observer` gets each piece,
    on the thread that copied it. One thread submits; any may wait.
    """

    def __init__(
        self, store: ExpertSource, pools: list[SlotPool], *, threads: int = 1, chunk_bytes: int = CHUNK_BYTES,
        observer: Observer | None = None, now: Callable[[], float] = time.perf_counter,
    ) -> None:  # fmt: skip
        if threads < 1 or chunk_bytes < 1:
            raise InputError(
                f"transfer: got {threads} threads and pieces of {chunk_bytes} bytes, expected 1 or more of each"
            )
        self._source = store
        self._pools = pools
        self.renewed()
        self._chunk = chunk_bytes
        self._observer = observer
        self._now = now
        # `with` takes this lock, never a condition: an interrupt inside `Condition.__enter__` would leave it taken
        self._lock = threading.RLock()
        self._work = threading.Condition(self._lock)
        self._landed = threading.Condition(self._lock)
        self._demand: deque[_Copy] = deque()
        self._ahead: deque[_Copy] = deque()
        self._last: dict[tuple[int, int], _Copy] = {}  # the copy that counts for a slot, while it is not complete
        self._writing: set[tuple[int, int]] = set()
        self._counts = TransferCounts()
        self._error: BaseException | None = None
        self._closed = False
        self._process = os.getpid()
        self._threads = [threading.Thread(target=self._run, name="rgpu-transfer", daemon=True) for _ in range(threads)]
        try:
            for thread in self._threads:
                thread.start()
        except RuntimeError as error:
            self._threads = [thread for thread in self._threads if thread.ident is not None]
            self.close()
            raise TransferError(f"cannot start {threads} threads that copy experts: {error}") from None

    def renewed(self) -> None:
        """The pools are in other memory; no copy may be on its way."""
        self._targets = [pool.buffer[:, : pool.layout.nbytes].numpy() for pool in self._pools]

    @property
    def copies(self) -> int:
        """Copies completed."""
        return self._counts.copies

    def counts(self) -> TransferCounts:
        """What was done until now."""
        with self._lock:
            return replace(self._counts, queued=len(self._last))

    def submit(self, key: ExpertKey, pool: int, slot: int, ahead: bool = False) -> None:
        """Queues a copy of `key` into `slot` of `pool`; `ahead`: behind everything that is needed now."""
        self._of_this_process()
        with self._lock:
            check_alive(self._error, self._closed)
            copy = _Copy(key, pool, slot, self._pools[pool].begin(slot, key), ahead, not ahead)
            # in this order an interrupt between two lines loses the copy, which `wait` notices, and nothing else
            (self._ahead if ahead else self._demand).append(copy)
            before, self._last[pool, slot] = self._last.get((pool, slot)), copy
            if before is not None and not before.running:  # a running one counts when its piece ends
                self._count_cancelled(before)
            self._work.notify()

    def cancel(self, pool: int, slot: int) -> bool:
        """Drops the copy ahead that was submitted last for the slot, unless it is complete or somebody waits for it. The slot
        is then EMPTY. Whether there was one."""
        with self._lock:
            copy = self._last.get((pool, slot))
            if copy is None or copy.urgent:
                return False
            self._pools[pool].drop(slot, copy.ticket)
            del self._last[pool, slot]
            if not copy.running:
                self._count_cancelled(copy)
            return True

    def wait(self, pool: int, slot: int) -> None:
        """Returns once the last copy submitted for that slot is complete (or cancelled); a copy ahead now goes first.

        Always ends: raises when the engine failed or was closed, when its threads are gone or the copy was lost."""
        states = self._pools[pool]
        if states.state(slot) is not CopyState.LOADING and self._error is None:
            return
        self._of_this_process()
        with self._lock:
            begin_s = self._now()
            try:
                while True:
                    check_alive(self._error, self._closed)
                    if states.state(slot) is not CopyState.LOADING:
                        return
                    self._hurry(pool, slot)
                    if not self._landed.wait(_POLL_S) and not all(thread.is_alive() for thread in self._threads):
                        self._fail(TransferError("a thread that copies has ended"))
            finally:
                self._counts.stall_s += self._now() - begin_s

    def still(self) -> None:
        """Returns once nothing writes into a slot, a copy that was cancelled neither. Raises as `wait`."""
        with self._lock:
            while self._writing:
                check_alive(self._error, self._closed)
                if not self._landed.wait(_POLL_S) and not all(thread.is_alive() for thread in self._threads):
                    self._fail(TransferError("a thread that copies has ended"))

    def close(self) -> None:
        """Stops the threads; copies that are not complete are dropped."""
        with self._lock:
            self._closed = True
            self._work.notify_all()
            self._landed.notify_all()
        for thread in self._threads:
            thread.join()

    def _hurry(self, pool: int, slot: int) -> None:
        copy = self._last.get((pool, slot))
        if copy is None:
            raise TransferError(
                f"the copy into slot {slot} of pool {pool} was lost when its submission was interrupted"
            )
        if not copy.urgent:
            copy.urgent = True
            self._counts.promoted += 1
            self._demand.appendleft(copy)  # its other entry does no harm
            self._work.notify()

    def _of_this_process(self) -> None:
        if os.getpid() != self._process:  # a fork has none of the threads, and perhaps a lock that nobody will release
            raise TransferError("this transfer engine belongs to the process that was forked; open another one here")

    def _count_cancelled(self, copy: _Copy) -> None:
        self._counts.cancelled += 1
        self._counts.cancelled_bytes += self._targets[copy.pool].shape[1] - copy.done

    def _run(self) -> None:
        try:
            while (copy := self._take()) is not None:
                self._copy_piece(copy)
        except BaseException as error:  # noqa: BLE001  (whatever it is, the waiting thread must hear of it)
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            self._error = self._error or error
            self._work.notify_all()
            self._landed.notify_all()

    def _take(self) -> _Copy | None:
        """The copy whose next piece is due, marked as running; None at the end."""
        with self._lock:
            while not self._closed and self._error is None:
                copy = self._next(self._demand) or self._next(self._ahead)
                if copy is not None:
                    copy.running = True
                    self._writing.add((copy.pool, copy.slot))
                    return copy
                self._work.wait()
            return None

    def _next(self, queue: deque[_Copy]) -> _Copy | None:
        """Takes the first that counts out of `queue`; those whose slot is being written keep their place."""
        blocked, found = [], None
        while queue and found is None:
            copy = queue.popleft()
            if self._last.get((copy.pool, copy.slot)) is not copy:
                continue  # superseded, cancelled or complete
            if (copy.pool, copy.slot) in self._writing:
                blocked.append(copy)
            else:
                found = copy
        queue.extendleft(reversed(blocked))
        return found

    def _copy_piece(self, copy: _Copy) -> None:
        target = self._targets[copy.pool][copy.slot]
        start, end = copy.done, min(copy.done + self._chunk, target.nbytes)
        begin_s = self._now()
        self._source.read_into(copy.key, target[start:end], start)
        end_s = self._now()
        with self._lock:
            self._account(copy, end - start, end_s - begin_s)
            copy.done, copy.running = end, False
            self._writing.discard((copy.pool, copy.slot))
            if self._last.get((copy.pool, copy.slot)) is not copy:
                self._count_cancelled(copy)
                self._work.notify()  # the one that superseded it could not begin until now
                self._landed.notify_all()  # see `still`
            elif end < target.nbytes:
                (self._demand if copy.urgent else self._ahead).appendleft(copy)
            else:
                self._counts.copies += 1
                del self._last[copy.pool, copy.slot]
                self._pools[copy.pool].finish(copy.slot, copy.ticket)
                self._landed.notify_all()
        if self._observer is not None:
            kind = AHEAD if copy.ahead else DEMAND
            self._observer(Span(begin_s, end_s, copy.key, copy.pool, copy.slot, kind, end - start))

    def _account(self, copy: _Copy, nbytes: int, seconds: float) -> None:
        self._counts.busy_s += seconds
        if copy.ahead:
            self._counts.ahead_bytes += nbytes
        else:
            self._counts.demand_bytes += nbytes
