"""Linear probe: a trained linear map from the router's input to the experts of each later layer and the next token.

Source: the per-layer probes of the field (skeggsguy/crystal-ball on Hugging Face; JustVugg/colibri issue 866, where an
MLP does about as well as a linear map); pre-attention linear predictors (arXiv 2511.10676). How it is trained, and
why so, is in `linear_training`.
"""

from pathlib import Path

import numpy as np

from rgpu.errors import InputError
from rgpu.predictors.gate_lookahead import routers_of
from rgpu.predictors.hidden import ONE, HiddenPredictor
from rgpu.predictors.linear_training import Settings, train
from rgpu.traces.trace import Trace

HALF, FAR = np.float32(0.5), np.float32(80)
TIE = np.float32(2**-10)  # share of the slowly saturating term that keeps near-certain experts in order


class Linear(HiddenPredictor):
    """Needs hidden states; best with router logits too, or with `model`. Forecasts are calibrated chances.

    `model`: checkpoint directory whose routers stand in for router logits that the trace lacks. `epochs` at most,
    `batch` rows, Adam's `lr` (decaying to 5 %), `validation` share of the documents held out for choices, `patience`
    epochs without gain.
    """

    name = "linear"

    def __init__(
        self, model: str | Path | None = None, horizon: int = 4, epochs: int = 8, batch: int = 256, lr: float = 0.02,
        validation: float = 0.15, patience: int = 3, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(horizon)
        self.model = None if model is None else str(model)
        self.epochs, self.batch, self.lr = epochs, batch, lr
        self.validation, self.patience, self.seed = validation, patience, seed

    def _check_parameters(self) -> None:
        super()._check_parameters()
        for name, low in (("epochs", 0), ("batch", 1), ("patience", 1)):
            if getattr(self, name) < low:
                raise InputError(
                    f"predictor {self.name}: got {name} {getattr(self, name)}; expected {low} or more; raise it"
                )
        for name, fits in (("lr", self.lr > 0), ("validation", 0 < self.validation < 1)):
            if not fits:
                expected = "between 0 and 1" if name == "validation" else "above 0"
                raise InputError(
                    f"predictor {self.name}: got {name} {getattr(self, name)}; expected {expected}; set it so"
                )

    def _fit(self, part: Trace, checkpoint: Path | None) -> dict[str, np.ndarray]:
        settings = Settings(self.horizon, self.epochs, self.batch, self.lr, self.validation, self.patience, self.seed)
        routers = None if self.model is None else routers_of(self.model, self.schema_)[0]
        return train(part, settings, checkpoint, routers)

    def _map(self, layer: int) -> tuple[np.ndarray, np.ndarray]:
        _, ahead = self.targets(layer)
        rows_H = [*range(len(ahead) - 1), self.horizon]  # the last map is the next token's
        weight_HDE, bias_HE = self.tensors_["weight_LHDE"][layer][rows_H], self.tensors_["bias_LHE"][layer][rows_H]
        return weight_HDE.transpose(1, 0, 2).reshape(self.schema_.hidden, -1), bias_HE.ravel()

    def _activate(self, logits_NHE: np.ndarray) -> np.ndarray:
        """Sigmoid of the logit less the token's threshold, midway between K-th and (K+1)-th: rows sum to about K."""
        top_k, experts = self.schema_.top_k, self.schema_.experts
        if top_k >= experts:
            return np.ones_like(logits_NHE)
        ranked_NHE = logits_NHE.copy()
        ranked_NHE.sort(-1)
        threshold = ranked_NHE[..., experts - top_k, None] + ranked_NHE[..., experts - top_k - 1, None]
        x_NHE = logits_NHE - threshold * HALF
        chance_NHE = np.negative(x_NHE)  # 1 / (1 + exp(-x)), in place as in `top_k_share`
        np.minimum(chance_NHE, FAR, out=chance_NHE)
        np.exp(chance_NHE, out=chance_NHE)
        chance_NHE += ONE
        np.divide(ONE, chance_NHE, out=chance_NHE)
        chance_NHE *= ONE - TIE
        order_NHE = np.abs(x_NHE)  # 0.5 + 0.5 * x / (1 + |x|)
        order_NHE += ONE
        x_NHE *= HALF
        x_NHE /= order_NHE
        x_NHE += HALF
        x_NHE *= TIE
        chance_NHE += x_NHE
        return chance_NHE
