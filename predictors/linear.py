"""Linear probe: a trained linear map from the router's input to the experts of each later layer and the next token.

Source: the per-layer probes of the field (skeggsguy/crystal-ball on Hugging Face; JustVugg/colibri issue 866, where an
MLP does about as well as a linear map). It reads the router's input, after attention; `pre_attention` (arXiv 2511.10676) reads
what enters the layer that it forecasts, before attention. How it is trained, and why so, is in `linear_training`.
"""

from pathlib import Path

import numpy as np

from rgpu.predictors.checkpoint_parts import routers_of
from rgpu.predictors.descent import Schedule
from rgpu.predictors.hidden import HiddenPredictor, threshold_chances
from rgpu.predictors.linear_training import train
from rgpu.predictors.trained import Trained
from rgpu.traces.trace import Trace


class Linear(Trained, HiddenPredictor):
    """Needs hidden states; best with router logits too, or with `model`. Forecasts are calibrated chances.

    `model`: checkpoint directory whose routers stand in for router logits that the trace lacks. `epochs` at most,
    `batch` rows, `lr` of AdamW (decaying to 5 %), `validation` share of the documents held out for choices, `patience`
    epochs without gain, `device` that training runs on.
    """

    name = "linear"

    def __init__(
        self, model: str | Path | None = None, horizon: int = 4, epochs: int = 8, batch: int = 256, lr: float = 0.02,
        validation: float = 0.15, patience: int = 3, seed: int = 0, device: str = "cpu",
    ) -> None:  # fmt: skip
        super().__init__(horizon)
        self.model = None if model is None else str(model)
        self.schedule = Schedule(epochs, batch, lr, patience, seed, device=device)
        self.validation = validation

    def _fit(self, part: Trace, checkpoint: Path | None) -> dict[str, np.ndarray]:
        routers = None if self.model is None else routers_of(self.model, self.schema_)[0]
        tensors, self.curve_ = train(
            part, self.horizon, self.validation, self.schedule, checkpoint, routers, self.params()
        )
        return tensors

    def _map(self, layer: int) -> tuple[np.ndarray, np.ndarray]:
        _, ahead = self.targets(layer)
        rows_H = [*range(len(ahead) - 1), self.horizon]  # the last map is the next token's
        weight_HDE, bias_HE = self.tensors_["weight_LHDE"][layer][rows_H], self.tensors_["bias_LHE"][layer][rows_H]
        return weight_HDE.transpose(1, 0, 2).reshape(self.schema_.hidden, -1), bias_HE.ravel()

    def _activate(self, logits_NHE: np.ndarray) -> np.ndarray:
        return threshold_chances(logits_NHE, self.schema_.top_k)
