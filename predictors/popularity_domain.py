"""Popularity of the domain: hot lists a domain, mixed by how likely each domain is after what was routed so far.

Source: profile-guided hot lists a workload (Fiddler, arXiv 2402.07033, section 3.3; llama.cpp pull request 5 of thecodacus on
merged against specialist profiles); a live sequence does not say its domain, so it is inferred (Bayes).
Legend: G domains, P passes, L MoE layers, H rows of a forecast, E experts.
"""

from pathlib import Path

import numpy as np

from rgpu.errors import TraceError
from rgpu.predictors.markov import check_smoothing
from rgpu.predictors.popularity import popularity
from rgpu.predictors.ranges import check_number
from rgpu.predictors.running import UNIT, Matched, map_counts
from rgpu.traces.trace import Trace


class PopularityDomain(Matched):
    """Mean of the domains' popularities, each weighed by its chance given every expert routed so far in the sequence.

    `smoothing`: tokens' worth of global popularity in each domain's. `evidence`: what one assignment counts for; below 1
    because those of a token, and of neighbours, say much the same. A trace without domains is refused.
    """

    name = "popularity_domain"

    def __init__(self, horizon: int = 4, smoothing: float = 32.0, evidence: float = 0.1) -> None:
        super().__init__(horizon)
        self.smoothing, self.evidence = smoothing, evidence

    def _check_parameters(self) -> None:
        super()._check_parameters()
        check_smoothing(self.name, self.smoothing)
        check_number(self.name, "evidence", self.evidence, 0, 1000)  # sums of whole numbers stay far from overflow

    def _fit(self, part: Trace, checkpoint: Path | None) -> dict[str, np.ndarray]:
        domains = [str(meta.get("domain", "")) for meta in part.header.sequences]
        if not domains or not all(domains):
            raise TraceError(
                "predictor popularity_domain needs the domain of every sequence: got a trace whose header lacks some; name "
                "them when recording, or use popularity or popularity_prefix"
            )
        popular_LE, (count_SLE, tokens_S) = popularity(part).astype(np.float64), map_counts(part)
        names = sorted(set(domains))
        of_S = np.array([names.index(domain) for domain in domains])
        chance_GLE, prior_G = np.empty((len(names), *popular_LE.shape)), np.empty(len(names))
        for g in range(len(names)):
            own = of_S == g
            prior_G[g] = (own.sum() + 1) / (len(domains) + len(names))
            uses_LE = count_SLE[own].sum(0) + self.smoothing * popular_LE
            chance_GLE[g] = uses_LE / (tokens_S[own].sum() + self.smoothing)
        gain_LEM = np.zeros((popular_LE.shape[0], popular_LE.shape[1] + 1, len(names)), np.int64)
        said_GLE = np.log(np.maximum(chance_GLE, 1e-6) / np.maximum(popular_LE, 1e-6))
        gain_LEM[:, :-1] = np.round(UNIT * self.evidence * np.moveaxis(said_GLE, 0, 2))
        return {
            "gain_LEM": gain_LEM,
            "chance_GLE": np.minimum(chance_GLE, 1).astype(np.float32),
            "prior_M": np.log(prior_G),
        }

    def _mix(self, layer: int, score_PM: np.ndarray) -> np.ndarray:
        z_PM = self.tensors_["prior_M"] + score_PM / UNIT
        weight_PM = np.exp(z_PM - z_PM.max(1, keepdims=True))
        return blended(weight_PM, self.tensors_["chance_GLE"][:, self.targets(layer)[0]])

    def work(self, layer: int) -> tuple[int, int] | None:
        """A product and a sum for each domain and output, and one row of gains for each routed expert."""
        domains, outputs = len(self.tensors_["prior_M"]), len(self.targets(layer)[0]) * self.schema_.experts
        return 4 * domains * outputs + 8 * domains * self.schema_.top_k, 2 * domains * outputs


def blended(weight_PM: np.ndarray, chance_MHE: np.ndarray) -> np.ndarray:
    """float32 [P, H, E]: means of the chances, by weights that need not sum to 1; added in the order of M."""
    total_P = np.zeros(len(weight_PM))
    for weight_P in weight_PM.T:
        total_P = total_P + weight_P
    probs_PHE = np.zeros((len(weight_PM), *chance_MHE.shape[1:]), np.float32)
    for weight_P, chance_HE in zip(weight_PM.T, chance_MHE, strict=True):
        probs_PHE += (weight_P / total_P).astype(np.float32)[:, None, None] * chance_HE
    return np.minimum(probs_PHE, np.float32(1))
