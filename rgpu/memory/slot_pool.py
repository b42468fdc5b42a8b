"""`SlotPool`: the device buffer of one pool, its slot views and the state of every copy into it."""

import threading
from enum import Enum

import torch

from rgpu.errors import ConsistencyError, InputError
from rgpu.memory.exhausted import told_in_a_line
from rgpu.memory.give_back import give_back
from rgpu.store.layout import RowLayout
from rgpu.types import ExpertKey

_PAGE = 4096  # a multiple of the layout's alignment; reads past the page cache go to addresses that are multiples of it


class CopyState(Enum):
    """What is physically in a slot: nothing of use, a copy on its way, a complete expert."""

    EMPTY = 0
    LOADING = 1
    READY = 2


class SlotPool:
    """`rows` slots in one page-aligned buffer: the main slots first, staging slots last.

    `begin` gives each copy a ticket. The last copy queued for a slot decides: the slot is READY when that one has finished,
    whatever became of earlier ones. The engine never runs two copies into one slot at a time. A slot that a computation
    uses is pinned. Illegal moves (a copy into a pinned slot, a computation on a slot that holds another expert or is
    not READY) raise `ConsistencyError`: they would mean that a decision and its execution disagree.

    Between events, when no copy is on its way, a pool can change its size: `move` and `clear` make its last rows free, then
    `resize` gives their memory back, at the same addresses; or `renew` puts other memory in its place.
    """

    def __init__(self, layout: RowLayout, rows: int, buffer_SB: torch.Tensor | None = None) -> None:
        self.layout = layout
        self.rows = rows
        self.buffer = allocate(layout, rows) if buffer_SB is None else buffer_SB
        self._last = [0] * rows  # ticket of the last copy queued
        self._done = [0] * rows  # of the last that ended
        self._pinned = [False] * rows
        self._key: list[ExpertKey | None] = [None] * rows
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Of the slots that there are."""
        return self.rows * self.layout.stride

    @property
    def written_bytes(self) -> int:
        """Of the slots that copies have been made into, the memory that a host really gave."""
        return sum(last > 0 for last in self._last[: self.rows]) * self.layout.stride

    def release(self) -> None:
        """Lets go of the buffer, whoever still holds the pool."""
        self.buffer = self.buffer.new_empty(0, self.layout.stride)

    def state(self, slot: int) -> CopyState:
        """The slot's copy state."""
        if self._last[slot] != self._done[slot]:
            return CopyState.LOADING
        return CopyState.EMPTY if self._key[slot] is None else CopyState.READY

    def key(self, slot: int) -> ExpertKey | None:
        """The expert that the slot holds, or will once its last copy is done."""
        return self._key[slot]

    def move(self, source: int, target: int) -> None:
        """What `source` holds is in `target`, its bytes too, and `source` is EMPTY."""
        with self._lock:
            self._at_rest(source)
            self._at_rest(target)
            self.buffer[target].copy_(self.buffer[source])
            self._key[target], self._key[source] = self._key[source], None

    def clear(self, slot: int) -> None:
        """`slot` is EMPTY."""
        with self._lock:
            self._at_rest(slot)
            self._key[slot] = None

    def _at_rest(self, slot: int) -> None:
        if self._pinned[slot] or self._last[slot] != self._done[slot]:
            raise ConsistencyError(f"slot {slot} with {self._key[slot]} is in use and was to change")

    def resize(self, rows: int) -> None:
        """So many rows, at most as many as the buffer has, where it is; memory of the others goes back to the system."""
        if not 0 < rows <= len(self.buffer):
            raise ConsistencyError(f"{rows} rows in a buffer of {len(self.buffer)}")
        for slot in range(rows, self.rows):
            self.clear(slot)
            self._last[slot] = self._done[slot] = 0
        if rows < self.rows:
            give_back(self.buffer[rows:])
        self.rows = rows

    def renew(self, buffer_SB: torch.Tensor) -> None:
        """The pool is what `buffer_SB` is, and EMPTY."""
        for slot in range(self.rows):
            self.clear(slot)
        self.buffer, self.rows = buffer_SB, len(buffer_SB)
        self._last, self._done = [0] * self.rows, [0] * self.rows
        self._pinned, self._key = [False] * self.rows, [None] * self.rows

    def begin(self, slot: int, key: ExpertKey) -> int:
        """A copy of `key` into `slot` was queued; returns its ticket."""
        with self._lock:
            if self._pinned[slot]:
                raise ConsistencyError(
                    f"copy of {key} into slot {slot} while a computation reads {self._key[slot]} there"
                )
            self._last[slot] += 1
            self._key[slot] = key
            return self._last[slot]

    def finish(self, slot: int, ticket: int) -> None:
        """The copy with that ticket is complete; it makes the slot READY unless a later one was queued."""
        with self._lock:
            self._settle(slot, ticket)

    def drop(self, slot: int, ticket: int) -> None:
        """The copy with that ticket will not be completed: the slot is EMPTY unless a later one was queued."""
        with self._lock:
            if ticket == self._last[slot]:
                self._key[slot] = None  # first: `state` reads without the lock
            self._settle(slot, ticket)

    def _settle(self, slot: int, ticket: int) -> None:
        if not self._done[slot] < ticket <= self._last[slot]:
            raise ConsistencyError(f"copy {ticket} into slot {slot} ended that was never queued, or twice")
        self._done[slot] = ticket

    def pin(self, slot: int, key: ExpertKey) -> None:
        """A computation reads `key`, which must be READY, from row `slot` of `buffer` until `unpin`."""
        with self._lock:
            if self._key[slot] != key or self.state(slot) is not CopyState.READY:
                raise ConsistencyError(
                    f"slot {slot} should hold {key}: got {self._key[slot]} in state {self.state(slot).name}"
                )
            self._pinned[slot] = True

    def unpin(self, slot: int) -> None:
        """The computation on `slot` is done."""
        with self._lock:
            self._pinned[slot] = False


def allocate(layout: RowLayout, rows: int, device: torch.device | None = None) -> torch.Tensor:
    """uint8 [rows, stride], beginning at a page; `InputError` where there is no memory for it."""
    nbytes = rows * layout.stride
    doing, remedy = f"allocate {rows} slots", "lower pool.slots or the cap that gave so many"
    with told_in_a_line(doing, remedy, f"{nbytes} bytes, {layout.stride} a slot"):
        raw = torch.empty(nbytes + _PAGE, dtype=torch.uint8, device=device)
    start = -raw.data_ptr() % _PAGE
    return raw[start : start + nbytes].view(rows, layout.stride)


def renew_pools(pools: list[SlotPool], rows: list[int], device: torch.device) -> InputError | None:
    """Memory for other numbers of rows in the place of the pools' own, which goes first: there is never more than the larger
    of both. All slots are EMPTY then. -> None, or why there is no memory for it: the pools have what they had, EMPTY.
    `InputError` where even that is gone (to another process, say): the pools are of no use any more."""
    before = [pool.rows for pool in pools]
    for pool in pools:
        pool.release()
    try:
        made = _buffers(pools[0].layout, rows, device)
        short = None
    except InputError as error:
        short = error
        try:
            made = _buffers(pools[0].layout, before, device)
        except InputError as gone:
            raise InputError(
                f"{gone}; there is none for the {sum(before)} slots that there were either, so the session is over"
            ) from error
    for pool, buffer_SB in zip(pools, made, strict=True):
        pool.renew(buffer_SB)
    return short


def make_pools(layout: RowLayout, rows: list[int], device: torch.device) -> list[SlotPool]:
    """One pool each; on a GPU out of one allocation, as its allocator rounds every one up by as much as 2 MiB."""
    return [SlotPool(layout, len(buffer_SB), buffer_SB) for buffer_SB in _buffers(layout, rows, device)]


def _buffers(layout: RowLayout, rows: list[int], device: torch.device) -> list[torch.Tensor]:
    if device.type == "cpu":
        return [allocate(layout, count) for count in rows]
    torch.cuda.empty_cache()  # what pools held before belongs to the driver again
    return list(allocate(layout, sum(rows), device).split(rows))
