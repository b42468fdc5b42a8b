"""Brings an executor what enters MoE layers, before their attention, where a predictor reads it; also in captured steps.

Legend: B sequences of one token each, D hidden size, L MoE layers.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch

from rgpu.runtime.executor import PoolExecutor
from rgpu.traces.moe_layers import decoder_layer, entering, first_parameter, moe_layers


def attach(model: Any, executor: PoolExecutor, stack: ExitStack) -> None:
    """Hooks in front of the decoder layers, until `stack` undoes them. Nothing is forecast before the first one, so it is
    spared, unless it is the only one."""

    def entered(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        executor.enter(entering(module, args, kwargs))

    layers = moe_layers(model)
    for layer in layers[1:] or layers:
        handle = decoder_layer(model, layer).register_forward_pre_hook(entered, with_kwargs=True)
        stack.callback(handle.remove)


class Entry:
    """A decoder layer as a captured step enters it: `x_BD`, page-locked, gets what enters whenever the step runs.

    Nobody calls the layer then; `tell` calls the hooks in front of it as if somebody did, with the copy on the host.
    """

    def __init__(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], x_BD: torch.Tensor) -> None:
        x_BD.copy_(entering(module, args, kwargs).float(), non_blocking=True)
        self.module, x_B1D = module, x_BD[:, None]
        self._args = (x_B1D, *args[1:]) if args else ()
        self._kwargs = kwargs if args else kwargs | {first_parameter(module): x_B1D}

    @property
    def watched(self) -> bool:
        return bool(self.module._forward_pre_hooks)

    def tell(self) -> None:
        for number, hook in list(self.module._forward_pre_hooks.items()):
            if number in self.module._forward_pre_hooks_with_kwargs:
                hook(self.module, self._args, self._kwargs)
            else:
                hook(self.module, self._args)


def entries(model: Any, stack: ExitStack, room_LBD: torch.Tensor, reached: Callable[[Entry, bool], None]) -> None:
    """Until `stack` ends: `reached(entry, asked)` as each MoE layer's decoder layer is called, in front of its attention.
    `asked`: whether an executor hears of that layer (see `attach`)."""
    layers = moe_layers(model)
    for index, layer in enumerate(layers):

        def entered(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], index: int = index) -> None:
            reached(Entry(module, args, kwargs, room_LBD[index]), index > 0 or len(layers) == 1)

        handle = decoder_layer(model, layer).register_forward_pre_hook(entered, with_kwargs=True)
        stack.callback(handle.remove)
