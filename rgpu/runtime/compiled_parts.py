"""The small dense operations of a decode step, fused by torch.compile: norms, rotary embedding, router.

A transformers layer runs some seventy small kernels for one token; on a GPU they take most of a step once its experts are
resident. Only operations without caches or experts are compiled, each once for all layers, so it takes seconds, and CUDA
graphs take them in like any other kernel. Fused sums round otherwise than transformers' own in the last bits.
"""

import functools
import os
import shutil
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch

from rgpu.errors import InputError
from rgpu.traces.moe_layers import moe_layers

ROTARY = "apply_rotary_pos_emb"
_ROTARY_USERS: dict[str, tuple[int, Any]] = {}  # by modeling module: models that use the fused one, the original
_RUNNING = threading.local()  # depth: of forward passes of such models that this thread is in


def compile_parts(model: Any, stack: ExitStack, *, backend: str = "inductor") -> list[str]:
    """Replaces the parts of `model` for steps of one token a sequence, until `stack` closes; the kinds of parts found. Other
    models of its kind keep their own. `InputError` without a C compiler, which torch.compile needs."""
    if backend == "inductor" and not any(map(shutil.which, (os.environ.get("CC") or "gcc", "cc", "clang"))):
        raise InputError(
            "fused: got no C compiler; expected gcc, cc or clang, which torch.compile needs; install one, or set fused=false"
        )
    found: set[str] = set()
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm") and not list(module.children()):
            _replace(module, lambda args: args[0].dim() > 2 and args[0].shape[1] == 1, stack, backend)
            found.add("norms")
    for layer in moe_layers(model):
        if layer.router is not None and not list(layer.router.children()):
            _replace(layer.router, lambda args: args[0].numel() // args[0].shape[-1] <= FEW, stack, backend)
            found.add("routers")
    home = sys.modules[type(model).__module__]
    if hasattr(home, ROTARY):
        _replace_rotary(home, model, stack, backend)
        found.add("rotary")
    return sorted(found)


FEW = 16  # tokens up to which a router's call counts as a decode step
SHAPES = 128  # of one part, beyond which it runs uncompiled


def _replace(module: Any, when: Callable[[Any], bool], stack: ExitStack, backend: str) -> None:
    if "forward" in vars(module):  # somebody else's already
        return
    own, fused = module.forward, compiled(type(module).forward, backend)

    def forward(*args: Any, **kwargs: Any) -> Any:
        return fused(module, *args, **kwargs) if args and when(args) else own(*args, **kwargs)

    module.forward = forward
    stack.callback(vars(module).pop, "forward", None)


def _replace_rotary(home: Any, model: Any, stack: ExitStack, backend: str) -> None:
    """A function of the module, that is of every model of the kind: the fused one is taken inside `model`'s passes only."""
    stack.callback(model.register_forward_pre_hook(_enter).remove)
    stack.callback(model.register_forward_hook(_leave, always_call=True).remove)
    users, original = _ROTARY_USERS.get(home.__name__, (0, getattr(home, ROTARY)))
    _ROTARY_USERS[home.__name__] = (users + 1, original)
    stack.callback(_leave_rotary, home)
    if users:
        return
    fused = compiled(original, backend)

    @functools.wraps(original)
    def rotary(q: torch.Tensor, k: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        few = q.dim() == 4 and q.shape[2] == 1 and q.device.type != "meta"
        return (fused if few and getattr(_RUNNING, "depth", 0) > 0 else original)(q, k, *args, **kwargs)

    setattr(home, ROTARY, rotary)


def _enter(*_: Any) -> None:
    _RUNNING.depth = getattr(_RUNNING, "depth", 0) + 1


def _leave(*_: Any) -> None:
    _RUNNING.depth -= 1


def _leave_rotary(home: Any) -> None:
    users, original = _ROTARY_USERS[home.__name__]
    if users > 1:
        _ROTARY_USERS[home.__name__] = (users - 1, original)
        return
    del _ROTARY_USERS[home.__name__]
    setattr(home, ROTARY, original)


@functools.cache
def compiled(function: Callable[..., Any], backend: Any) -> Callable[..., Any]:
    """One compiled form of a function for every layer and session, for each shape its own."""
    fused = torch.compile(function, backend=backend, dynamic=False)

    def run(*args: Any, **kwargs: Any) -> Any:
        with torch._dynamo.config.patch(
            recompile_limit=SHAPES
        ):  # torch's own limit of 8 is used up by three batch sizes
            return fused(*args, **kwargs)

    return run
