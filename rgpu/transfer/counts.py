"""What a transfer engine has done: counters, and one span for each piece it copied."""

from collections.abc import Callable
from dataclasses import dataclass

from rgpu.types import ExpertKey

DEMAND, AHEAD = "demand", "ahead"


@dataclass(slots=True)
class TransferCounts:
    """Since the engine began. Copies count by how they were submitted, "demand" or "ahead"; a copy that was cut short counts
    the bytes it moved as moved and the rest as cancelled."""

    copies: int = 0  # completed
    demand_bytes: int = 0  # moved
    ahead_bytes: int = 0
    cancelled: int = 0  # copies superseded or cancelled before they were complete
    cancelled_bytes: int = 0  # of these, not moved
    promoted: int = 0  # copies ahead that somebody came to wait for
    queued: int = 0  # not complete now
    busy_s: float = 0.0  # reading, summed over threads
    stall_s: float = 0.0  # spent in `wait` by callers


@dataclass(frozen=True, slots=True)
class Span:
    """One piece of a copy: times on the engine's clock in seconds, kind "demand" or "ahead" as it was submitted."""

    begin_s: float
    end_s: float
    key: ExpertKey
    pool: int
    slot: int
    kind: str
    nbytes: int


Observer = Callable[[Span], None]
