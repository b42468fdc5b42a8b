"""A small neural network a group of adjacent layers: the hidden layer is shared, told which layer speaks.

Source: LLaPor (arXiv 2509.23638), whose predictor is aware of groups of layers; only its abstract is followed, the way in
which the group enters is ours: layers of a group share the hidden layer's weights, each adds a bias of its own there and
has its own output map.

Legend: N rows, G groups, L MoE layers, D hidden size, F hidden units, M = H * E outputs.
"""

from pathlib import Path

import numpy as np
import torch

from rgpu.predictors.descent import Parameters, Schedule
from rgpu.predictors.probe import Probe
from rgpu.types import MoEShape


class GroupMlp(Probe):
    """Needs hidden states. `groups` of adjacent layers of about equal size; `width`: hidden units; `model`: checkpoint
    directory of the routers (None: it learns everything). The other parameters are those of `Schedule`."""

    name = "group_mlp"

    def __init__(
        self, groups: int = 2, width: int = 64, model: str | Path | None = None, horizon: int = 4, epochs: int = 20,
        batch: int = 64, lr: float = 0.003, decay: float = 0.01, optimiser: str = "adamw", validation: float = 0.15,
        patience: int = 4, seed: int = 0, device: str = "cpu",
    ) -> None:  # fmt: skip
        super().__init__(horizon)
        self.model = None if model is None else str(model)
        self.schedule = Schedule(epochs, batch, lr, patience, seed, optimiser, decay, device)
        self.validation = validation
        self.groups, self.width = groups, width

    def _check_parameters(self) -> None:
        super()._check_parameters()
        self._at_least_one("groups", "width")

    def _group(self, layer: int) -> int:
        return layer * min(self.groups, self.schema_.layers) // self.schema_.layers

    def _parameters(self, shape: MoEShape) -> tuple[int, int]:
        outputs = (self.horizon + 1) * shape.experts
        first = (min(self.groups, shape.layers) * shape.hidden + shape.layers) * self.width
        return first + shape.layers * (self.width + 1) * outputs, self.width

    def _start(self, generator: torch.Generator) -> Parameters:
        layers, size = self.schema_.layers, self.schema_.hidden
        groups = self._group(layers - 1) + 1
        in_GDF = torch.randn(groups, size, self.width, generator=generator) * (2 / size) ** 0.5
        return {"in_GDF": in_GDF, "place_L1F": torch.zeros(layers, 1, self.width), **self._empty_heads(self.width)}

    def _learnt(self, parameters: Parameters, x_LBD: torch.Tensor) -> torch.Tensor:
        in_LDF = parameters["in_GDF"][[self._group(layer) for layer in range(self.schema_.layers)]]
        units = torch.relu(torch.baddbmm(parameters["place_L1F"], x_LBD, in_LDF))
        return torch.baddbmm(parameters["out_bias_L1M"], units, parameters["out_LFM"])

    def _inner(self, layer: int) -> tuple[np.ndarray, np.ndarray]:
        return self.tensors_["in_GDF"][self._group(layer)], self.tensors_["place_L1F"][layer, 0]
