"""Gate look-ahead: the routers of the next layers applied to the current router's input; nothing is trained.

Source: Eliseev and Mazur 2023 (arXiv 2312.17238, section 3.2, "speculative loading"); Fate (arXiv 2502.12224) and
MoE-APEX (arXiv 2411.01433, figure 8) measure it. It works because residual streams change slowly from layer to layer.
Without training the current hidden says nothing better about the next token than the current layer's own router, so
that row is its output: the top-k is what was just routed, continued beyond k by the near misses. What is known to come
between the layers may be put in (`form`, see `lookahead_forms`).
"""

from pathlib import Path
from typing import Self

import numpy as np

from rgpu.errors import InputError
from rgpu.predictors.base import speaking_rows
from rgpu.predictors.checkpoint_parts import config_of, read_routers, routers_of
from rgpu.predictors.hidden import HiddenPredictor, top_k_share
from rgpu.predictors.lookahead_forms import FORMS, FROM_TRACE, SHARED_PARTS, form_tensors, routed_mean, shared_output
from rgpu.predictors.room import map_bytes
from rgpu.predictors.schema import Schema
from rgpu.traces.split import Split
from rgpu.traces.trace import Trace
from rgpu.types import MoEShape, RoutingEvent

__all__ = ["GateLookahead", "read_routers", "routers_of"]


class GateLookahead(HiddenPredictor):
    """Probabilities are K times the softmax of the router's logits, at most 1. Needs hidden states.

    `model`: transformers checkpoint directory whose routers are read (softmax top-k routers without selection bias).
    `form`: `raw` or one of `lookahead_forms`. `fit` without a trace takes everything from the directory, where the form
    is `raw` or `next_norm`; the others need a calibration trace.
    """

    name = "gate_lookahead"
    learns = False

    def __init__(self, model: str | Path = "assets/reference", horizon: int = 4, form: str = "raw") -> None:
        super().__init__(horizon)
        self.model, self.form = str(model), form
        self.learns = form in FROM_TRACE

    def _check_parameters(self) -> None:
        super()._check_parameters()
        if self.form not in FORMS:
            raise InputError(
                f"predictor {self.name}: got form {self.form!r}; expected one of {', '.join(FORMS)}; set predictor.form"
            )

    def fit(self, trace: Trace | None = None, split: Split | None = None, checkpoint: Path | None = None) -> Self:
        if trace is not None:
            return super().fit(trace, split, checkpoint)
        self._check_parameters()
        if self.form in FROM_TRACE:
            raise InputError(
                f"predictor {self.name}: got form {self.form} and no trace; expected one to calibrate on; give a trace"
            )
        weight_LED, bias_LE = read_routers(self.model)
        layers, experts, hidden = weight_LED.shape
        top_k = int(config_of(Path(self.model))["num_experts_per_tok"])
        self.schema_ = Schema(self.model, "", layers, experts, top_k, hidden)
        self.tensors_ = {"router_LED": weight_LED, "bias_LE": bias_LE, **form_tensors(self.form, self.model, None)}
        self.reset()
        return self

    def _fit(self, part: Trace, checkpoint: Path | None) -> dict[str, np.ndarray]:
        weight_LED, bias_LE = routers_of(self.model, self.schema_)
        return {"router_LED": weight_LED, "bias_LE": bias_LE, **form_tensors(self.form, self.model, part)}

    def expected_bytes(self, shape: MoEShape) -> int | None:
        if self.form != "raw":
            return None  # norms, and what it takes from a trace
        routers = 4 * shape.layers * shape.experts * (shape.hidden + 1)
        return routers + map_bytes(shape.layers, shape.experts, self.horizon, shape.hidden)

    def _map(self, layer: int) -> tuple[np.ndarray, np.ndarray]:
        layers, _ = self.targets(layer)
        weight_HED, bias_HE = self.tensors_["router_LED"][layers], self.tensors_["bias_LE"][layers].copy()
        if self.form != "raw":
            inner_HED = self._from_stream(layers)
            # the norm of this layer is undone, except in the last row, which is this layer's own router
            weight_HED = np.concatenate([(inner_HED / self.tensors_["norm_LD"][layer])[:-1], weight_HED[-1:]])
            for h in range(len(layers) - 1 if "mean_LD" in self.tensors_ else 0):
                known = layer + 1 if self.form == "quasi_hidden_routed" else layer
                added_D = self.tensors_["mean_LD"][known : layer + h + 1].sum(0) * self.tensors_["scale_L"][layer]
                bias_HE[h] += inner_HED[h] @ added_D
        return weight_HED.reshape(-1, self.schema_.hidden).T, bias_HE.ravel()

    def _from_stream(self, layers: np.ndarray) -> np.ndarray:
        """Routers of `layers` as maps of the normed residual stream before a norm's weight, float32 [H, E, D]."""
        found: np.ndarray = self.tensors_["router_LED"][layers] * self.tensors_["norm_LD"][layers][:, None]
        return found

    def _activate(self, logits_NHE: np.ndarray) -> np.ndarray:
        return top_k_share(logits_NHE, self.schema_.top_k)

    # -- forms that add what depends on the row

    def _renew(self) -> None:
        super()._renew()
        self._streams: dict[int, np.ndarray] = {}
        if hasattr(self, "tensors_"):
            widest = max((a.shape[-1] for a in self.tensors_.values()), default=0)
            self._nothing = np.zeros(max(widest, self.horizon * self.schema_.experts), np.float32)

    def observe(self, event: RoutingEvent) -> None:
        super().observe(event)
        if self.form == "quasi_hidden_routed":
            rows = speaking_rows(event.phase_T, len(event.experts_TK))
            weights_NK = None if event.weights_TK is None else event.weights_TK[rows]
            self._added_ND = self._routed(self._layer, event.experts_TK[rows], weights_NK)

    def _score(self, layer: int) -> np.ndarray:
        if self.form == "quasi_hidden_routed":
            return self._score_added(layer, self._hidden_ND, self._added_ND)
        return self._score_hidden(layer, self._hidden_ND)

    def _score_hidden(self, layer: int, hidden_ND: np.ndarray) -> np.ndarray:
        if self.form == "two_step":
            gate_DI, up_DI, down_ID, chance_D2 = (self.tensors_[f"shared_{name}"][layer] for name in SHARED_PARTS)
            nothing = self._nothing[: gate_DI.shape[1]], self._nothing[: self.schema_.hidden]
            x_ND = np.asarray(hidden_ND, np.float32)
            added_ND = shared_output(x_ND, gate_DI, up_DI, down_ID, chance_D2, nothing, self.forward)
            return self._score_added(layer, hidden_ND, added_ND * self.tensors_["scale_L"][layer])
        return super()._score_hidden(layer, hidden_ND)

    def predict_trace(self, trace: Trace, layer: int, rows_P: np.ndarray, first_P: np.ndarray) -> np.ndarray:
        if self.form != "quasi_hidden_routed":
            return super().predict_trace(trace, layer, rows_P, first_P)
        self.check(trace)
        hidden_PD = trace.require("hidden", f"predictor {self.name}")[rows_P, layer]
        weights_PK = None if trace.weights is None else trace.weights[rows_P, layer].astype(np.float32)
        return self._score_added(layer, hidden_PD, self._routed(layer, trace.expert_ids[rows_P, layer], weights_PK))

    def work(self, layer: int) -> tuple[int, int] | None:
        """Beside the map: what is added passes the next layers' routers, and the shared expert or K means are read."""
        weight_DM, bias_M = self._cached_map(layer)
        size = weight_DM.size + bias_M.size
        if self.form in ("quasi_hidden_routed", "two_step"):
            size += self.schema_.hidden * self.schema_.experts * (len(self.targets(layer)[0]) - 1)
        if self.form == "quasi_hidden_routed":
            size += self.schema_.hidden * self.schema_.top_k
        if self.form == "two_step":
            size += sum(self.tensors_[f"shared_{name}"][layer].size for name in SHARED_PARTS)
        return 4 * size, 2 * size

    def _routed(self, layer: int, experts_NK: np.ndarray, weights_NK: np.ndarray | None) -> np.ndarray:
        mean_ND = routed_mean(self.tensors_["expert_mean_LED"][layer], experts_NK, weights_NK)
        return mean_ND * self.tensors_["scale_L"][layer]

    def _score_added(self, layer: int, hidden_ND: np.ndarray, added_ND: np.ndarray) -> np.ndarray:
        """As `_score_hidden`, with `added_ND` put into the residual stream before the next layers' routers."""
        weight_DM, bias_M = self._cached_map(layer)
        logits_NM = self.forward(hidden_ND, weight_DM, bias_M)
        later = self.targets(layer)[0][:-1]
        if len(later):
            if layer not in self._streams:
                inner_MD = self._from_stream(later).reshape(-1, self.schema_.hidden)
                self._streams[layer] = np.ascontiguousarray(inner_MD.T)
            inner_DM = self._streams[layer]
            added_NM = self.forward(added_ND, inner_DM, self._nothing[: inner_DM.shape[1]])
            logits_NM[:, : added_NM.shape[1]] += added_NM
        return self._activate(logits_NM.reshape(len(logits_NM), bias_M.size // self.schema_.experts, -1))
