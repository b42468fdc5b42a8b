"""CUDA graphs without CUDA: what is called while one is captured is kept, not run, and every replay runs it.

As with CUDA: nothing that the host does while a graph is captured happens again, captured calls write to the tensors that they
wrote to first, and numbers that the host passed in stay as they were.
"""

import contextlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rgpu.runtime import captured_step, step_graphs


class Graph(TorchDispatchMode):
    """A `torch.cuda.CUDAGraph`. A call runs once when it is captured, so that its outputs have a place; what it wrote to is put
    back at the end."""

    capturing: "Graph | None" = None

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Callable[[], Any]] = []
        self.before: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.state = "new"

    def capture_begin(self, **_: Any) -> None:
        assert Graph.capturing is None and self.state == "new"
        Graph.capturing = self
        self.__enter__()

    def capture_end(self) -> None:
        assert Graph.capturing is self
        self.__exit__(None, None, None)
        for tensor, content in reversed(self.before):
            tensor.copy_(content)
        self.before.clear()
        Graph.capturing, self.state = None, "captured"

    def replay(self) -> None:
        assert Graph.capturing is None and self.state == "captured"
        for call in self.calls:
            call()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            raise RuntimeError("operation not permitted when stream is capturing")
        written = [
            value for argument, value in zip(func._schema.arguments, args, strict=False)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]  # fmt: skip
        self.before += [(tensor, tensor.clone()) for tensor in written]
        out = func(*args, **kwargs)
        given = {tensor.untyped_storage().data_ptr() for tensor in tree_leaves((args, kwargs)) if _tensor(tensor)}
        kept = [tensor for tensor in tree_leaves(out) if _tensor(tensor)]
        new = [tensor.untyped_storage().data_ptr() not in given for tensor in kept]

        def again() -> None:
            made = [tensor for tensor in tree_leaves(func(*args, **kwargs)) if _tensor(tensor)]
            for target, source, is_new in zip(kept, made, new, strict=True):
                if is_new:
                    target.copy_(source)

        if written or any(new):
            self.calls.append(again)
        return out


class Kernel:
    """An `ExpertCompute` on a CPU whose calls a graph can keep."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    def __getattr__(self, name: str) -> Any:
        return getattr(self.kernel, name)

    def wave(self, *tensors: torch.Tensor) -> None:
        with _outside():
            self.kernel.wave(*tensors)
        if Graph.capturing is not None:
            Graph.capturing.calls.append(lambda: self.kernel.wave(*tensors))

    def finish(self, *tensors: torch.Tensor) -> torch.Tensor:
        with _outside():
            out: torch.Tensor = self.kernel.finish(*tensors)
        if Graph.capturing is not None:
            Graph.capturing.calls.append(lambda: out.copy_(self.kernel.finish(*tensors)))
        return out


def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """`StepGraphs` captures and replays on the CPU."""
    stream = SimpleNamespace(wait_stream=lambda _: None, synchronize=lambda: None)
    fakes = {"CUDAGraph": Graph, "graph_pool_handle": lambda: 0, "synchronize": lambda: None, "current_device": lambda: 0,
             "current_stream": lambda *_: stream, "stream": lambda _: contextlib.nullcontext()}  # fmt: skip
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(captured_step, "_capture_stream", lambda _: stream)
    monkeypatch.setattr(step_graphs, "_on_device", lambda _: True)
    Graph.capturing = None


def _outside() -> Any:
    return torch.utils._python_dispatch._disable_current_modes()


def _tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)
