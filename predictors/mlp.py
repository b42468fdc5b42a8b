"""A small neural network a layer: router's input, one hidden layer of rectified units, logits of every forecast row.

Source: ProMoE (arXiv 2410.22134): learned predictors a layer, one hidden layer, from the hidden state. Kept here: the
network a layer. Not kept: its fixed stride of layers (`horizon` forecasts every layer ahead); and what is learnt is added
to gate look-ahead where `model` gives the routers.

Legend: N rows, L MoE layers, D hidden size, F hidden units, M = H * E outputs.
"""

from pathlib import Path

import numpy as np
import torch

from rgpu.predictors.descent import Parameters, Schedule
from rgpu.predictors.probe import Probe
from rgpu.types import MoEShape


class Mlp(Probe):
    """Needs hidden states. `width`: hidden units; `model`: checkpoint directory of the routers (None: it learns
    everything). The other parameters are those of `Schedule`."""

    name = "mlp"

    def __init__(
        self, width: int = 64, model: str | Path | None = None, horizon: int = 4, epochs: int = 20, batch: int = 64,
        lr: float = 0.003, decay: float = 0.01, optimiser: str = "adamw", validation: float = 0.15, patience: int = 4,
        seed: int = 0, device: str = "cpu",
    ) -> None:  # fmt: skip
        super().__init__(horizon)
        self.model = None if model is None else str(model)
        self.schedule = Schedule(epochs, batch, lr, patience, seed, optimiser, decay, device)
        self.validation = validation
        self.width = width

    def _check_parameters(self) -> None:
        super()._check_parameters()
        self._at_least_one("width")

    def _parameters(self, shape: MoEShape) -> tuple[int, int]:
        outputs = (self.horizon + 1) * shape.experts
        first = shape.layers * self.width * (shape.hidden + 1)
        return first + shape.layers * (self.width + 1) * outputs, self.width

    def _start(self, generator: torch.Generator) -> Parameters:
        layers, size = self.schema_.layers, self.schema_.hidden
        in_LDF = torch.randn(layers, size, self.width, generator=generator) * (2 / size) ** 0.5
        return {"in_LDF": in_LDF, "in_bias_L1F": torch.zeros(layers, 1, self.width), **self._empty_heads(self.width)}

    def _learnt(self, parameters: Parameters, x_LBD: torch.Tensor) -> torch.Tensor:
        units = torch.relu(torch.baddbmm(parameters["in_bias_L1F"], x_LBD, parameters["in_LDF"]))
        return torch.baddbmm(parameters["out_bias_L1M"], units, parameters["out_LFM"])

    def _inner(self, layer: int) -> tuple[np.ndarray, np.ndarray]:
        return self.tensors_["in_LDF"][layer], self.tensors_["in_bias_L1F"][layer, 0]
