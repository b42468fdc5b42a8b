"""Pre-attention probe: a linear map from what enters a layer, before its attention, to the layer's own experts.

Source: Pre-Attention Expert Prediction (arXiv 2511.10676): the router's input is attention's output added to what entered the
layer, so a linear map of the latter, trained to rank, names most of the experts, one attention block before the router does.
Kept here: the layer's own state before attention, a ranking loss. Not kept: two stacked linear maps (their product is one);
the first layer, whose experts would be forecast from the next token's embedding: here its row is that of the next token, made
a layer's time earlier. Ours: rows for further layers, a start from the routers, calibrated chances.

The state is the residual stream as it enters the decoder layer, scaled here to a root mean square of 1: the layer's own norm
multiplies that by a weight a feature, which the map absorbs. It exists once the experts of the layer before are computed, so
a forecast after that event has the time of one attention block before its first row is wanted.

Legend: N rows, P passes, B rows of a batch, L MoE layers, D hidden size, E experts.
"""

from functools import partial
from pathlib import Path

import numpy as np
import torch

from rgpu.errors import InputError
from rgpu.predictors.checkpoint_parts import LayerParts, routers_of
from rgpu.predictors.linear import Linear
from rgpu.predictors.linear_training import train
from rgpu.predictors.ranges import check_number
from rgpu.predictors.training_rows import HiddenRows
from rgpu.predictors.training_scores import pairwise_margin, plackett_luce
from rgpu.traces.trace import Trace
from rgpu.types import RoutingEvent

LOSSES = ("pairwise", "listwise")
TINY = 1e-6  # added to the mean square, as norms do


class PreAttention(Linear):
    """Needs states before attention; best with router logits too. Forecasts are calibrated chances.

    After the event of layer l its rows speak from what enters layer l + 1; after the last layer's, from what entered that
    one. `loss`: `pairwise`, every routed expert `margin` above every other, or `listwise`, the likelihood of the ranked top-k
    (Plackett-Luce). `model`: checkpoint directory whose routers, without the attention between, training starts from where
    router logits were recorded (None: from nothing). The other parameters are those of `Linear`.
    """

    name = "pre_attention"
    needs = ("pre_attention",)
    reads = "state before attention"
    tiny = TINY
    less_room = (
        "set a smaller predictor.horizon or predictor.kept_gib, or where there are hidden states predictor=low_rank, which "
        "reads them"
    )

    def __init__(
        self, loss: str = "pairwise", margin: float = 1.0, model: str | Path | None = None, horizon: int = 4, epochs: int = 8,
        batch: int = 256, lr: float = 0.0005, validation: float = 0.15, patience: int = 3, seed: int = 0,
        device: str = "cpu", kept_gib: float = 2.0,
    ) -> None:  # fmt: skip
        super().__init__(model, horizon, epochs, batch, lr, validation, patience, seed, device, kept_gib)
        self.loss, self.margin = loss, margin

    def _check_parameters(self) -> None:
        super()._check_parameters()
        check_number(self.name, "margin", self.margin, 0, 100, above=True)
        if self.loss not in LOSSES:
            raise InputError(
                f"predictor {self.name}: got loss {self.loss!r}; expected one of {', '.join(LOSSES)}; set predictor.loss"
            )

    def _fit(self, part: Trace, checkpoint: Path | None) -> dict[str, np.ndarray]:
        self._check_room(part)
        inputs = EnteringRows(part.require("pre_attention", f"predictor {self.name}"))
        loss = plackett_luce if self.loss == "listwise" else partial(pairwise_margin, margin=self.margin)
        tensors, self.curve_ = train(
            part, self.horizon, self.validation, self.schedule, checkpoint, self._routers(), self._kept_bytes(),
            self.params(), self.name, inputs, loss,
        )  # fmt: skip
        return tensors

    def _routers(self) -> np.ndarray | None:
        """What each layer's router would be on the scaled stream, were there no attention: float32 [L, E, D]."""
        if self.model is None:
            return None
        weight_LED = routers_of(self.model, self.schema_)[0]
        norm_LD = LayerParts.of(self.model).norms_if_there()
        return weight_LED if norm_LD is None else weight_LED * norm_LD[:, None]

    def _brought(self, event: RoutingEvent) -> np.ndarray | None:
        return event.pre_attention_TD

    def _recorded(self, trace: Trace, layer: int, rows_P: np.ndarray) -> np.ndarray:
        return trace.require("pre_attention", f"predictor {self.name}")[rows_P, next_layer(layer, trace.layers)]


def next_layer(layer: int, layers: int) -> int:
    """The MoE layer whose state before attention is the newest one after an event of `layer`."""
    return min(layer + 1, layers - 1)


class EnteringRows(HiddenRows):
    """What enters the layer after each, by row number, scaled: float32 [L, B, D] (`next_layer`)."""

    def stored(self, rows: np.ndarray) -> np.ndarray:
        return self._hidden_NLD[rows][:, [next_layer(layer, self.layers) for layer in range(self.layers)]]

    def __call__(self, rows_B: torch.Tensor) -> torch.Tensor:
        x_LBD = super().__call__(rows_B)
        return x_LBD * (x_LBD.double().square().mean(-1, keepdim=True) + TINY).rsqrt().float()
