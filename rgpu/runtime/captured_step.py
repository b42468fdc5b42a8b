"""`CapturedStep`: one decode step of a model with one cache, as CUDA graphs that are run again for other inputs.

Legend: B sequences, T tokens of a pass, D hidden size, K top-k, L MoE layers.
"""

import copy
import functools
from contextlib import ExitStack, suppress
from typing import Any

import torch

from rgpu.runtime.before_attention import Entry, entries
from rgpu.runtime.device_executor import DeviceExecutor, Host
from rgpu.runtime.experts import PooledExperts
from rgpu.runtime.ring_cache import captured, replayed
from rgpu.runtime.routed_words import RoutedWords

_CACHES = ("past_key_values", "cache")


class _Cut:
    """Where a graph ends: an event's tensors, at addresses that the graph writes each time; and, as graphs too, the kernels
    for what the host brings, by the address of the rows they read."""

    def __init__(
        self, module: PooledExperts, x_TD: torch.Tensor, ids_TK: torch.Tensor, weights_TK: torch.Tensor
    ) -> None:
        self.module, self.x_TD, self.ids_TK, self.weights_TK = module, x_TD, ids_TK, weights_TK
        self.slot_TK = torch.full(ids_TK.shape, -1, dtype=torch.int32, device=ids_TK.device)
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}

    def launch(self, rows_SB: torch.Tensor, slot_TK: torch.Tensor) -> None:
        """Queues the computation of the pairs that have a slot of `rows_SB`."""
        # so small a copy from memory that is not page-locked is taken by the driver before the call returns
        self.slot_TK.copy_(slot_TK, non_blocking=True)
        self.graphs[rows_SB.data_ptr()].replay()


class CapturedStep:
    """One decode step of a model with one cache, captured by calling `forward` once without running it."""

    def __init__(
        self, executor: DeviceExecutor, model: Any, forward: Any, kwargs: dict[str, Any], whole: bool, memory: Any
    ) -> None:
        self.executor, self.whole = executor, whole
        self.kwargs = {name: _held(value) for name, value in kwargs.items()}
        self.graphs: list[torch.cuda.CUDAGraph] = []
        self.stops: list[list[_Cut | Entry]] = []  # what the host does behind each graph
        self._memory = memory
        self._open: list[torch.cuda.CUDAGraph] = []  # the one that is being captured
        self._top_k, self._tokens = executor.controller.shape.top_k, len(kwargs["input_ids"])
        self._words = RoutedWords(executor.controller.shape.layers, self._tokens, self._top_k)
        self._hidden_LTD = _room(executor, self._tokens) if executor.reads_inputs else None
        before, executor.step = executor.step, self._inside if whole else self._cut
        entered, executor.enter = executor.enter, lambda _: None
        torch.cuda.synchronize()
        stream = _capture_stream(torch.cuda.current_device())
        stream.wait_stream(torch.cuda.current_stream())
        try:
            with ExitStack() as hooks, torch.cuda.stream(stream), torch.no_grad(), captured(cache_of(kwargs)):
                if executor.controller.waits:
                    entries(model, hooks, _room(executor, self._tokens), self._entry)
                self._piece()
                self.output = forward(**self.kwargs)
                self._end()
        except BaseException:
            if self._open:
                with torch.cuda.stream(stream), suppress(RuntimeError):  # the stream must not stay in a capture
                    self._end()
            raise
        finally:
            executor.step, executor.enter = before, entered
        torch.cuda.current_stream().wait_stream(stream)

    def _piece(self) -> None:
        self.graphs.append(self._begin())
        self.stops.append([])

    def _begin(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(pool=self._memory, capture_error_mode="thread_local")
        self._open.append(graph)
        return graph

    def _end(self) -> None:
        self._open.pop().capture_end()

    def _hits(
        self, module: PooledExperts, x_TD: torch.Tensor, ids_TK: torch.Tensor, weights_TK: torch.Tensor
    ) -> torch.Tensor:
        if self._hidden_LTD is not None:
            self._hidden_LTD[module.layer].copy_(x_TD.float(), non_blocking=True)
        return self.executor.hits(module.layer, x_TD, ids_TK, weights_TK, self._words.LP[module.layer])

    def _cut(
        self, module: PooledExperts, x_TD: torch.Tensor, ids_TK: torch.Tensor, weights_TK: torch.Tensor
    ) -> torch.Tensor:
        executor, floats_TK = self.executor, self._hits(module, x_TD, ids_TK, weights_TK)
        self._end()
        cut = _Cut(module, x_TD, ids_TK, weights_TK)
        self.stops[-1].append(cut)
        for rows_SB in executor.sources(module.layer):
            cut.graphs[rows_SB.data_ptr()] = self._begin()
            executor.kernel(len(x_TD)).wave(x_TD, rows_SB, cut.slot_TK, floats_TK)
            self._end()
        self._piece()
        return executor.combine(x_TD, floats_TK)

    def _inside(
        self, module: PooledExperts, x_TD: torch.Tensor, ids_TK: torch.Tensor, weights_TK: torch.Tensor
    ) -> torch.Tensor:
        self.stops[-1].append(_Cut(module, x_TD, ids_TK, weights_TK))
        return self.executor.combine(x_TD, self._hits(module, x_TD, ids_TK, weights_TK))

    def _entry(self, entry: Entry, asked: bool) -> None:
        self.stops[-1].append(entry)
        if asked and not self.whole:
            self._end()
            self._piece()

    def run(self, kwargs: dict[str, Any]) -> Any:
        """The step for other inputs of the same shapes."""
        for name, value in kwargs.items():
            _refill(self.kwargs[name], value)
        executor, stream = self.executor, torch.cuda.current_stream()
        before, executor.step = executor.step, self._decide
        try:
            for graph, stops in zip(self.graphs, self.stops, strict=True):
                graph.replay()
                if self.whole:
                    self._decide_all(stops, stream)
                    continue
                for stop in stops:
                    self._reached(stop, stream)
        except BaseException:  # the device goes on, and would be read for the next step's
            executor.cut_short()
            raise
        finally:
            executor.step = before
        replayed(cache_of(kwargs))
        output = copy.copy(self.output)
        output.logits = output.logits.clone()  # the next step overwrites the graph's own
        return output

    def _host(self, cut: _Cut, stream: Any) -> Host:
        """What the host decides a layer by, as soon as the device has it."""
        if self._hidden_LTD is None:
            return *self._words.take(cut.module.layer, stream), None
        stream.synchronize()  # a copy of many bytes does not arrive at once
        return *self._words.take(cut.module.layer, stream), self._hidden_LTD[cut.module.layer]

    def _reached(self, stop: "_Cut | Entry", stream: Any, host: Host | None = None) -> None:
        """What the host has to do there; `host`: what it decides by, where it has that already."""
        if isinstance(stop, _Cut):
            self._at = stop, self._host(stop, stream) if host is None else host
            stop.module(stop.x_TD, stop.ids_TK, stop.weights_TK)
        elif stop.watched:
            stream.synchronize()  # as in `_host`
            stop.tell()

    def _decide_all(self, stops: "list[_Cut | Entry]", stream: Any) -> None:
        """The decisions behind a step that was computed in one piece."""
        cuts = [stop for stop in stops if isinstance(stop, _Cut)]
        hosts = [self._host(cut, stream) for cut in cuts]
        watched = any(cut.module._forward_pre_hooks or cut.module._forward_hooks for cut in cuts)
        if not watched:
            ids_LTK, weights_LTK = (torch.stack([host[i] for host in hosts]) for i in (0, 1))  # type: ignore[misc]
            if self.executor.all_hits(ids_LTK, weights_LTK):
                return
        for stop in stops:
            self._reached(stop, stream, hosts[cuts.index(stop)] if isinstance(stop, _Cut) else None)

    def _decide(
        self, module: PooledExperts, x_TD: torch.Tensor, ids_TK: torch.Tensor, weights_TK: torch.Tensor
    ) -> torch.Tensor:
        cut, host = self._at
        self.executor.rest(module.layer, x_TD, ids_TK, weights_TK, host=host, launch=cut.launch, computed=self.whole)
        return x_TD


@functools.cache
def _capture_stream(_device: int) -> torch.cuda.Stream:
    """One a device: cuBLAS keeps a workspace of 32 MiB for every stream that it has seen."""
    return torch.cuda.Stream()


def _room(executor: DeviceExecutor, tokens: int) -> torch.Tensor:
    """Page-locked room for a hidden state of every layer, where the host reads it."""
    shape = executor.controller.shape
    return torch.empty(shape.layers, tokens, shape.hidden, dtype=torch.float32, pin_memory=torch.cuda.is_available())


def cache_of(kwargs: dict[str, Any]) -> Any:
    return next((kwargs[name] for name in _CACHES if kwargs.get(name) is not None), None)


def _held(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.clone()
    return {name: _held(item) for name, item in value.items()} if isinstance(value, dict) else value


def _refill(held: Any, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        held.copy_(value)
    elif isinstance(value, dict):
        for name, item in value.items():
            _refill(held[name], item)
