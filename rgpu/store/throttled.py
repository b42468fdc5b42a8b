"""`ThrottledSource`: a source behind an emulated link of a stated rate and latency; say so beside what is measured over it."""

import threading
import time
from collections.abc import Callable

import numpy as np

from rgpu.errors import InputError
from rgpu.store.over import SourceOver
from rgpu.store.source import ExpertSource
from rgpu.types import ExpertKey


class ThrottledSource(SourceOver):
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
                "a latency from 0; change them"
            )
        super().__init__(below)
        self.bytes_per_s, self.latency_s = bytes_per_s, latency_s
        self._now, self._sleep = now, sleep
        self._link = threading.Lock()

    def read_into(self, key: ExpertKey, out: np.ndarray, start: int = 0) -> None:
        """See `ExpertSource`."""
        with self._link:
            due_s = self._now() + (self.latency_s if start == 0 else 0.0) + out.nbytes / self.bytes_per_s
            self.below.read_into(key, out, start)
            if (left_s := due_s - self._now()) > 0:
                self._sleep(left_s)
