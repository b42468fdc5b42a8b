"""`MissChoice`: which misses of an event are copied into slots and which are computed where the store has them, by rates that
are measured while the model runs.

Legend: N members of one event that are not in their slots yet.
"""

from collections.abc import Callable, Sequence

import numpy as np

from rgpu.transfer.counts import TransferCounts

WEIGHT = 0.125  # of the newest measurement in a mean
RETRY = 64  # divisions after which a side that got nothing is tried again: its rate may have changed


class Rate:
    """Seconds an expert takes in one place, by how many rows it has: a moving mean for each power of two of rows."""

    def __init__(self) -> None:
        self._mean_s: dict[int, float] = {}

    @property
    def known(self) -> bool:
        return bool(self._mean_s)

    def seconds(self, rows: int) -> float:
        """Of one expert; 0 while nothing is known, so that it is tried. Counts of rows that were never seen: as the nearest
        that was, more rows in proportion."""
        if not self._mean_s:
            return 0.0
        size = _size(rows)
        nearest = min(self._mean_s, key=lambda known: (abs(known - size), known))
        return float(self._mean_s[nearest] * 2.0 ** max(0, size - nearest))

    def took(self, rows_N: Sequence[int], seconds: float) -> None:
        """Experts with so many rows took `seconds` together."""
        expected = [self.seconds(rows) for rows in rows_N]
        total = sum(expected)
        for rows, share in zip(rows_N, expected, strict=True):
            own = seconds * share / total if total else seconds / len(rows_N)
            size = _size(rows)
            before = self._mean_s.get(size, own)
            self._mean_s[size] = before + WEIGHT * (own - before)


class MissChoice:
    """Divides the misses of events. `counts`: what the transfer engine has done so far, for the seconds of a copy.

    Three rates: a copy, an expert computed `in_place`, and one computed from its slot once it is there, where that keeps the
    same processor busy (`slots_take_time`; on a GPU it does not). Copies run beside what is computed in place, so the
    division that ends first has the least max(sum of copies, sum in place) + sum from slots.
    """

    def __init__(self, counts: Callable[[], TransferCounts], slots_take_time: bool = True) -> None:
        self.in_place, self.from_slots = Rate(), Rate()
        self._counts, self._slots_take_time = counts, slots_take_time
        self._copy_s = 0.0
        self._seen = counts()
        self._idle = [0, 0]  # divisions since anything was copied, and computed in place

    @property
    def copy_s(self) -> float:
        """Seconds of one copy, a moving mean; 0 until one was made."""
        counts = self._counts()
        copies, busy_s = counts.copies - self._seen.copies, counts.busy_s - self._seen.busy_s
        if copies > 0 and busy_s > 0:
            own = busy_s / copies
            keep = (1 - WEIGHT) ** copies if self._copy_s else 0.0
            self._copy_s = keep * self._copy_s + (1 - keep) * own
            self._seen = counts
        return self._copy_s

    def divide(self, members: Sequence[int], rows_U: Sequence[int]) -> tuple[list[int], list[int]]:
        """(members to compute in place, members to copy), each in the order given; member i has `rows_U[i]` rows."""
        if not members:
            return [], []
        rows_N, copy_s = [rows_U[i] for i in members], self.copy_s
        place_N = np.array([self.in_place.seconds(rows) for rows in rows_N])
        slot_N = np.array([self.from_slots.seconds(rows) if self._slots_take_time else 0.0 for rows in rows_N])
        order = np.argsort(slot_N - place_N, kind="stable")  # first those that gain most by being copied
        copied = np.arange(len(rows_N) + 1)
        left_s = place_N.sum() - np.concatenate([[0.0], np.cumsum(place_N[order])])
        slots_s = np.concatenate([[0.0], np.cumsum(slot_N[order])])
        best = int(np.argmin(np.maximum(copied * copy_s, left_s) + slots_s))
        copied_first = set(order[: self._tried(best, len(rows_N), copy_s)].tolist())
        both: tuple[list[int], list[int]] = [], []
        for n, member in enumerate(members):
            both[n in copied_first].append(member)
        return both

    def _tried(self, copied: int, members: int, copy_s: float) -> int:
        """`copied`, or one more or less where the other side is unknown or has not been used for long."""
        for side, (used, known) in enumerate(((copied, copy_s > 0), (members - copied, self.in_place.known))):
            self._idle[side] = 0 if used else self._idle[side] + 1
            if not used and (not known or self._idle[side] >= RETRY):
                self._idle[side] = 0
                return 1 if side == 0 else members - 1
        return copied


def _size(rows: int) -> int:
    return max(1, rows).bit_length() - 1
