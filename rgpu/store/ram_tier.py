"""`RamTier`: a bounded number of experts in RAM in front of a slower source."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from rgpu.errors import InputError, RgpuError
from rgpu.store.over import SourceOver
from rgpu.store.source import ExpertSource, not_here
from rgpu.types import ExpertKey

Allocate = Callable[[int], np.ndarray]  # bytes -> uint8 [bytes]; the seam for pinned memory


@dataclass(slots=True)
class _Row:
    """One expert in the tier: where, how much of it is there, how many read it or compute from it now."""

    index: int
    filled: int = 0
    users: int = 0


class RamTier(SourceOver):
    """An `ExpertSource` of `experts` rows in RAM (each `layout.stride` bytes) over `below`.

    An expert that is read is kept. What goes for it: the least recently read (`order=None`); or the tier keeps the first
    `experts` of `order` and nothing else. Rows in use never go; with none to spare a read passes the tier by. Which
    experts are here depends on when copies ran: it changes times and where an expert is computed, never what is decided.
    """

    where = "tier"

    def __init__(
        self, below: ExpertSource, experts: int, order: Sequence[ExpertKey] | None = None, allocate: Allocate | None = None
    ) -> None:  # fmt: skip
        total = len(below.layer_ids) * below.experts
        if experts < 1:
            raise InputError(f"RAM tier: got {experts} experts, expected 1 to {total}; use store 'direct' for none")
        super().__init__(below)
        self.held = min(experts, total)
        self._keeps = None if order is None else frozenset(order[: self.held])
        stride = below.layout.stride
        try:
            raw = (allocate or _pages)(self.held * stride)
        except MemoryError:
            raise InputError(
                f"cannot hold {self.held} experts of {stride} bytes in RAM: got no memory for {self.held * stride} bytes; "
                "lower the number of experts in RAM"
            ) from None
        self._rows = raw.reshape(self.held, stride)
        self._free = list(range(self.held))[::-1]
        self._of: OrderedDict[ExpertKey, _Row] = OrderedDict()  # least recently read first
        self._lock = threading.Lock()
        self._closed = False
        self.hits = 0
        self.misses = 0

    @property
    def ram_bytes(self) -> int:
        """Bytes of the tier's rows."""
        return int(self._rows.nbytes) + self.below.ram_bytes

    @property
    def in_place(self) -> bool:
        """See `ExpertSource`."""
        return False

    @property
    def rows_SB(self) -> torch.Tensor:
        """uint8 [held, stride]: the tier's rows; read only rows that are pinned, and write none."""
        return torch.from_numpy(self._rows)

    def row(self, key: ExpertKey) -> int:
        """The expert's row now; `InputError` where the tier does not hold it. Prefer `pin`."""
        with self._lock:
            row = self._of.get(key)
            if row is None or row.filled < self.layout.nbytes:
                raise InputError(not_here(self.where, key))
            return row.index

    def pin(self, key: ExpertKey) -> int | None:
        """The expert's row of `rows_SB`, kept until `unpin`; None where the tier does not hold it."""
        with self._lock:
            row = self._of.get(key)
            if row is None or row.filled < self.layout.nbytes:
                return None
            row.users += 1
            self._of.move_to_end(key)
            return row.index

    def unpin(self, key: ExpertKey) -> None:
        """Ends one `pin`."""
        with self._lock:
            self._of[key].users -= 1

    def buffer(self, key: ExpertKey) -> np.ndarray:
        """uint8 [layout.nbytes], read-only: a copy, for the row may get another expert."""
        data = np.empty(self.layout.nbytes, np.uint8)
        self.read_into(key, data)
        data.flags.writeable = False
        return data

    def read_into(self, key: ExpertKey, out: np.ndarray, start: int = 0) -> None:
        """See `ExpertSource`. A row fills as the parts of its expert are read in order; parts out of order pass it by."""
        with self._using(key, start) as row:
            if row is None:
                self.below.read_into(key, out, start)
                return
            part = self._rows[row.index, start : start + out.nbytes]
            if row.filled <= start:  # this thread alone has the row: see `_row_for`
                self.below.read_into(key, part, start)
                row.filled = start + out.nbytes
            np.copyto(out, part)

    @contextmanager
    def _using(self, key: ExpertKey, start: int) -> Iterator[_Row | None]:
        with self._lock:
            if self._closed:
                raise RgpuError("RAM tier is closed")
            row = self._row_for(key, start)
            if start == 0:
                there = row is not None and row.filled > 0
                self.hits, self.misses = self.hits + there, self.misses + (not there)
            if row is not None:
                row.users += 1
        try:
            yield row
        finally:
            if row is not None:
                with self._lock:
                    row.users -= 1

    def _row_for(self, key: ExpertKey, start: int) -> _Row | None:
        """A row that is complete, or whose next part begins at `start` and that nobody else uses, or None."""
        row = self._of.get(key)
        if row is not None:
            self._of.move_to_end(key)
            if row.filled == self.layout.nbytes:
                return row
            if not row.users and start in (0, row.filled):
                row.filled = start  # 0: a copy was given up midway and begins anew
                return row
            return None
        if start or (self._keeps is not None and key not in self._keeps):
            return None
        if not self._free:
            victim = next((k for k, r in self._of.items() if not r.users), None)
            if victim is None:
                return None
            self._free.append(self._of.pop(victim).index)
        row = self._of[key] = _Row(self._free.pop())
        return row

    def close(self) -> None:
        """Closes what is below; the rows go with their last view."""
        self._closed = True
        self.below.close()


def _pages(nbytes: int) -> np.ndarray:
    """Memory that begins at a page, so that O_DIRECT can read into it."""
    raw = np.empty(nbytes + 4096, np.uint8)
    start = -raw.ctypes.data % 4096
    return raw[start : start + nbytes]
