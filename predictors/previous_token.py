"""Previous token: each layer routes the next token as it routed the last one.

Source: the reuse of experts between adjacent tokens that LRU caches live on (Eliseev and Mazur 2023, arXiv 2312.17238,
section 3.1; measured a layer in MoE-APEX, arXiv 2411.01433, figure 10a).
"""

from pathlib import Path

import numpy as np

from rgpu.predictors.base import BasePredictor, speaking_rows
from rgpu.predictors.popularity import popularity
from rgpu.traces.trace import PADDING, Trace
from rgpu.types import MoEShape, RoutingEvent


class PreviousToken(BasePredictor):
    """The top-k last routed at the forecast layer get its measured reuse rate; popularity shares out what is left.

    Within a pass a later layer is known from the pass before; the current layer, forecast for the next pass, from this
    one. A member always precedes a non-member (non-members are capped just below the reuse rate), so recall at width k
    is plain reuse and wider lists continue with popular experts. Before a layer was seen its row is popularity.
    """

    name = "previous_token"

    def _fit(self, part: Trace, checkpoint: Path | None) -> dict[str, np.ndarray]:
        return {"popularity_LE": popularity(part), "reuse_L": reuse_rate(part)}

    def reset(self) -> None:
        super().reset()
        self._rows_LNE: dict[int, np.ndarray] = {}

    def observe(self, event: RoutingEvent) -> None:
        super().observe(event)
        rows = speaking_rows(event.phase_T, len(event.experts_TK))
        if len(rows):
            self._rows_LNE[event.layer] = self._after(event.layer, event.experts_TK[rows])

    def work(self, layer: int) -> tuple[int, int] | None:
        """A popularity and a remembered row for each row of the forecast; one row is made: a sum and a product an expert."""
        return 8 * len(self.targets(layer)[0]) * self.schema_.experts, 2 * self.schema_.experts

    def expected_bytes(self, shape: MoEShape) -> int | None:
        return 4 * (shape.layers * (shape.experts + 1))

    def _score(self, layer: int) -> np.ndarray:
        layers, _ = self.targets(layer)
        popular_LE = self.tensors_["popularity_LE"]
        rows_HE = [_mean(self._rows_LNE[t]) if t in self._rows_LNE else popular_LE[t] for t in layers]
        return np.stack(rows_HE)[None]

    def predict_trace(self, trace: Trace, layer: int, rows_P: np.ndarray, first_P: np.ndarray) -> np.ndarray:
        self.check(trace)
        layers, ahead = self.targets(layer)
        probs_PHE = np.empty((len(rows_P), len(layers), self.schema_.experts), np.float32)
        for h, target in enumerate(layers):
            after_PE = self._after(int(target), trace.expert_ids[rows_P, target])
            if ahead[h]:
                probs_PHE[:, h] = after_PE
            else:  # layer not reached yet in this pass: what the pass before showed
                probs_PHE[1:, h] = after_PE[:-1]
                probs_PHE[first_P, h] = self.tensors_["popularity_LE"][target]
        return probs_PHE

    def _after(self, layer: int, experts_NK: np.ndarray) -> np.ndarray:
        """float32 [N, E]: chances at `layer` one token after each row of experts."""
        popular_E, reuse = self.tensors_["popularity_LE"][layer], self.tensors_["reuse_L"][layer]
        top_k = np.float32(self.schema_.top_k)
        member_NE = membership(experts_NK, self.schema_.experts)
        other_NE = np.where(member_NE, np.float32(0), popular_E)
        mass_N1 = np.maximum(other_NE.sum(1, keepdims=True), np.float32(1e-12))
        left_NE = other_NE * ((top_k - top_k * reuse) / mass_N1)
        return np.where(member_NE, reuse, np.minimum(left_NE, np.nextafter(reuse, np.float32(0))))


def membership(experts_NK: np.ndarray, experts: int) -> np.ndarray:
    """bool [N, E]: whether the expert is among the row's top-k; ids outside 0..E-1 ("not recorded") do not count."""
    ids_NK = experts_NK.astype(np.int64)
    valid_NK = (ids_NK >= 0) & (ids_NK < experts)
    member_NE = np.zeros((len(ids_NK), experts), bool)
    member_NE[np.nonzero(valid_NK)[0], ids_NK[valid_NK]] = True
    return member_NE


def reuse_rate(trace: Trace) -> np.ndarray:
    """float32 [L]: share of a token's experts that the token before it in its sequence also used (never 0: a rank)."""
    ids_NLK = trace.expert_ids
    sequence_N = np.repeat(np.arange(trace.sequences), np.diff(trace.seq_offsets))
    pair_N = sequence_N[1:] == sequence_N[:-1]
    if trace.phase is not None:
        pair_N &= (trace.phase[1:] != PADDING) & (trace.phase[:-1] != PADDING)
    later = np.flatnonzero(pair_N) + 1
    rates = []
    for layer in range(trace.layers):
        now_NE = membership(ids_NLK[later, layer], trace.header.num_experts)
        before_NE = membership(ids_NLK[later - 1, layer], trace.header.num_experts)
        rates.append((now_NE & before_NE).sum() / max(1, now_NE.sum()))
    return np.clip(np.array(rates, np.float32), np.float32(1e-3), np.float32(1))


def _mean(rows_NE: np.ndarray) -> np.ndarray:
    return np.add.reduce(rows_NE, axis=0, dtype=np.float32) / np.float32(len(rows_NE))
