"""Seconds of a call: CPU or wall clock on a processor; events around calls or replays of a captured graph on a GPU."""

import time
from collections.abc import Callable, Sequence
from typing import Literal

import torch

Clock = Literal["thread", "wall", "device"]
LEAST = 3  # samples, whatever the time allowed


def clock_of(device: torch.device, threads: int) -> Clock:
    """One thread: its CPU time, so that waiting for a busy core does not count; several: the wall clock."""
    if device.type == "cuda":
        return "device"
    return "thread" if threads == 1 else "wall"


def call_seconds(call: Callable[[], object], device: torch.device, clock: Clock, count: int) -> list[float]:
    """Seconds of `count` calls after one that warms up."""
    call()
    return [_one(call, device, clock) for _ in range(count)]


def samples(
    calls: Sequence[Callable[[], object]], device: torch.device, clock: Clock, repeats: int, seconds: float, graph: bool
) -> tuple[list[float], str]:
    """(seconds of a call, how they were got: thread, wall, events or graph).

    Each of `calls` uses other experts. On a CPU, and with events, a sample is one call and `repeats` rounds are made; a
    graph holds them all, a sample is one replay over the number of calls, and the first two are dropped. Stops after
    `seconds`, with three samples at least. `calls[0]` has been called before, for the check: it is the last to be timed.
    """
    if device.type == "cuda" and graph:
        replay = _captured(calls)
        found = _until(lambda _: _one(replay, device, clock) / len(calls), 2 + repeats, seconds)
        return found[2:], "graph"
    found = _until(lambda n: _one(calls[(n + 1) % len(calls)], device, clock), repeats * len(calls), seconds)
    return found, "events" if device.type == "cuda" else clock


def _until(sample: Callable[[int], float], most: int, seconds: float) -> list[float]:
    found: list[float] = []
    end = time.monotonic() + seconds
    while len(found) < most and (len(found) < LEAST or time.monotonic() < end):
        found.append(sample(len(found)))
    return found


def _one(call: Callable[[], object], device: torch.device, clock: Clock) -> float:
    if device.type == "cuda":
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        call()
        last.record()
        last.synchronize()
        return 1e-3 * float(first.elapsed_time(last))
    now = time.thread_time if clock == "thread" else time.perf_counter
    began = now()
    call()
    return now() - began


def _captured(calls: Sequence[Callable[[], object]]) -> Callable[[], object]:
    """One graph of all calls. Kernels must have been compiled and buffers made by a call before."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls[:2]:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph.replay
