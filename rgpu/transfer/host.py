"""`HostTransfer`: copies experts from the store into slots in host memory, one background thread, in order."""

import threading
from collections import deque

import numpy as np

from rgpu.errors import RgpuError
from rgpu.memory.slot_pool import CopyState, SlotPool
from rgpu.store.expert_store import ExpertStore
from rgpu.types import ExpertKey


class TransferError(RgpuError):
    """A copy failed; the cause is chained."""


class HostTransfer:
    """A `TransferEngine` of one daemon thread: first submitted, first copied.

    An exception in the thread (a store on a disk that failed, say) ends all copying and is raised by the next `wait` or
    `submit`. `close` drops what was not begun and joins the thread; it is safe to call twice and after an interrupt.
    """

    def __init__(self, store: ExpertStore, pools: list[SlotPool]) -> None:
        self._store = store
        self._pools = pools
        self._targets = [pool.buffer[:, : pool.layout.nbytes].numpy() for pool in pools]
        self._queue: deque[tuple[ExpertKey, int, int]] = deque()
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._closed = False
        self.copies = 0
        self._thread = threading.Thread(target=self._run, name="rgpu-transfer", daemon=True)
        self._thread.start()

    def submit(self, key: ExpertKey, pool: int, slot: int) -> None:
        """Queues a copy of `key` into `slot` of `pool`."""
        with self._changed:
            self._check()
            self._pools[pool].begin(slot, key)
            self._queue.append((key, pool, slot))
            self._changed.notify_all()

    def wait(self, pool: int, slot: int) -> None:
        """Returns once every copy queued into that slot is complete."""
        if self._pools[pool].state(slot) is not CopyState.LOADING and self._error is None:
            return
        with self._changed:
            while self._error is None and not self._closed and self._pools[pool].state(slot) is CopyState.LOADING:
                self._changed.wait()
            self._check()

    def close(self) -> None:
        """Stops the thread; copies not begun are dropped."""
        with self._changed:
            self._closed = True
            self._queue.clear()
            self._changed.notify_all()
        self._thread.join()

    def _check(self) -> None:
        if self._error is not None:
            raise TransferError(f"copy failed: {self._error}") from self._error
        if self._closed:
            raise TransferError("transfer engine is closed")

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._queue and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                key, pool, slot = self._queue.popleft()
            try:
                np.copyto(self._targets[pool][slot], self._store.buffer(key))
                self._pools[pool].finish(slot)
            except BaseException as error:  # noqa: BLE001  (whatever it is, the waiting thread must hear of it)
                with self._changed:
                    self._error = error
                    self._changed.notify_all()
                return
            with self._changed:
                self.copies += 1
                self._changed.notify_all()
