"""Low-rank probe: one projection that all layers share, then a small map a layer.

Source: SpecPrefetch (arXiv 2607.24787): low-rank adapters on look-ahead with the model's own routers, a thirtieth of the
parameters of a copy of every router. Kept here: frozen routers plus a low-rank correction, its first factor shared by
all layers. Not kept: distillation from the router's distribution; training ranks the routed experts as `linear` does.

Legend: N rows, L MoE layers, D hidden size, R rank, F = R here, M = H * E outputs.
"""

from pathlib import Path

import numpy as np
import torch

from rgpu.predictors.descent import Parameters, Schedule
from rgpu.predictors.hidden import HiddenPredictor, fixed_matmul, threshold_chances
from rgpu.predictors.probe import Probe
from rgpu.types import MoEShape


class LowRank(Probe):
    """Needs hidden states. `rank` of the correction; `model`: checkpoint directory whose routers it corrects (None: it
    learns everything). The other parameters are those of `Schedule`."""

    name = "low_rank"
    rectified = False

    def __init__(
        self, rank: int = 32, model: str | Path | None = None, horizon: int = 4, epochs: int = 20, batch: int = 64,
        lr: float = 0.01, decay: float = 0.0, optimiser: str = "adamw", validation: float = 0.15, patience: int = 4,
        seed: int = 0, device: str = "cpu",
    ) -> None:  # fmt: skip
        super().__init__(horizon)
        self.model = None if model is None else str(model)
        self.schedule = Schedule(epochs, batch, lr, patience, seed, optimiser, decay, device)
        self.validation = validation
        self.rank = rank

    def _check_parameters(self) -> None:
        super()._check_parameters()
        self._at_least_one("rank")

    def _parameters(self, shape: MoEShape) -> tuple[int, int]:
        outputs = (self.horizon + 1) * shape.experts
        first = shape.hidden * self.rank
        return first + shape.layers * (self.rank + 1) * outputs, self.rank

    def _start(self, generator: torch.Generator) -> Parameters:
        size = self.schema_.hidden
        down_DR = torch.randn(size, self.rank, generator=generator) / size**0.5
        return {"down_DR": down_DR, **self._empty_heads(self.rank)}

    def _learnt(self, parameters: Parameters, x_LBD: torch.Tensor) -> torch.Tensor:
        return torch.baddbmm(parameters["out_bias_L1M"], x_LBD @ parameters["down_DR"], parameters["out_LFM"])

    def _renew(self) -> None:
        super()._renew()
        self._nothing_R = np.zeros(self.rank, np.float32)

    def _inner(self, layer: int) -> tuple[np.ndarray, np.ndarray]:
        return self.tensors_["down_DR"], self._nothing_R

    # -- forecasting: all of it is linear, so beside the routers' map, which is read anyway, the correction costs nothing

    def _score_hidden(self, layer: int, hidden_ND: np.ndarray) -> np.ndarray:
        if self.model is None:
            return super()._score_hidden(layer, hidden_ND)
        logits_NM = self.forward(hidden_ND, *self._cached_map(layer))
        return threshold_chances(logits_NM.reshape(len(logits_NM), len(self.targets(layer)[0]), -1), self.schema_.top_k)

    def _map(self, layer: int) -> tuple[np.ndarray, np.ndarray]:
        """Scaling, correction, gains and scales folded into the routers' map, each sum in a fixed order."""
        weight_DM, bias_M = super()._map(layer)
        rows_H, mean_D, inverse_D, gain_M, scale_M = self._at(layer)
        out_RM, out_bias_M = self._head(layer, rows_H)
        learnt_DM = fixed_matmul(self.tensors_["down_DR"] * inverse_D[:, None], out_RM)
        shift_M = fixed_matmul(mean_D[None], learnt_DM)[0]
        return (learnt_DM + gain_M * weight_DM) * scale_M, (out_bias_M - shift_M + gain_M * bias_M) * scale_M

    def work(self, layer: int) -> tuple[int, int] | None:
        return super().work(layer) if self.model is None else HiddenPredictor.work(self, layer)
