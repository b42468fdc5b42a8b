"""Experts modules without parameters, and how a model is built with them.

Legend: T tokens, D hidden size, K top-k.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import nn

from rgpu.errors import InputError

ExpertsForward = Callable[["PooledExperts", torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class PooledExperts(nn.Module):
    """Stands where a model's experts module stood: same config, flags, activation and gate, no parameters.

    It does not inherit from the original, whose weight initialisation would look for the parameters. Subclasses name
    the `original` class; once a model is loaded, `run` computes the experts of MoE layer `layer`.
    """

    original: type[nn.Module]

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        with torch.device("meta"):
            source = self.original(config, *args, **kwargs)
        for name, value in vars(source).items():
            if not name.startswith("_") and name != "training":
                setattr(self, name, value)
        for name, child in source.named_children():
            setattr(self, name, child)
        self._is_expert_parallel = False
        self._is_hf_initialized = True  # transformers would look for the weights to fill
        self.run: ExpertsForward | None = None
        self.layer = -1

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """[T, D] from x [T, D], ids [T, K] and gate weights [T, K]."""
        if self.run is None:
            raise InputError("cannot run this model: got a closed offload session; open one and use its model there")
        return self.run(self, hidden_states, top_k_index, top_k_weights)

    def apply_gate(self, gate_up: torch.Tensor) -> torch.Tensor:
        """The original's gate and activation: [T, 2I] to [T, I]."""
        return self.original._apply_gate(self, gate_up)  # type: ignore[attr-defined, no-any-return]

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        if self.run is not None:
            refuse_to_save()


def refuse_to_save(*_: Any, **__: Any) -> NoReturn:
    """What saving a model without its experts does."""
    raise InputError(
        "cannot save this model: got one whose experts live in an expert store; expected a resident model; "
        "copy the original folder, or load it with transformers and save that"
    )


@contextmanager
def without_experts(original: type[nn.Module]) -> Iterator[None]:
    """Models built in here get `PooledExperts` instead of `original`: the name is exchanged in every module of transformers
    that has it, and put back also when a constructor fails. (transformers' own patch mapping would look through all of its
    modules, half a second.)"""
    name = original.__name__
    pooled = type(f"Pooled{name}", (PooledExperts,), {"original": original})
    holders = [
        module for module in list(sys.modules.values())
        if getattr(module, "__name__", "").startswith("transformers") and vars(module).get(name) is original
    ]  # fmt: skip
    try:
        for module in holders:
            setattr(module, name, pooled)
        yield
    finally:
        for module in holders:
            setattr(module, name, original)
