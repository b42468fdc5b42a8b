"""`StepGraphs`: a decode step as CUDA graphs, cut where the host decides about experts, or whole where nothing is to decide.

Legend: B sequences, T tokens of a pass, D hidden size, K top-k, L MoE layers.
"""

import copy
import functools
import logging
from contextlib import ExitStack, suppress
from typing import Any

import torch

from rgpu.runtime.before_attention import Entry, entries
from rgpu.runtime.device_executor import FEW, DeviceExecutor, Host
from rgpu.runtime.experts import PooledExperts
from rgpu.runtime.ring_cache import captured, replayed, with_rings
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


class _Captured:
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
            with ExitStack() as hooks, torch.cuda.stream(stream), torch.no_grad(), captured(_cache_of(kwargs)):
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
        replayed(_cache_of(kwargs))
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


class StepGraphs:
    """Replaces a model's `forward` for decode steps on a cache of fixed size (`generate(cache_implementation="static")`).

    The first step of a kind runs as always; the second is captured and from then on replayed: cut in front of every MoE
    layer's decision (and before its attention, where a predictor reads what enters there), or, while every expert is in its
    slot, in one piece, the decisions being made behind it. Everything
    else (prompts, growing caches, caches that beams reorder, outputs beyond the logits, models that cannot be captured) goes
    the usual way. The steps' numbers are those of the usual way: the same kernels in the same order.
    """

    def __init__(self, model: Any, executor: DeviceExecutor, stack: ExitStack) -> None:
        self._executor: DeviceExecutor | None = executor
        self._model, self._forward = model, model.forward
        self._seen: set[Any] = set()
        self._captured: dict[Any, _Captured] = {}
        self._cache: Any = None  # what captures point into: the cache, and where its tensors are
        self._memory: Any = None
        self.replayed = 0
        self.captured = 0
        self.failed: Exception | None = None  # the first capture that did not work: there is no other then
        had = "forward" in vars(model)

        @functools.wraps(model.forward)  # transformers reads the signature
        def step(*args: Any, **kwargs: Any) -> Any:
            return self._step(*args, **kwargs)

        model.forward = step
        stack.callback(setattr, model, "forward", self._forward) if had else stack.callback(delattr, model, "forward")
        stack.callback(self._close)

    def _close(self) -> None:
        self._forget()
        self._executor = None

    def forget(self) -> None:
        """What graphs read is somewhere else: they are captured again."""
        self._forget()

    def _forget(self) -> None:
        self._captured.clear()
        self._seen.clear()
        self._cache = self._memory = None

    def _step(self, *args: Any, **kwargs: Any) -> Any:
        if self._cache is not None and _cache_of(kwargs) is not self._cache[0]:
            self._forget()  # before another text's prompt: not its memory and the old cache's at once
        if self.failed is None and self._executor is not None:
            with_rings(_cache_of(kwargs))  # sliding windows keep their position on the device from the prompt on
        kind = None if args or self.failed is not None else _kind_of(kwargs)
        if kind is None or self._executor is None:
            return self._forward(*args, **kwargs)
        cache = _cache_of(kwargs), _places(_cache_of(kwargs))
        if self._cache is None or cache[0] is not self._cache[0] or cache[1] != self._cache[1]:
            self._forget()  # captures point into other tensors, and would keep their memory
            self._cache = cache
        if kind not in self._seen:
            self._seen.add(kind)
            return self._forward(**kwargs)
        whole = bool((self._executor.table.host_LE >= 0).all())
        if (kind, whole) not in self._captured and not self._capture(kind, whole, kwargs):
            return self._forward(**kwargs)
        self.replayed += 1
        return self._captured[kind, whole].run(kwargs)

    def _capture(self, kind: Any, whole: bool, kwargs: dict[str, Any]) -> bool:
        """Whether it worked; a model that waits for the device in its step cannot be captured."""
        assert self._executor is not None
        if not self._captured:  # the memory of graphs that are all gone cannot be used again
            self._memory = torch.cuda.graph_pool_handle()
        try:
            self._captured[kind, whole] = _Captured(
                self._executor, self._model, self._forward, kwargs, whole, self._memory
            )
        except (RuntimeError, TypeError, ValueError) as error:
            self.failed = error
            self._forget()
            logging.getLogger(__name__).warning(
                "decode steps run without CUDA graphs: %s", " ".join(str(error).split())[:200]
            )
            return False
        self.captured += 1
        return True


def _kind_of(kwargs: dict[str, Any]) -> Any:
    """What must be equal for one capture to serve another call; None where a call is not such a step."""
    ids, cache = kwargs.get("input_ids"), _cache_of(kwargs)
    if ids is None or ids.shape[1] != 1 or ids.shape[0] > FEW or not _on_device(ids) or cache is None:
        return None
    if any(value for name, value in kwargs.items() if name.startswith("output_")):  # they would share one buffer
        return None
    layers = getattr(cache, "layers", None)
    if not layers or not getattr(cache, "is_compileable", False) or not all(_ready(layer) for layer in layers):
        return None
    try:
        kind = tuple(sorted((name, _signature(value)) for name, value in kwargs.items()))
        hash(kind)
    except TypeError:
        return None
    return kind


def _places(cache: Any) -> tuple[int, ...]:
    """Where the tensors of a cache are: reordering for beams puts others in their place."""
    return tuple(
        tensor.data_ptr() for layer in cache.layers for tensor in (layer.keys, layer.values, layer.cumulative_length)
    )


def _cache_of(kwargs: dict[str, Any]) -> Any:
    return next((kwargs[name] for name in _CACHES if kwargs.get(name) is not None), None)


def _ready(layer: Any) -> bool:
    """A cache layer with tensors at fixed addresses and its position on the device."""
    return bool(getattr(layer, "is_initialized", False)) and isinstance(
        getattr(layer, "cumulative_length", None), torch.Tensor
    ) and not hasattr(layer, "cumulative_length_int")  # fmt: skip


def _on_device(tensor: torch.Tensor) -> bool:
    return tensor.is_cuda


def _signature(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        if not _on_device(value):
            raise TypeError("a tensor on the host")
        return ("tensor", tuple(value.shape), str(value.dtype))
    if isinstance(value, dict):
        return ("dict", tuple(sorted((name, _signature(item)) for name, item in value.items())))
    if value is None or isinstance(value, bool | int | float | str):
        return ("value", repr(value))
    return ("object", id(value))


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
