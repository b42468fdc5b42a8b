"""Online head: a linear map from the experts just routed to those that come, which goes on learning while the model decodes.

Source: the heads that some engines train by SGD during decode (no paper found; published recalls are low), here started from
counted co-activation (arXiv 2606.15453) so that what is learnt online comes on top. Logistic loss, plain SGD.
Legend: N rows, P passes, L MoE layers, H rows of a forecast, E experts, K top-k.
"""

from pathlib import Path

import numpy as np

from rgpu.errors import InputError
from rgpu.predictors.coactivation import Coactivation
from rgpu.predictors.routed import known_or_last
from rgpu.predictors.stacking import logistic, shared_out
from rgpu.traces.trace import Trace
from rgpu.types import RoutingEvent


class OnlineHead(Coactivation):
    """Log-odds: a bias an expert, plus weights of the experts of this layer and of the target layer at the last token.

    Starts from the log ratios and fitted weights of `Coactivation` without its third choice. When a forecast's target is
    seen, its map takes one step of `lr` along the gradient; `reset` forgets these steps and keeps the fit. Every forecast
    row has a map of its own, so the order in which rows learn does not matter.
    """

    name = "online_head"

    def __init__(
        self, horizon: int = 4, lr: float = 0.05, smoothing: float = 8.0, holdout: float = 0.3, seed: int = 0
    ) -> None:
        super().__init__(horizon, smoothing, holdout, seed)
        self.lr = lr

    def _check_parameters(self) -> None:
        super()._check_parameters()
        if not self.lr >= 0:
            raise InputError(f"predictor online_head: got lr {self.lr}; expected 0 or more; set predictor.lr")

    def _fit(self, part: Trace, checkpoint: Path | None) -> dict[str, np.ndarray]:
        tensors = super()._fit(part, checkpoint)
        own, layers = self.schema_, self.schema_.layers
        map_LHJEE = np.zeros((layers, self.horizon + 1, 2, own.experts + 1, own.experts), np.float32)
        bias_LHE = np.zeros((layers, self.horizon + 1, own.experts), np.float32)
        for layer in range(layers):
            targets, ahead = self.targets(layer)
            for h, target in enumerate(targets):
                odds, here, _, last = tensors["weight_LHF"][layer, h]
                first = tensors["next"][layer] if ahead[h] else tensors["later"][layer, h]
                second = tensors["second"][layer] if ahead[h] else tensors["next"][target]
                map_LHJEE[layer, h] = here * first, last * second
                bias_LHE[layer, h] = tensors["bias_LH"][layer, h] + odds * tensors["odds_LE"][target]
        return {"map_LHJEE": map_LHJEE, "bias_LHE": bias_LHE}

    def _said(self, layer: int, h: int, ids: list[np.ndarray]) -> list[np.ndarray]:
        said = super()._said(layer, h, ids)
        said[2] = np.zeros_like(said[2])  # the layer above has no map
        return said

    # -- forecasting

    def reset(self) -> None:
        super().reset()
        self._heads: dict[int, _Head] = {}
        self._waiting: dict[int, list[tuple[int, int, np.ndarray, np.ndarray, np.ndarray]]] = {}
        self._odds_NHE = np.zeros((0, 0, 0), np.float32)

    def observe(self, event: RoutingEvent) -> None:
        super().observe(event)
        layer = event.layer
        targets, _ = self.targets(layer)
        self._odds_NHE = np.zeros((0, len(targets), self.schema_.experts), np.float32)
        if not self._rows:
            return
        for source, h, ids_NK, last_NHK, odds_NHE in self._waiting.pop(layer, []):
            if len(odds_NHE) == self._rows:
                for n, true_K in enumerate(self._now[layer]):
                    head = self._heads[source]
                    head.learn(
                        np.array([h]), ids_NK[n], last_NHK[n], odds_NHE[n], np.repeat(true_K[None], h + 1, axis=0)
                    )
        head = self._heads.setdefault(layer, self._head(layer))
        ids = self._parents_now(layer)
        last_NHK = np.stack(ids[2:], axis=1)
        self._odds_NHE = np.stack([head.odds(ids[0][n], last_NHK[n]) for n in range(self._rows)])
        for h, target in enumerate(targets):
            self._waiting.setdefault(int(target), []).append((layer, h, ids[0], last_NHK, self._odds_NHE))

    def _score(self, layer: int) -> np.ndarray:
        return shared_out(logistic(self._odds_NHE), self.schema_.top_k)

    def predict_trace(self, trace: Trace, layer: int, rows_P: np.ndarray, first_P: np.ndarray) -> np.ndarray:
        self.check(trace)
        targets, _ = self.targets(layer)
        ids = self.parent_ids(trace, layer, rows_P, first_P)
        last_PHK = np.stack(ids[2:], axis=1)
        true_PHK = known_or_last(trace.expert_ids[rows_P][:, targets], self.schema_.experts)
        odds_PHE = np.empty((len(rows_P), len(targets), self.schema_.experts), np.float32)
        following, later = np.array([len(targets) - 1]), np.arange(len(targets) - 1)
        head = self._head(layer)
        for p, first in enumerate(first_P):
            if first:
                head = self._head(layer)
            else:  # what the last token's forecast of this one was worth
                head.learn(following, ids[0][p - 1], last_PHK[p - 1], odds_PHE[p - 1], true_PHK[p])
            odds_PHE[p] = head.odds(ids[0][p], last_PHK[p])
            head.learn(later, ids[0][p], last_PHK[p], odds_PHE[p], true_PHK[p])
        return shared_out(logistic(odds_PHE), self.schema_.top_k)

    def _head(self, layer: int) -> "_Head":
        rows = len(self.targets(layer)[0])
        return _Head(self.tensors_["map_LHJEE"][layer, :rows], self.tensors_["bias_LHE"][layer, :rows], self.lr)

    def work(self, layer: int) -> tuple[int, int] | None:
        """K rows of two maps for each row of the forecast, read to forecast and again to learn."""
        outputs = len(self.targets(layer)[0]) * self.schema_.experts
        return 4 * 4 * self.schema_.top_k * outputs, (4 * self.schema_.top_k + 8) * outputs


class _Head:
    """The maps of one layer as they are after what was learnt in this sequence. J: this layer, the last token."""

    def __init__(self, map_HJEE: np.ndarray, bias_HE: np.ndarray, lr: float) -> None:
        self._map_HJEE, self._bias_HE, self._lr = map_HJEE, bias_HE, np.float32(lr)
        self._rows, self._own = np.arange(len(bias_HE)), False

    def odds(self, here_K: np.ndarray, last_HK: np.ndarray) -> np.ndarray:
        """float32 [H, E]: log-odds, summed in the order of K."""
        z_HE = self._bias_HE.copy()
        for k, expert in enumerate(here_K):
            z_HE += self._map_HJEE[:, 0, expert]
            z_HE += self._map_HJEE[self._rows, 1, last_HK[:, k]]
        return z_HE

    def learn(
        self, rows: np.ndarray, here_K: np.ndarray, last_HK: np.ndarray, odds_HE: np.ndarray, true_HK: np.ndarray
    ) -> None:
        """One step for those of the rows `rows` whose target is known; each learns from itself alone."""
        unknown = self._bias_HE.shape[1]
        rows = rows[(true_HK[rows] < unknown).all(1)]
        if not len(rows) or not self._lr:
            return
        if not self._own:  # what was fitted stays as it is
            self._map_HJEE, self._bias_HE, self._own = self._map_HJEE.copy(), self._bias_HE.copy(), True
        step_HE = -logistic(odds_HE[rows])
        np.put_along_axis(step_HE, true_HK[rows], np.take_along_axis(step_HE, true_HK[rows], 1) + np.float32(1), axis=1)
        step_HE *= self._lr
        self._bias_HE[rows] += step_HE
        for k, expert in enumerate(here_K):
            if expert < unknown:
                self._map_HJEE[rows, 0, expert] += step_HE
            known = last_HK[rows, k] < unknown
            self._map_HJEE[rows[known], 1, last_HK[rows, k][known]] += step_HE[known]
