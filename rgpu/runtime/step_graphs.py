"""`StepGraphs`: a decode step as CUDA graphs, cut where the host decides about experts, or whole where nothing is to decide.

Legend: B sequences, T tokens of a pass, D hidden size, K top-k, L MoE layers.
"""

import functools
import logging
from contextlib import ExitStack
from typing import Any

import torch

from rgpu.runtime.captured_step import CapturedStep, cache_of
from rgpu.runtime.device_executor import FEW, DeviceExecutor
from rgpu.runtime.ring_cache import with_rings


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
        self._captured: dict[Any, CapturedStep] = {}
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
        if self._cache is not None and cache_of(kwargs) is not self._cache[0]:
            self._forget()  # before another text's prompt: not its memory and the old cache's at once
        if self.failed is None and self._executor is not None:
            with_rings(cache_of(kwargs))  # sliding windows keep their position on the device from the prompt on
        kind = None if args or self.failed is not None else _kind_of(kwargs)
        if kind is None or self._executor is None:
            return self._forward(*args, **kwargs)
        cache = cache_of(kwargs), _places(cache_of(kwargs))
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
            self._captured[kind, whole] = CapturedStep(
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
    ids, cache = kwargs.get("input_ids"), cache_of(kwargs)
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
