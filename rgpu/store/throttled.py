"""`ThrottledSource`: a source behind an emulated link of a stated rate and latency; say so beside what is measured over it."""

import threading
import time
from collections.abc import Callable

import numpy as np
import torch

from rgpu.errors import InputError
from rgpu.store.layout import RowLayout
from rgpu.store.source import ExpertSource
from rgpu.types import ExpertKey, MoEShape


class ThrottledSource:
    """An `ExpertSource` whose `read_into` takes at least as long as a link of `bytes_per_s` would, plus `latency_s` where an
    expert begins. The link carries one read at a time, whichever thread asks, and its thread sleeps meanwhile, so that the
    processor is free as beside a real one.

    Slower than stated it may be: `below` takes longer, or a sleeper wakes late (some 0.1 ms a read); never faster. Experts
    computed where they are (`rows_SB`) and `buffer` do not cross the link.
    """

    def __init__(
        self, below: ExpertSource, bytes_per_s: float, latency_s: float = 0.0, *,
        now: Callable[[], float] = time.perf_counter, sleep: Callable[[float], None] = time.sleep,
    ) -> None:  # fmt: skip
        if not bytes_per_s > 0 or not latency_s >= 0:
            raise InputError(
                f"emulated link: got {bytes_per_s} bytes a second and a latency of {latency_s} s; expected a rate above 0 and "
                "a latency from 0"
            )
        self.below = below
        self.bytes_per_s, self.latency_s = bytes_per_s, latency_s
        self._now, self._sleep = now, sleep
        self._link = threading.Lock()

    @property
    def layer_ids(self) -> tuple[int, ...]:
        """See `ExpertSource`."""
        return self.below.layer_ids

    @property
    def experts(self) -> int:
        """See `ExpertSource`."""
        return self.below.experts

    @property
    def layout(self) -> RowLayout:
        """How an expert lies in its bytes."""
        return self.below.layout

    @property
    def nbytes(self) -> int:
        """See `ExpertSource`."""
        return self.below.nbytes

    @property
    def mapped_bytes(self) -> int:
        """See `ExpertSource`."""
        return self.below.mapped_bytes

    @property
    def ram_bytes(self) -> int:
        """See `ExpertSource`."""
        return self.below.ram_bytes

    @property
    def in_place(self) -> bool:
        """See `ExpertSource`."""
        return self.below.in_place

    @property
    def rows_SB(self) -> torch.Tensor:
        """See `ExpertSource`."""
        return self.below.rows_SB

    def shape(self, top_k: int) -> MoEShape:
        """See `ExpertSource`."""
        return self.below.shape(top_k)

    def row(self, key: ExpertKey) -> int:
        """See `ExpertSource`."""
        return self.below.row(key)

    def pin(self, key: ExpertKey) -> int | None:
        """See `ExpertSource`."""
        return self.below.pin(key)

    def unpin(self, key: ExpertKey) -> None:
        """See `ExpertSource`."""
        self.below.unpin(key)

    def buffer(self, key: ExpertKey) -> np.ndarray:
        """See `ExpertSource`."""
        return self.below.buffer(key)

    def read_into(self, key: ExpertKey, out: np.ndarray, start: int = 0) -> None:
        """See `ExpertSource`."""
        with self._link:
            due_s = self._now() + (self.latency_s if start == 0 else 0.0) + out.nbytes / self.bytes_per_s
            self.below.read_into(key, out, start)
            if (left_s := due_s - self._now()) > 0:
                self._sleep(left_s)

    def close(self) -> None:
        """See `ExpertSource`."""
        self.below.close()
