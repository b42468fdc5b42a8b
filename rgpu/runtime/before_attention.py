"""Brings an executor what enters MoE layers, before their attention, where a predictor reads it."""

from contextlib import ExitStack
from typing import Any

from rgpu.runtime.executor import PoolExecutor
from rgpu.traces.moe_layers import decoder_layer, entering, moe_layers


def attach(model: Any, executor: PoolExecutor, stack: ExitStack) -> None:
    """Hooks in front of the decoder layers, until `stack` undoes them. Nothing is forecast before the first one, so it is
    spared, unless it is the only one."""

    def entered(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        executor.entered(entering(module, args, kwargs))

    layers = moe_layers(model)
    for layer in layers[1:] or layers:
        handle = decoder_layer(model, layer).register_forward_pre_hook(entered, with_kwargs=True)
        stack.callback(handle.remove)
