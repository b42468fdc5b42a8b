"""A source whose reads happen when a test lets them, slowly or with faults, and which sees who writes where."""

import threading
from collections.abc import Callable

import numpy as np
import torch

from rgpu.memory.slot_pool import SlotPool
from rgpu.store.layout import ExpertLayout
from rgpu.types import ExpertKey

LAYOUT = ExpertLayout(3, 5, torch.float32)
NBYTES = LAYOUT.nbytes


def pattern(key: ExpertKey) -> np.ndarray:
    """uint8 [NBYTES] that no other expert and no shifted copy has."""
    return ((np.arange(NBYTES) * 7 + key.layer * 101 + key.expert * 31) % 251).astype(np.uint8)


def holds(pool: SlotPool, slot: int, key: ExpertKey) -> bool:
    """Whether the slot's bytes are the expert's."""
    return np.array_equal(pool.buffer[slot, :NBYTES].numpy(), pattern(key))


class ScheduledSource:
    """`permits` reads may begin (None: any number). `faults` raise in the middle of a read; `pause` runs in every read."""

    def __init__(self, permits: int | None = None, pause: Callable[[], None] = lambda: None) -> None:
        self.pause = pause
        self.faults: dict[ExpertKey, BaseException] = {}
        self.pieces: list[tuple[int, int]] = []  # (expert, first byte) of each read in the order they began
        self.overlaps = 0
        self._permits = permits
        self._changed = threading.Condition()
        self._written: set[int] = set()

    def allow(self, permits: int | None) -> None:
        """How many more reads may go on."""
        with self._changed:
            self._permits = permits
            self._changed.notify_all()

    def began(self, count: int) -> None:
        """Returns once `count` reads have begun (they may be held)."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.pieces) >= count, 10)

    def read_into(self, key: ExpertKey, out: np.ndarray, start: int = 0) -> None:
        """As an `ExpertSource`."""
        row = out.ctypes.data - start
        with self._changed:
            self.pieces.append((key.expert, start))
            self.overlaps += row in self._written
            self._written.add(row)
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: self._permits is None or self._permits > 0, 10)
            if self._permits is not None:
                self._permits -= 1
        try:
            out[: out.size // 2] = 255  # half a read is wrong bytes
            self.pause()
            if key in self.faults:
                raise self.faults[key]
            out[:] = pattern(key)[start : start + out.size]
        finally:
            with self._changed:
                self._written.discard(row)
