"""Boosted trees on a few facts about each expert, one model for each distance, from routed ids alone.

Source: histogram gradient boosting as scikit-learn has it (after LightGBM, Ke et al. 2017); learned predictors on cheap
features stand beside the neural ones of ProMoE (arXiv 2410.22134) and MoE-Beyond (arXiv 2508.17137). The features are ours:
popularity there, chance given the experts just routed here and given the last choice there, rank in the last two choices,
and the layer. Their tables come from half of the documents and trees from the other half, so that trees learn how far a
table can be trusted on text it has not seen; then tables are made anew from all.

Legend: N rows, L MoE layers, H rows of a forecast, E experts, K top-k, J features.
"""

from pathlib import Path

import numpy as np

from rgpu.errors import InputError
from rgpu.predictors.markov import Markov
from rgpu.predictors.popularity import popularity
from rgpu.predictors.routed import Parent, RoutedPredictor, real_rows, sequence_of
from rgpu.predictors.tree_arrays import NAMES, chances, constant, exported
from rgpu.traces.split import split
from rgpu.traces.trace import Trace

FEATURES = ("popularity", "here", "there", "rank_last", "rank_before", "layer")
ROWS = 256  # walked together


class BoostedTrees(RoutedPredictor):
    """`trees` of at most `leaves` leaves and the `rate` of boosting, for each row of a forecast; `pairs` of row and expert
    that train one model at most, drawn by `seed`."""

    name = "boosted_trees"

    def __init__(
        self, horizon: int = 4, trees: int = 40, leaves: int = 15, rate: float = 0.1, pairs: int = 200_000, seed: int = 0
    ) -> None:  # fmt: skip
        super().__init__(horizon)
        self.trees, self.leaves, self.rate, self.pairs, self.seed = trees, leaves, rate, pairs, seed

    def _check_parameters(self) -> None:
        super()._check_parameters()
        for name, low in (("trees", 1), ("leaves", 2), ("pairs", 1)):
            if getattr(self, name) < low:
                raise InputError(
                    f"predictor {self.name}: got {name} {getattr(self, name)}; expected {low} or more; raise it"
                )
        if not 0 < self.rate <= 1:
            raise InputError(f"predictor {self.name}: got rate {self.rate}; expected above 0, at most 1; set it so")

    # -- fitting

    def _fit(self, part: Trace, checkpoint: Path | None) -> dict[str, np.ndarray]:
        halves = split(part, 0.5, self.seed)
        alone = not len(halves.calibration)  # one document: tables and trees share it
        known, shown = (part, part) if alone else (part.select(halves.calibration), part.select(halves.scored))
        self.tensors_ = self._tables(known)
        found: dict[str, np.ndarray] = {}
        for h in range(self.horizon + 1):
            x_NJ, y_N = self._samples(shown, h)
            trees = (
                self._boosted(x_NJ, y_N) if 0 < y_N.sum() < len(y_N) else constant(float(y_N.mean() if len(y_N) else 0))
            )
            found |= {f"{name}.{h}": array for name, array in trees.items()}
        return self._tables(part) | found

    def _tables(self, part: Trace) -> dict[str, np.ndarray]:
        markov = Markov(self.horizon)
        markov.schema_ = self.schema_
        return {"popularity_LE": popularity(part), **markov._fit(part, None)}

    def _samples(self, trace: Trace, h: int) -> tuple[np.ndarray, np.ndarray]:
        """Features of the pairs of forecast row h (of H = horizon + 1), and whether the expert was routed there."""
        rows, experts = real_rows(trace), self.schema_.experts
        sequence = sequence_of(trace, rows)
        first = np.r_[True, sequence[1:] != sequence[:-1]]
        rng = np.random.default_rng((self.seed, h))
        features, members = [], []
        each = max(1, self.pairs // (experts * self.schema_.layers))
        for layer in range(self.schema_.layers):
            targets, ahead = self.targets(layer)
            following = h == self.horizon
            if not following and h >= len(targets) - 1:
                continue
            row = len(targets) - 1 if following else h
            usable = np.flatnonzero(~np.r_[first[1:], True] if following else np.ones(len(rows), bool))
            chosen = np.sort(rng.permutation(usable)[:each])
            ids = [ids_NK[chosen] for ids_NK in self.parent_ids(trace, layer, rows, first)]
            after_NK = trace.expert_ids[rows[chosen + 1] if following else rows[chosen], targets[row]]
            recorded_N = (after_NK < experts).all(1)
            features.append(self._features(layer, row, ids)[recorded_N].reshape(-1, len(FEATURES)))
            members.append((after_NK[recorded_N, :, None] == np.arange(experts)).any(1).ravel())
        if not features:
            return np.zeros((0, len(FEATURES))), np.zeros(0, bool)
        return np.concatenate(features), np.concatenate(members)

    def _boosted(self, x_NJ: np.ndarray, y_N: np.ndarray) -> dict[str, np.ndarray]:
        from sklearn.ensemble import HistGradientBoostingClassifier  # slow to import, needed to train alone

        model = HistGradientBoostingClassifier(
            max_iter=self.trees, max_leaf_nodes=self.leaves, learning_rate=self.rate, early_stopping=False,
            random_state=self.seed,
        )  # fmt: skip
        return exported(model.fit(x_NJ, y_N))

    # -- forecasting

    def _parents(self, layer: int) -> list[Parent]:
        targets, _ = self.targets(layer)
        return [(layer, 0), (layer, 1), *((int(target), 0) for target in targets[:-1])]

    def _features(self, layer: int, row: int, ids: list[np.ndarray]) -> np.ndarray:
        """float64 [N, E, J] of one row of a forecast."""
        targets, ahead = self.targets(layer)
        target, experts, top_k = int(targets[row]), self.schema_.experts, self.schema_.top_k
        last_NK, before_NK = (ids[0], ids[1]) if ahead[row] else (ids[2 + row], np.full_like(ids[0], experts))
        chance_LHEE = self.tensors_["chance_LHEE"]
        there_EE = chance_LHEE[target, len(self.targets(target)[0]) - 1]  # one token on, at the target
        x_NEJ = np.empty((len(ids[0]), experts, len(FEATURES)))
        x_NEJ[..., 0] = self.tensors_["popularity_LE"][target]
        x_NEJ[..., 1] = _mean_rows(chance_LHEE[layer, row], ids[0])
        x_NEJ[..., 2] = _mean_rows(there_EE, before_NK if ahead[row] else last_NK)
        x_NEJ[..., 3], x_NEJ[..., 4] = _ranks(last_NK, experts, top_k), _ranks(before_NK, experts, top_k)
        x_NEJ[..., 5] = layer
        return x_NEJ

    def _combine(self, layer: int, ids: list[np.ndarray]) -> np.ndarray:
        targets, ahead = self.targets(layer)
        rows, experts, top_k = len(ids[0]), self.schema_.experts, np.float32(self.schema_.top_k)
        chance_NHE = np.empty((rows, len(targets), experts), np.float32)
        for h in range(len(targets)):
            trees = {name: self.tensors_[f"{name}.{self.horizon if ahead[h] else h}"] for name in NAMES}
            for start in range(0, rows, ROWS):
                x_NEJ = self._features(layer, h, [part[start : start + ROWS] for part in ids])
                chance_NHE[start : start + ROWS, h] = chances(trees, x_NEJ.reshape(-1, len(FEATURES))).reshape(
                    -1, experts
                )
        total_NH1 = np.zeros((rows, len(targets), 1), np.float32)
        for expert in range(experts):  # in a fixed order
            total_NH1[..., 0] += chance_NHE[..., expert]
        return chance_NHE * np.minimum(np.float32(1), top_k / np.maximum(total_NH1, np.float32(1e-12)))


def _mean_rows(table_EE: np.ndarray, ids_NK: np.ndarray) -> np.ndarray:
    """float32 [N, E]: mean of the table's rows of each row's K experts, added in their order."""
    total_NE = np.zeros((len(ids_NK), table_EE.shape[1]), np.float32)
    for k in range(ids_NK.shape[1]):
        total_NE += table_EE[ids_NK[:, k]]
    return total_NE / np.float32(ids_NK.shape[1])


def _ranks(ids_NK: np.ndarray, experts: int, top_k: int) -> np.ndarray:
    """int64 [N, E]: the rank at which each expert was routed, K where it was not."""
    rank_NX = np.full((len(ids_NK), experts + 1), top_k, np.int64)
    for k in range(ids_NK.shape[1] - 1, -1, -1):
        rank_NX[np.arange(len(ids_NK)), ids_NK[:, k]] = k
    return rank_NX[:, :experts]
