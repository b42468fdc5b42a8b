"""Online head: a linear map from the experts just routed to those that come, which goes on learning while the model decodes.

Source: the heads that some engines train by SGD during decode (no paper found; published recalls are low), here started from
counted co-activation (arXiv 2606.15453) so that what is learnt online comes on top. Logistic loss, plain SGD.
Legend: N rows, P passes, L MoE layers, H rows of a forecast, E experts, K top-k, X rows of a map (see `_Head`).
"""

from pathlib import Path

import numpy as np

from rgpu.predictors.coactivation import Coactivation
from rgpu.predictors.ranges import check_number
from rgpu.predictors.routed import known_or_last
from rgpu.predictors.stacking import logistic, shared_out
from rgpu.traces.trace import Trace
from rgpu.types import MoEShape, RoutingEvent


class OnlineHead(Coactivation):
    """Log-odds: a bias an expert, plus weights of the experts of this layer and of the target layer at the last token.

    Starts from the log ratios and fitted weights of `Coactivation` without its third choice. When a forecast's target is
    seen, its map takes one step of `lr` along the gradient; `reset` forgets these steps and keeps the fit. Every forecast
    row has a map of its own, so the order in which rows learn does not matter.
    """

    name = "online_head"

    def __init__(
        self, horizon: int = 4, lr: float = 0.1, smoothing: float = 8.0, holdout: float = 0.3, seed: int = 0
    ) -> None:
        super().__init__(horizon, smoothing, holdout, seed)
        self.lr = lr

    def _check_parameters(self) -> None:
        super()._check_parameters()
        check_number(self.name, "lr", self.lr, 0, 1000)

    def _fit(self, part: Trace, checkpoint: Path | None) -> dict[str, np.ndarray]:
        tensors = super()._fit(part, checkpoint)
        own, layers = self.schema_, self.schema_.layers
        map_LHXE = np.zeros((layers, self.horizon + 1, 2 * (own.experts + 2), own.experts), np.float32)
        bias_LHE = np.zeros((layers, self.horizon + 1, own.experts), np.float32)
        for layer in range(layers):
            targets, ahead = self.targets(layer)
            for h, target in enumerate(targets):
                odds, here, _, last = tensors["weight_LHF"][layer, h]
                first = tensors["next"][layer] if ahead[h] else tensors["later"][layer, h]
                second = tensors["second"][layer] if ahead[h] else tensors["next"][target]
                map_LHXE[layer, h, : own.experts + 1] = here * first
                map_LHXE[layer, h, own.experts + 2 : -1] = last * second
                bias_LHE[layer, h] = tensors["bias_LH"][layer, h] + odds * tensors["odds_LE"][target]
        return {"map_LHXE": map_LHXE, "bias_LHE": bias_LHE}

    def _said(self, layer: int, h: int, ids: list[np.ndarray]) -> list[np.ndarray]:
        said = super()._said(layer, h, ids)
        said[2] = np.zeros_like(said[2])  # the layer above has no map
        return said

    # -- forecasting

    def reset(self) -> None:
        super().reset()
        self._heads: dict[int, _Head] = {}
        self._waiting: dict[int, list[tuple[int, int, np.ndarray, np.ndarray]]] = {}
        self._odds_NHE = np.zeros((0, 0, 0), np.float32)

    def observe(self, event: RoutingEvent) -> None:
        super().observe(event)
        layer, experts = event.layer, self.schema_.experts
        targets, _ = self.targets(layer)
        self._odds_NHE = np.zeros((0, len(targets), experts), np.float32)
        if not self._rows:
            return
        true_NK = self._now[layer]
        known_N, true_NE = (true_NK < experts).all(1), hot(true_NK, experts)
        for source, h, at_NHW, odds_NHE in self._waiting.pop(layer, []):
            for n in np.flatnonzero(known_N) if len(odds_NHE) == self._rows else ():
                self._heads[source].learn(
                    slice(h, h + 1), at_NHW[n, h : h + 1], odds_NHE[n, h : h + 1], true_NE[n, None]
                )
        head = self._heads.setdefault(layer, self._head(layer))
        at_NHW = self._rows_read(self._parents_now(layer))
        self._odds_NHE = np.stack([head.odds(at_HW) for at_HW in at_NHW])
        for h, target in enumerate(targets):
            self._waiting.setdefault(int(target), []).append((layer, h, at_NHW, self._odds_NHE))

    def _score(self, layer: int) -> np.ndarray:
        return shared_out(logistic(self._odds_NHE), self.schema_.top_k)

    def predict_trace(self, trace: Trace, layer: int, rows_P: np.ndarray, first_P: np.ndarray) -> np.ndarray:
        self.check(trace)
        targets, _ = self.targets(layer)
        at_PHW = self._rows_read(self.parent_ids(trace, layer, rows_P, first_P))
        true_PHK = known_or_last(trace.expert_ids[rows_P][:, targets], self.schema_.experts)
        true_PHK[:, -1] = np.roll(true_PHK[:, -1], -1, axis=0)  # of the next token
        known_PH = np.all(true_PHK < self.schema_.experts, axis=2)
        learns_P = np.r_[~first_P[1:], False]
        odds_PHE = np.empty((len(rows_P), len(targets), self.schema_.experts), np.float32)
        head = self._head(layer)
        for p in range(len(rows_P)):
            if first_P[p]:
                head = self._head(layer)
            odds_PHE[p] = head.odds(at_PHW[p])
            if learns_P[p]:  # all targets of this forecast are seen before the next one at this layer
                true_HE, known_H = hot(true_PHK[p], self.schema_.experts), known_PH[p, :]
                if known_H.all():
                    head.learn(slice(None), at_PHW[p], odds_PHE[p], true_HE)
                else:
                    head.learn(np.flatnonzero(known_H), at_PHW[p, known_H], odds_PHE[p, known_H], true_HE[known_H])
        return shared_out(logistic(odds_PHE), self.schema_.top_k)

    def _rows_read(self, ids: list[np.ndarray]) -> np.ndarray:
        """int64 [N, H, W]: the rows of the map that each forecast row adds up; W = 2 K, here's and the last token's."""
        here_NK, last_NHK = ids[0], np.stack(ids[2:], axis=1)
        here_NHK = np.repeat(here_NK[:, None], last_NHK.shape[1], axis=1)
        return np.concatenate([here_NHK, last_NHK + self.schema_.experts + 2], axis=2)

    def _head(self, layer: int) -> "_Head":
        rows = len(self.targets(layer)[0])
        return _Head(self.tensors_["map_LHXE"][layer, :rows], self.tensors_["bias_LHE"][layer, :rows], self.lr)

    def expected_bytes(self, shape: MoEShape) -> int | None:
        rows = shape.layers * (self.horizon + 1) * (2 * (shape.experts + 2) + 1)
        return 2 * 4 * rows * shape.experts

    def _derived_bytes(self) -> int:
        """What is learnt in a sequence lies beside what was fitted."""
        return sum(tensor.nbytes for tensor in self.tensors_.values())

    def work(self, layer: int) -> tuple[int, int] | None:
        """K rows of two maps for each row of the forecast, read to forecast and again to learn."""
        outputs = len(self.targets(layer)[0]) * self.schema_.experts
        return 4 * 4 * self.schema_.top_k * outputs, (4 * self.schema_.top_k + 8) * outputs


class _Head:
    """The maps of one layer as they are after what was learnt in this sequence.

    X: rows of a map, for here's experts and then for those of the last token; after each E of them a row of zeros, which is
    read for an expert that is not known, and one that is never read, which learns in its place.
    """

    def __init__(self, map_HXE: np.ndarray, bias_HE: np.ndarray, lr: float) -> None:
        self._map_HXE, self._bias_HE, self._lr = map_HXE, bias_HE, np.float32(lr)
        self._rows_H1, self._own = np.arange(len(bias_HE))[:, None], False

    def odds(self, at_HW: np.ndarray) -> np.ndarray:
        """float32 [H, E]: log-odds, rows of the map added in the order of W."""
        total_HE: np.ndarray = np.add.reduce(self._map_HXE[self._rows_H1, at_HW], axis=1)
        return total_HE + self._bias_HE

    def learn(self, rows: slice | np.ndarray, at_HW: np.ndarray, odds_HE: np.ndarray, true_HE: np.ndarray) -> None:
        """One step for the forecast rows `rows`, given what they read, what they said and what came (0 and 1)."""
        if not self._lr:
            return
        if not self._own:  # what was fitted stays as it is
            self._map_HXE, self._bias_HE, self._own = self._map_HXE.copy(), self._bias_HE.copy(), True
        step_HE = (true_HE - logistic(odds_HE)) * self._lr
        self._bias_HE[rows] += step_HE
        zero = self._bias_HE.shape[1]
        at_HW = at_HW + ((at_HW == zero) | (at_HW == 2 * zero + 2))  # what is not known learns nothing
        self._map_HXE[self._rows_H1[rows], at_HW] += step_HE[:, None]


def hot(ids_NK: np.ndarray, experts: int) -> np.ndarray:
    """float32 [N, E]: 1 where the expert is among the row's."""
    hot_NE = np.zeros((len(ids_NK), experts + 1), np.float32)
    np.put_along_axis(hot_NE, ids_NK, np.float32(1), axis=1)
    return hot_NE[:, :experts]
