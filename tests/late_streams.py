"""A device without a device: copies that run as late as they may, in an order that a GPU would keep."""

from typing import Any

import numpy as np
import torch


class LateMark:
    """A point of the queue of copies."""

    def __init__(self, streams: "LateStreams", count: int) -> None:
        self.streams, self.count, self.at_s = streams, count, streams.tick()

    def reached(self) -> bool:
        """Asking may let some copies run."""
        self.streams.run(self.streams.done + int(self.streams.random.integers(0, 2)))
        return self.streams.done >= self.count

    def seconds_since(self, earlier: "LateMark") -> float:
        assert self.streams.done >= self.count, "asked for the time of what is not over"
        return self.at_s - earlier.at_s


class LateStreams:
    """`rgpu.transfer.streams.Streams` on a CPU. Computing happens at once; a copy happens when somebody waits for it, or
    when chance has it. Until then its target keeps what it had."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.queue: list[Any] = []
        self.done = 0
        self.now_s = 0.0
        self.hostwaits = 0
        self.behind = False  # the next copy begins after all that is queued for computing

    def tick(self) -> float:
        self.now_s += 1.0
        return self.now_s

    def run(self, until: int) -> None:
        while self.done < min(until, len(self.queue)):
            target, source = self.queue[self.done]
            target.copy_(source)
            self.queue[self.done] = None
            self.done += 1

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        assert self.behind, "a copy that could overtake a kernel which still reads its slot"
        self.behind = False
        self.queue.append((target, source))

    def copies_wait(self) -> None:
        self.behind = True

    def computing_waits(self, mark: LateMark) -> None:
        self.run(mark.count)

    def mark(self, copies: bool = True) -> LateMark:
        return LateMark(self, len(self.queue) if copies else 0)

    def finish(self, mark: LateMark) -> None:
        self.hostwaits += 1
        self.run(mark.count)
