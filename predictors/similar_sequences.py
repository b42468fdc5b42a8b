"""Similar sequences: the activation map of the sequence so far against those of calibration; the nearest ones forecast.

Source: the expert activation matrices of MoE-Infinity (Xue et al. 2024, arXiv 2401.14361, section 4), compared by cosine, and
the expert maps of fMoE (arXiv 2502.05370). Here a map is flattened over layers, and maps are grouped by k-means where there
are more sequences than `maps`. Legend: M maps, P passes, L MoE layers, H rows of a forecast, E experts, S sequences.
"""

from pathlib import Path

import numpy as np
from sklearn.cluster import KMeans

from rgpu.errors import InputError
from rgpu.predictors.markov import check_smoothing
from rgpu.predictors.popularity import popularity
from rgpu.predictors.running import UNIT, Matched, map_counts
from rgpu.traces.trace import Trace


class SimilarSequences(Matched):
    """Mean of the `neighbours` nearest maps' shares, each weighed by its cosine; popularity before anything was routed.

    `maps` at most are kept. `smoothing`: tokens' worth of popularity in each map's shares. `centred`: cosines of the maps less
    their mean, so that what all sequences share does not drown what tells them apart.
    """

    name = "similar_sequences"

    def __init__(
        self, horizon: int = 4, maps: int = 64, neighbours: int = 2, smoothing: float = 32.0, centred: bool = False,
        seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(horizon)
        self.maps, self.neighbours, self.smoothing = maps, neighbours, smoothing
        self.centred, self.seed = centred, seed

    def _check_parameters(self) -> None:
        super()._check_parameters()
        check_smoothing(self.name, self.smoothing)
        if not 1 <= self.neighbours <= self.maps:
            raise InputError(
                f"predictor similar_sequences: got {self.neighbours} neighbours of {self.maps} maps; expected one or more, and "
                "as many maps or more; set predictor.neighbours"
            )

    def _fit(self, part: Trace, checkpoint: Path | None) -> dict[str, np.ndarray]:
        popular_LE, (count_SLE, tokens_S) = popularity(part), map_counts(part)
        real = np.flatnonzero(tokens_S)
        share_SX = (count_SLE[real] / tokens_S[real, None, None]).reshape(len(real), -1)
        group_S = np.arange(len(real))
        if len(real) > self.maps:
            group_S = KMeans(self.maps, n_init=1, random_state=self.seed).fit_predict(share_SX)
        groups = np.unique(group_S)  # k-means may leave some empty
        layers, experts = popular_LE.shape
        chance_MLE = np.empty((len(groups), layers, experts), np.float32)
        direction_MX = np.empty((len(groups), layers * experts))
        for m, group in enumerate(groups):
            own = real[group_S == group]
            uses_LE, tokens = count_SLE[own].sum(0), tokens_S[own].sum()
            chance_MLE[m] = (uses_LE + self.smoothing * popular_LE) / (tokens + self.smoothing)
            direction_MX[m] = (uses_LE / tokens).ravel()
        if self.centred:
            direction_MX -= direction_MX.mean(0)
        direction_MX /= np.maximum(np.linalg.norm(direction_MX, axis=1, keepdims=True), 1e-12)
        gain_LEM = np.zeros((layers, experts + 1, len(groups)), np.int64)
        gain_LEM[:, :-1] = np.round(UNIT * direction_MX).reshape(-1, layers, experts).transpose(1, 2, 0)
        return {"gain_LEM": gain_LEM, "chance_MLE": chance_MLE, "popularity_LE": popular_LE}

    def _mix(self, layer: int, score_PM: np.ndarray) -> np.ndarray:
        layers, _ = self.targets(layer)
        chance_MHE = self.tensors_["chance_MLE"][:, layers]
        near_PM = np.argsort(-score_PM, axis=1, kind="stable")[:, : self.neighbours]
        cosine_PM = np.maximum(np.take_along_axis(score_PM, near_PM, axis=1), 0).astype(np.float64)
        total_P = np.zeros(len(score_PM))
        for cosine_P in cosine_PM.T:
            total_P = total_P + cosine_P
        known_P = total_P > 0
        weight_PM = (cosine_PM / np.where(known_P, total_P, 1)[:, None]).astype(np.float32)
        probs_PHE = (
            np.where(known_P, np.float32(0), np.float32(1))[:, None, None] * self.tensors_["popularity_LE"][layers]
        )
        for weight_P, near_P in zip(weight_PM.T, near_PM.T, strict=True):
            probs_PHE += weight_P[:, None, None] * chance_MHE[near_P]
        return np.minimum(probs_PHE, np.float32(1))

    def work(self, layer: int) -> tuple[int, int] | None:
        """A product and a sum for each neighbour and output, and one row of the maps for each routed expert."""
        maps = self.tensors_["gain_LEM"].shape[2]
        near, outputs = min(self.neighbours, maps), len(self.targets(layer)[0]) * self.schema_.experts
        return 4 * near * outputs + 8 * maps * self.schema_.top_k, 2 * near * outputs
