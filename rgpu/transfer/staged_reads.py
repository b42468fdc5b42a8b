"""`StagedReads`: threads that read experts from their source into a ring of page-locked buffers, what is needed first."""

import mmap
import threading
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass

import torch

from rgpu.errors import InputError
from rgpu.memory.pinned import page_locked
from rgpu.planning.memory_plan import READ_BUFFERS
from rgpu.store.source import ExpertSource
from rgpu.transfer.errors import TransferError
from rgpu.transfer.host import CHUNK_BYTES
from rgpu.types import ExpertKey

THREADS = 4
BUFFERS = READ_BUFFERS  # of an expert each
AHEAD_BUFFERS = 3  # of these, at most, for reads ahead: what is needed now always finds a thread and the other buffers
LockPages = Callable[[torch.Tensor], AbstractContextManager[None]]
_POLL_S = 0.5  # how often one who waits looks whether the threads live


def _where_a_gpu_reads(memory: torch.Tensor) -> AbstractContextManager[None]:
    return page_locked(memory) if torch.cuda.is_available() else nullcontext()


def _own_pages(nbytes: int) -> torch.Tensor:
    """uint8 [nbytes] of private memory in pages that nothing else is in, as pages are locked whole."""
    try:
        pages = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, MemoryError) as error:
        raise InputError(
            f"cannot read experts from disk: got no memory for a buffer of {nbytes} bytes ({error}); give fewer ram_experts"
        ) from None
    return torch.frombuffer(pages, dtype=torch.uint8)


@dataclass(slots=True, eq=False)
class Read:
    """One expert on its way into `buffer`, uint8 [nbytes] in host memory. `urgent`: needed now."""

    buffer: torch.Tensor
    key: ExpertKey
    urgent: bool
    done: int = 0  # bytes
    running: bool = False
    given_up: bool = False


class StagedReads:
    """Reads of whole experts on `threads` daemon threads into at most `buffers` buffers, which one thread asks for.

    Urgent reads go first, in the order they began. A read is made in pieces, between which one that goes first overtakes it
    and after which it can be given up. `begin` needs `room`; whoever took a read from `ended` gives it back with `release`
    once nothing reads its buffer any more. A read that fails ends all reading: `error` is set and `wait` returns.

    Buffers are plain memory that is locked where it is, until `close`: torch's own page-locked memory comes in powers of two,
    up to twice what plans count.
    """

    def __init__(
        self, source: ExpertSource, *, threads: int = THREADS, buffers: int = BUFFERS, ahead: int = AHEAD_BUFFERS,
        chunk_bytes: int = CHUNK_BYTES, lock_pages: LockPages | None = None,
    ) -> None:  # fmt: skip
        self._lock_pages, self._locks = lock_pages or _where_a_gpu_reads, ExitStack()
        self._source, self._nbytes, self._chunk = source, source.layout.nbytes, chunk_bytes
        self._buffers, self._most_ahead = buffers, ahead
        self._free: list[torch.Tensor] = []
        self._made = self._held_ahead = 0
        # `with` takes this lock, never a condition: an interrupt inside `Condition.__enter__` would leave it taken
        self._lock = threading.RLock()
        self._work, self._news = threading.Condition(self._lock), threading.Condition(self._lock)
        self._waiting: tuple[deque[Read], deque[Read]] = (deque(), deque())  # ahead, urgent
        self._ended: list[Read] = []
        self._changed = self._closed = False
        self.error: BaseException | None = None
        self._threads = [threading.Thread(target=self._run, name="rgpu-read", daemon=True) for _ in range(threads)]
        try:
            for thread in self._threads:
                thread.start()
        except RuntimeError as error:
            self._threads = [thread for thread in self._threads if thread.ident is not None]
            self.close()
            raise TransferError(f"cannot start {threads} threads that read experts: {error}") from None

    def room(self, urgent: bool) -> bool:
        """Whether such a read can begin."""
        with self._lock:
            return bool(self._free or self._made < self._buffers) and (urgent or self._held_ahead < self._most_ahead)

    def begin(self, key: ExpertKey, urgent: bool) -> Read:
        """Has the expert read into a free buffer."""
        with self._lock:
            if not self._free:
                assert self._made < self._buffers
                buffer = _own_pages(self._source.layout.stride)
                self._locks.enter_context(self._lock_pages(buffer))
                self._free.append(buffer[: self._nbytes])
                self._made += 1
            read = Read(self._free.pop(), key, urgent)
            self._held_ahead += not urgent
            self._waiting[urgent].append(read)
            self._work.notify()
            return read

    def hurry(self, read: Read) -> None:
        """A read ahead that somebody waits for by now."""
        with self._lock:
            if not read.urgent:
                read.urgent = True
                self._held_ahead -= 1
                if read in self._waiting[False]:
                    self._waiting[False].remove(read)
                    self._waiting[True].appendleft(read)

    def give_up(self, read: Read) -> None:
        """Ends a read that was not taken from `ended` yet; its buffer is free once its piece ends."""
        with self._lock:
            read.given_up = True
            for place in (*self._waiting, self._ended):
                if read in place:
                    place.remove(read)
            if not read.running:
                self.release(read)

    def release(self, read: Read) -> None:
        """The buffer may be read into again."""
        with self._lock:
            self._free.append(read.buffer)
            self._held_ahead -= not read.urgent

    def ended(self) -> list[Read]:
        """Reads complete since the last call, urgent ones first."""
        with self._lock:
            done, self._ended, self._changed = self._ended, [], False
        return sorted(done, key=lambda read: not read.urgent)

    def wait(self) -> None:
        """Returns once a read ended or a buffer became free since the last `ended`, or with `error` set."""
        with self._lock:
            while not self._changed and self.error is None:
                if not self._news.wait(_POLL_S) and not all(thread.is_alive() for thread in self._threads):
                    self._fail(TransferError("a thread that reads experts has ended"))

    def close(self) -> None:
        """Stops the threads once their pieces end; safe to call twice."""
        with self._lock:
            self._closed = True
            self._work.notify_all()
        for thread in self._threads:
            thread.join()
        self._free.clear()
        self._ended.clear()
        self._locks.close()

    def _run(self) -> None:
        try:
            while (read := self._take()) is not None:
                self._read_piece(read)
        except BaseException as error:  # noqa: BLE001  (whatever it is, who waits must hear of it)
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            self.error = self.error or error
            self._work.notify_all()
            self._news.notify_all()

    def _take(self) -> Read | None:
        """The read whose next piece is due; None at the end."""
        with self._lock:
            while not self._closed and self.error is None:
                waiting = self._waiting[True] or self._waiting[False]
                if waiting:
                    read = waiting.popleft()
                    read.running = True
                    return read
                self._work.wait()
            return None

    def _read_piece(self, read: Read) -> None:
        start, end = read.done, min(read.done + self._chunk, self._nbytes)
        self._source.read_into(read.key, read.buffer.numpy()[start:end], start)
        with self._lock:
            read.done, read.running = end, False
            if read.given_up:
                self.release(read)
            elif end < self._nbytes:
                self._waiting[read.urgent].appendleft(read)
                self._work.notify()
                return
            else:
                self._ended.append(read)
            self._changed = True
            self._news.notify_all()
