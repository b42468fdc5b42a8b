"""`StepGraphs`: a decode step as CUDA graphs, cut where the host decides about experts, or whole where nothing is to decide.

Legend: B sequences, T tokens of a pass, D hidden size, K top-k, L MoE layers.
"""

import functools
from contextlib import ExitStack
from typing import Any

import torch

from rgpu.runtime.device_executor import FEW, DeviceExecutor
from rgpu.runtime.experts import PooledExperts

_CACHES = ("past_key_values", "cache")


class _Cut:
    """Where a graph ends: an event's tensors, at addresses that the graph writes each time."""

    def __init__(
        self, module: PooledExperts, x_TD: torch.Tensor, ids_TK: torch.Tensor, weights_TK: torch.Tensor
    ) -> None:
        self.module, self.x_TD, self.ids_TK, self.weights_TK = module, x_TD, ids_TK, weights_TK


class _Captured:
    """One decode step of a model with one cache, captured by calling `forward` once without running it."""

    def __init__(self, executor: DeviceExecutor, forward: Any, kwargs: dict[str, Any], whole: bool, pool: Any) -> None:
        self.executor, self.whole = executor, whole
        self.kwargs = {name: _held(value) for name, value in kwargs.items()}
        self.graphs: list[torch.cuda.CUDAGraph] = []
        self.cuts: list[_Cut] = []
        self._memory = pool
        before, executor.step = executor.step, self._inside if whole else self._cut
        torch.cuda.synchronize()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(stream), torch.no_grad():
                self._begin()
                try:
                    self.output = forward(**self.kwargs)
                    if whole:
                        self.ids_LTK = torch.stack([cut.ids_TK for cut in self.cuts])
                        self.weights_LTK = torch.stack([cut.weights_TK for cut in self.cuts])
                finally:
                    self.graphs[-1].capture_end()
        finally:
            executor.step = before
        torch.cuda.current_stream().wait_stream(stream)

    def _begin(self) -> None:
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(pool=self._memory, capture_error_mode="thread_local")
        self.graphs.append(graph)

    def _cut(
        self, module: PooledExperts, x_TD: torch.Tensor, ids_TK: torch.Tensor, weights_TK: torch.Tensor
    ) -> torch.Tensor:
        self.executor.hits(module.layer, x_TD, ids_TK, weights_TK)
        self.graphs[-1].capture_end()
        self.cuts.append(_Cut(module, x_TD, ids_TK, weights_TK))
        self._begin()
        return self.executor.combine(x_TD, weights_TK)

    def _inside(
        self, module: PooledExperts, x_TD: torch.Tensor, ids_TK: torch.Tensor, weights_TK: torch.Tensor
    ) -> torch.Tensor:
        self.cuts.append(_Cut(module, x_TD, ids_TK, weights_TK))
        self.executor.hits(module.layer, x_TD, ids_TK, weights_TK)
        return self.executor.combine(x_TD, weights_TK)

    def run(self, kwargs: dict[str, Any]) -> Any:
        """The step for other inputs of the same shapes; its output is overwritten by the next step."""
        for name, value in kwargs.items():
            _refill(self.kwargs[name], value)
        executor = self.executor
        before, executor.step = executor.step, self._decide
        try:
            if self.whole:
                self.graphs[0].replay()
                self._ids_LTK, self._weights_LTK = executor.readback.read(self.ids_LTK, self.weights_LTK)
                for cut in self.cuts:
                    cut.module(cut.x_TD, cut.ids_TK, cut.weights_TK)
            else:
                for graph, cut in zip(self.graphs, self.cuts, strict=False):
                    graph.replay()
                    cut.module(cut.x_TD, cut.ids_TK, cut.weights_TK)
                self.graphs[-1].replay()
        finally:
            executor.step = before
        return self.output

    def _decide(
        self, module: PooledExperts, x_TD: torch.Tensor, ids_TK: torch.Tensor, weights_TK: torch.Tensor
    ) -> torch.Tensor:
        if self.whole:
            ids_TK, weights_TK = self._ids_LTK[module.layer], self._weights_LTK[module.layer]
            self.executor.rest(module.layer, x_TD, ids_TK, weights_TK, computed=True)
        else:
            self.executor.rest(module.layer, x_TD, ids_TK, weights_TK)
        return x_TD


class StepGraphs:
    """Replaces a model's `forward` for decode steps on a cache of fixed size (`generate(cache_implementation="static")`).

    The first step of a kind runs as always; the second is captured and from then on replayed: cut in front of every MoE
    layer's decision, or, while every expert is in its slot, in one piece, the decisions being made behind it. Everything
    else (prompts, growing caches, hooks that ask for attentions) goes the usual way. The steps' numbers are those of the
    usual way: the same kernels in the same order.
    """

    def __init__(self, model: Any, executor: DeviceExecutor, stack: ExitStack) -> None:
        self.executor = executor
        self._forward = model.forward
        self._seen: set[Any] = set()
        self._captured: dict[Any, _Captured] = {}
        self._cache: Any = None
        self._memory = torch.cuda.graph_pool_handle()
        self.replayed = 0
        self.captured = 0
        had = "forward" in vars(model)

        @functools.wraps(model.forward)  # transformers reads the signature
        def step(*args: Any, **kwargs: Any) -> Any:
            return self._step(*args, **kwargs)

        model.forward = step
        stack.callback(setattr, model, "forward", self._forward) if had else stack.callback(delattr, model, "forward")
        stack.callback(self._forget)

    def _forget(self) -> None:
        self._captured.clear()
        self._seen.clear()
        self._cache = None

    def _step(self, *args: Any, **kwargs: Any) -> Any:
        kind = None if args else _kind_of(kwargs)
        if kind is None:
            return self._forward(*args, **kwargs)
        cache = _cache_of(kwargs)
        if cache is not self._cache:  # captures point into the old one and would keep its memory
            self._forget()
            self._cache = cache
        if kind not in self._seen:
            self._seen.add(kind)
            return self._forward(**kwargs)
        whole = bool((self.executor.table.host_LE >= 0).all())
        if (kind, whole) not in self._captured:
            self._captured[kind, whole] = _Captured(self.executor, self._forward, kwargs, whole, self._memory)
            self.captured += 1
        self.replayed += 1
        return self._captured[kind, whole].run(kwargs)


def _kind_of(kwargs: dict[str, Any]) -> Any:
    """What must be equal for one capture to serve another call; None where a call is not such a step."""
    ids = kwargs.get("input_ids")
    cache = _cache_of(kwargs)
    if ids is None or ids.shape[1] != 1 or ids.shape[0] > FEW or not ids.is_cuda or cache is None:
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


def _cache_of(kwargs: dict[str, Any]) -> Any:
    return next((kwargs[name] for name in _CACHES if kwargs.get(name) is not None), None)


def _ready(layer: Any) -> bool:
    """A cache layer with tensors at fixed addresses and its position on the device."""
    return bool(getattr(layer, "is_initialized", False)) and isinstance(
        getattr(layer, "cumulative_length", None), torch.Tensor
    ) and not hasattr(layer, "cumulative_length_int")  # fmt: skip


def _signature(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        if not value.is_cuda:
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
