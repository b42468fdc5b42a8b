"""Co-activation: several earlier choices together, of this token and the one before, each a table of who goes with whom.

Source: co-activation across tokens and layers as ST-MoE (arXiv 2606.15453) counts it; put together as naive Bayes does, with
fitted weights for what the choices say twice. Legend: N rows, L MoE layers, D layers ahead, H rows of a forecast, E experts,
K top-k, F what speaks (popularity and three choices).
"""

from pathlib import Path

import numpy as np

from rgpu.errors import InputError
from rgpu.predictors.markov import check_smoothing
from rgpu.predictors.popularity import popularity
from rgpu.predictors.routed import Parent, RoutedPredictor, conditional, real_rows, successors, summed
from rgpu.predictors.stacking import (
    EDGE,
    fit_logistic,
    held_out,
    log_odds,
    logistic,
    shared_out,
    speaking_rows_of,
    targets_of,
)
from rgpu.traces.trace import Trace
from rgpu.types import MoEShape


class Coactivation(RoutedPredictor):
    """Log-odds of an expert: weighed log-odds of its popularity, and log(P(it | e) / P(it)) summed over the experts e of this
    layer, of the layer before, and of the target layer at the last token (for the next token's row: at this and the last).

    `smoothing` as of `Markov`; `holdout`: share of the documents that weights are fitted on, with tables of the others;
    the tables are then counted on all.
    """

    name = "coactivation"

    def __init__(self, horizon: int = 4, smoothing: float = 8.0, holdout: float = 0.3, seed: int = 0) -> None:
        super().__init__(horizon)
        self.smoothing, self.holdout, self.seed = smoothing, holdout, seed

    def _check_parameters(self) -> None:
        super()._check_parameters()
        check_smoothing(self.name, self.smoothing)
        check_holdout(self.name, self.holdout)

    # -- fitting

    def _fit(self, part: Trace, checkpoint: Path | None) -> dict[str, np.ndarray]:
        fitting, weighing = held_out(part, self.holdout, self.seed)
        self.tensors_ = self._tables(fitting)
        layers = self.schema_.layers
        weight_LHF, bias_LH = (
            np.zeros((layers, self.horizon + 1, 4), np.float32),
            np.zeros((layers, self.horizon + 1), np.float32),
        )
        rows_P, first_P = speaking_rows_of(weighing)
        for layer in range(layers):
            ids = self.parent_ids(weighing, layer, rows_P, first_P)
            targets, ahead = self.targets(layer)
            for h, target in enumerate(targets):
                passes, true_PE = targets_of(weighing, rows_P, first_P, int(target), bool(ahead[h]))
                found = np.array([1.0, 1.0, 0.0, 0.0, 0.0])
                if len(passes):
                    said = self._said(layer, h, [ids_PK[passes] for ids_PK in ids])
                    found = fit_logistic(np.stack([s.ravel() for s in said]), true_PE.ravel(), found[:-1])
                weight_LHF[layer, h], bias_LH[layer, h] = found[:-1], found[-1]
        tables = self.tensors_ if fitting is part else self._tables(part)
        return tables | {"weight_LHF": weight_LHF, "bias_LH": bias_LH}

    def _tables(self, part: Trace) -> dict[str, np.ndarray]:
        """Log ratios: `later` of a layer d + 1 on, `next` of the next token, `cross` of it one layer on, `second` of the token
        after that; float32 with a row of zeros for an expert that is not known."""
        popular_LE = popularity(part)
        layers, experts = popular_LE.shape
        ids_NLK, rows, (before, after) = part.expert_ids, real_rows(part), successors(part)
        following = np.full(part.tokens, -1, np.int64)
        following[before] = after
        twice = before[following[after] >= 0]

        def ratio(one: np.ndarray, layer: int, other: np.ndarray, target: int) -> np.ndarray:
            popular_E = popular_LE[target]
            chance_EE = conditional(ids_NLK[one, layer], ids_NLK[other, target], popular_E, self.smoothing)
            return np.log(np.maximum(chance_EE, EDGE) / np.maximum(popular_E, EDGE).astype(np.float64))

        later = np.zeros((layers, self.horizon + 1, experts + 1, experts), np.float32)
        following_LEE, cross, second = (np.zeros((layers, experts + 1, experts), np.float32) for _ in range(3))
        for layer in range(layers):
            for d in range(min(self.horizon + 1, layers - 1 - layer)):
                later[layer, d, :experts] = ratio(rows, layer, rows, layer + d + 1)
            following_LEE[layer, :experts] = ratio(before, layer, after, layer)
            second[layer, :experts] = ratio(twice, layer, following[following[twice]], layer)
            if layer + 1 < layers:
                cross[layer, :experts] = ratio(before, layer, after, layer + 1)
        odds_LE = log_odds(popular_LE)
        return {"odds_LE": odds_LE, "later": later, "next": following_LEE, "cross": cross, "second": second}

    # -- forecasting

    def _parents(self, layer: int) -> list[Parent]:
        targets, _ = self.targets(layer)
        above = [(layer - 1, 0)] if layer else [(layer, 1)]  # the first layer has none; unused
        return [(layer, 0), *above, *((int(t), 0) for t in targets[:-1]), (layer, 1)]

    def _said(self, layer: int, h: int, ids: list[np.ndarray]) -> list[np.ndarray]:
        """float32 [N, E] of each of F."""
        targets, ahead = self.targets(layer)
        target, own = int(targets[h]), self.tensors_
        odds_NE = np.repeat(own["odds_LE"][target][None], len(ids[0]), axis=0)
        if ahead[h]:
            here, above, last = own["next"][layer], own["cross"][layer - 1], own["second"][layer]
        else:
            here, above, last = own["later"][layer, h], own["later"][layer - 1, h + 1], own["next"][target]
        none = np.zeros_like(odds_NE)
        return [odds_NE, summed(here, ids[0]), summed(above, ids[1]) if layer else none, summed(last, ids[2 + h])]

    def _combine(self, layer: int, ids: list[np.ndarray]) -> np.ndarray:
        rows = len(self.targets(layer)[0])
        z_NHE = np.empty((len(ids[0]), rows, self.schema_.experts), np.float32)
        for h in range(rows):
            z_NHE[:, h] = self.tensors_["bias_LH"][layer, h]
            for weight, said_NE in zip(self.tensors_["weight_LHF"][layer, h], self._said(layer, h, ids), strict=True):
                z_NHE[:, h] += weight * said_NE
        return shared_out(logistic(z_NHE), self.schema_.top_k)

    def expected_bytes(self, shape: MoEShape) -> int | None:
        tables = shape.layers * (self.horizon + 4) * (shape.experts + 1) * shape.experts
        return 4 * (tables + shape.layers * (shape.experts + 5 * (self.horizon + 1)))

    def work(self, layer: int) -> tuple[int, int] | None:
        """K rows of three tables, and popularity, for each row of the forecast; a sum for each, then a product and a sum."""
        outputs = len(self.targets(layer)[0]) * self.schema_.experts
        said = 3 * self.schema_.top_k + 1
        return 4 * said * outputs, (said + 8) * outputs


def check_holdout(name: str, holdout: float) -> None:
    if not 0 < holdout < 1:
        raise InputError(
            f"predictor {name}: got holdout {holdout}; expected a share between 0 and 1; set predictor.holdout"
        )
