"""`SlotPool`: the device buffer of one pool, its slot views and the state of every copy into it."""

import threading
from enum import Enum

import torch

from rgpu.errors import ConsistencyError
from rgpu.store.layout import ALIGNMENT, ExpertLayout
from rgpu.types import ExpertKey


class CopyState(Enum):
    """What is physically in a slot: nothing, a copy on its way, a complete expert."""

    EMPTY = 0
    LOADING = 1
    READY = 2


class SlotPool:
    """`rows` slots in one 128-byte aligned buffer: the main slots first, staging slots last.

    Copies into one slot are queued in order; the slot is READY when the last has finished. A slot that a computation
    uses is pinned. Illegal moves (a copy into a pinned slot, a computation on a slot that holds another expert or is
    not READY) raise `ConsistencyError`: they would mean that a decision and its execution disagree.
    """

    def __init__(self, layout: ExpertLayout, rows: int) -> None:
        self.layout = layout
        self.rows = rows
        self.nbytes = rows * layout.stride
        raw = torch.empty(self.nbytes + ALIGNMENT, dtype=torch.uint8)
        start = -raw.data_ptr() % ALIGNMENT
        self.buffer = raw[start : start + self.nbytes].view(rows, layout.stride)
        self._views = [layout.views(row) for row in self.buffer]
        self._queued = [0] * rows
        self._pinned = [False] * rows
        self._key: list[ExpertKey | None] = [None] * rows
        self._lock = threading.Lock()

    def state(self, slot: int) -> CopyState:
        """The slot's copy state."""
        if self._queued[slot]:
            return CopyState.LOADING
        return CopyState.EMPTY if self._key[slot] is None else CopyState.READY

    def key(self, slot: int) -> ExpertKey | None:
        """The expert that the slot holds, or will once its queued copies are done."""
        return self._key[slot]

    def begin(self, slot: int, key: ExpertKey) -> None:
        """A copy of `key` into `slot` was queued."""
        with self._lock:
            if self._pinned[slot]:
                raise ConsistencyError(
                    f"copy of {key} into slot {slot} while a computation reads {self._key[slot]} there"
                )
            self._queued[slot] += 1
            self._key[slot] = key

    def finish(self, slot: int) -> None:
        """The oldest queued copy into `slot` is complete."""
        with self._lock:
            if not self._queued[slot]:
                raise ConsistencyError(f"a copy into slot {slot} finished that was never queued")
            self._queued[slot] -= 1

    def pin(self, slot: int, key: ExpertKey) -> tuple[torch.Tensor, torch.Tensor]:
        """`gate_up` [2I, D] and `down` [D, I] of `key`, which must be READY in `slot`; pinned until `unpin`."""
        with self._lock:
            if self._key[slot] != key or self._queued[slot]:
                raise ConsistencyError(
                    f"slot {slot} should hold {key}: got {self._key[slot]} in state {self.state(slot).name}"
                )
            self._pinned[slot] = True
        return self._views[slot]

    def unpin(self, slot: int) -> None:
        """The computation on `slot` is done."""
        with self._lock:
            self._pinned[slot] = False
