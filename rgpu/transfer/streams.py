"""Two queues of one device: what computes, and what copies."""

from typing import Any, Protocol

import torch


class Mark(Protocol):
    """A point of the copy queue."""

    def reached(self) -> bool:
        """Whether everything queued before it is complete; never waits."""
        ...

    def seconds_since(self, earlier: Any) -> float:
        """Device time from an earlier mark to this one; both must be reached."""
        ...


class Streams(Protocol):
    """Work is queued by one host thread and carried out by the device, in order within a queue."""

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Queues a copy of `source` (host) over `target` (device); the host may run ahead of it."""
        ...

    def copies_wait(self) -> None:
        """Copies queued from now on begin after everything that is queued for computing now."""
        ...

    def computing_waits(self, mark: Any) -> None:
        """What is queued for computing from now on begins after `mark`."""
        ...

    def mark(self, copies: bool = True) -> Any:
        """A `Mark` behind all that is queued now, for copying or (`copies=False`) computing."""
        ...

    def finish(self, mark: Any) -> None:
        """The host waits until `mark` is reached."""
        ...


class _CudaMark:
    def __init__(self, stream: torch.cuda.Stream) -> None:
        self.event = torch.cuda.Event(enable_timing=True)
        self.event.record(stream)

    def reached(self) -> bool:
        """See `Mark`."""
        return bool(self.event.query())

    def seconds_since(self, earlier: "_CudaMark") -> float:
        """See `Mark`."""
        return float(earlier.event.elapsed_time(self.event)) / 1e3


class CudaStreams:
    """Copies on a stream of their own; computing is whatever stream is current."""

    def __init__(self, device: torch.device) -> None:
        # with a number, asking for the current stream is several times as fast as with a device
        self._number = torch.cuda.current_device() if device.index is None else device.index
        self._copying = torch.cuda.Stream(device)
        self._computed = torch.cuda.Event()

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """See `Streams`. Asynchronous where `source` is page-locked."""
        with torch.cuda.stream(self._copying):
            target.copy_(source, non_blocking=True)

    def copies_wait(self) -> None:
        """See `Streams`."""
        self._computed.record(self._computing)
        self._copying.wait_event(self._computed)

    def computing_waits(self, mark: _CudaMark) -> None:
        """See `Streams`."""
        self._computing.wait_event(mark.event)

    def mark(self, copies: bool = True) -> _CudaMark:
        """See `Streams`."""
        return _CudaMark(self._copying if copies else self._computing)

    def finish(self, mark: _CudaMark) -> None:
        """See `Streams`."""
        mark.event.synchronize()

    @property
    def _computing(self) -> torch.cuda.Stream:
        return torch.cuda.current_stream(self._number)
