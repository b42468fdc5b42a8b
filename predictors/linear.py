"""Linear probe: a trained linear map from the router's input to the experts of each later layer and the next token.

Source: the per-layer probes of the field (skeggsguy/crystal-ball on Hugging Face; JustVugg/colibri issue 866, where an
MLP does about as well as a linear map). It reads the router's input, after attention; `pre_attention` (arXiv 2511.10676) reads
what enters the layer that it forecasts, before attention. How it is trained, and why so, is in `linear_training`.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from rgpu.predictors.checkpoint_parts import routers_of
from rgpu.predictors.descent import Schedule
from rgpu.predictors.hidden import HiddenPredictor, threshold_chances
from rgpu.predictors.linear_training import train
from rgpu.predictors.ranges import check_number
from rgpu.predictors.room import check_room, map_bytes
from rgpu.predictors.trained import Trained
from rgpu.traces.trace import Trace
from rgpu.types import MoEShape


class Linear(Trained, HiddenPredictor):
    """Needs hidden states; best with router logits too, or with `model`. Forecasts are calibrated chances.

    `model`: checkpoint directory whose routers stand in for router logits that the trace lacks. `epochs` at most,
    `batch` rows, `lr` of AdamW (decaying to 5 %), `validation` share of the documents held out for choices, `patience`
    epochs without gain, `device` that training runs on. `kept_gib`: whitened inputs that fit into so much stay in memory; of
    more, each batch is read from the trace again.
    """

    name = "linear"
    less_room = (
        "set predictor=low_rank, a smaller predictor.horizon or predictor.kept_gib"  # where training has too little
    )

    def __init__(
        self, model: str | Path | None = None, horizon: int = 4, epochs: int = 8, batch: int = 256, lr: float = 0.02,
        validation: float = 0.15, patience: int = 3, seed: int = 0, device: str = "cpu", kept_gib: float = 2.0,
    ) -> None:  # fmt: skip
        super().__init__(horizon)
        self.kept_gib = kept_gib
        self.model = None if model is None else str(model)
        self.schedule = Schedule(epochs, batch, lr, patience, seed, device=device)
        self.validation = validation

    def _check_parameters(self) -> None:
        super()._check_parameters()
        check_number(self.name, "kept_gib", self.kept_gib, 0)

    def expected_bytes(self, shape: MoEShape) -> int | None:
        """The maps as they are saved, and as they are applied."""
        fitted = 4 * shape.layers * (self.horizon + 1) * shape.experts * (shape.hidden + 1)
        return fitted + map_bytes(shape.layers, shape.experts, self.horizon, shape.hidden)

    def training_bytes(self, shape: MoEShape, tokens: int) -> int:
        """Private memory that training on so many tokens takes at its peak: while inputs are whitened (their covariances in
        float64, then axes in float32), or while ten copies of the maps are there (gradient, moments, best and tried ones)."""
        whitening = 4 * shape.layers * shape.hidden**2
        inputs = 4 * shape.layers * tokens * shape.hidden
        kept = inputs if inputs <= self.kept_gib * 2**30 else 0
        maps = 4 * shape.layers * (self.horizon + 1) * shape.experts * (shape.hidden + 1)
        return max(17 * shape.layers * shape.hidden**2, whitening + kept + 10 * maps)

    def _check_room(self, part: Trace) -> None:
        shape = replace(part.shape, hidden=self.schema_.hidden)
        check_room(
            self.name, self.training_bytes(shape, part.tokens),
            f"{shape.layers} layers of {shape.experts} experts, hidden size {shape.hidden} and horizon {self.horizon}",
            self.less_room,
        )  # fmt: skip

    def _kept_bytes(self) -> int:
        return int(self.kept_gib * (1 << 30))

    def _fit(self, part: Trace, checkpoint: Path | None) -> dict[str, np.ndarray]:
        self._check_room(part)
        routers = None if self.model is None else routers_of(self.model, self.schema_)[0]
        tensors, self.curve_ = train(
            part,
            self.horizon,
            self.validation,
            self.schedule,
            checkpoint,
            routers,
            self._kept_bytes(),
            self.params(),
        )
        return tensors

    def _map(self, layer: int) -> tuple[np.ndarray, np.ndarray]:
        _, ahead = self.targets(layer)
        rows_H = [*range(len(ahead) - 1), self.horizon]  # the last map is the next token's
        weight_HDE, bias_HE = self.tensors_["weight_LHDE"][layer][rows_H], self.tensors_["bias_LHE"][layer][rows_H]
        return weight_HDE.transpose(1, 0, 2).reshape(self.schema_.hidden, -1), bias_HE.ravel()

    def _activate(self, logits_NHE: np.ndarray) -> np.ndarray:
        return threshold_chances(logits_NHE, self.schema_.top_k)
