"""Token id: which experts each token was routed to, whatever its context; what followed it speaks for the next token.

Source: OpenMoE (Xue et al. 2024, arXiv 2402.01739, section 5), which finds that routing follows the token id more than its
context. Legend: N rows, P passes, L MoE layers, H rows of a forecast, E experts, V tokens in the table, W experts kept of each.
"""

from pathlib import Path

import numpy as np

from rgpu.errors import InputError
from rgpu.predictors.base import BasePredictor, speaking_rows
from rgpu.predictors.markov import check_smoothing
from rgpu.predictors.popularity import popularity
from rgpu.predictors.routed import member_chunks, real_rows, successors
from rgpu.predictors.sparse_table import Values, apply_table, make_table
from rgpu.traces.trace import Trace
from rgpu.types import RoutingEvent

HERE, NEXT = "here", "next"  # prefixes of the tables: of the token itself, and of the one after it


class TokenId(BasePredictor):
    """P(experts at a later layer | id of the current token), backed off to popularity; needs token ids.

    The next token's id is not known yet, so its row is an expectation over the tokens that followed this one in calibration.
    `smoothing`: occurrences' worth of back-off in each entry; `tokens`: entries at most, the most frequent ids; `width`:
    experts kept of an entry and layer (null: three times the top-k).
    """

    name = "token_id"
    needs = ("token_ids",)

    def __init__(self, horizon: int = 4, smoothing: float = 1.0, tokens: int = 8192, width: int | None = None) -> None:
        super().__init__(horizon)
        self.smoothing, self.tokens, self.width = smoothing, tokens, width

    def _check_parameters(self) -> None:
        super()._check_parameters()
        check_smoothing(self.name, self.smoothing)
        for name, value in (("tokens", self.tokens), ("width", 1 if self.width is None else self.width)):
            if value < 1:
                raise InputError(f"predictor {self.name}: got {name} {value}; expected 1 or more; set predictor.{name}")

    # -- fitting

    def _fit(self, part: Trace, checkpoint: Path | None) -> dict[str, np.ndarray]:
        tensors = {"popularity_LE": popularity(part)}
        for name, table in self._tables(part, tensors["popularity_LE"]).items():
            tensors |= {f"{name}.{array}": values for array, values in table.items()}
        return tensors

    def _tables(self, part: Trace, popular_LE: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
        token_N, rows = part.require("token_ids", f"predictor {self.name}").astype(np.int64), real_rows(part)
        before, after = successors(part)
        here = self._make(token_N[rows], routed(part, rows))
        return {HERE: here, NEXT: self._make(token_N[before], expected(here, popular_LE, token_N[after]))}

    def _make(self, key_N: np.ndarray, values: Values) -> dict[str, np.ndarray]:
        own = self.schema_
        width = min(self.width or 3 * own.top_k, own.experts)
        return make_table(key_N, values, own.layers, own.top_k, self.smoothing, self.tokens, width)

    # -- forecasting

    def reset(self) -> None:
        super().reset()
        self._token_N = np.zeros(0, np.int64)

    def observe(self, event: RoutingEvent) -> None:
        super().observe(event)
        if event.token_T is None:
            raise InputError(
                f"predictor {self.name}: got an event with no token ids; expected those of its rows; use a trace that has "
                "token_ids, or a predictor that needs none"
            )
        self._token_N = event.token_T[speaking_rows(event.phase_T, len(event.token_T))].astype(np.int64)

    def _score(self, layer: int) -> np.ndarray:
        return self._look_up(layer, self._token_N)

    def predict_trace(self, trace: Trace, layer: int, rows_P: np.ndarray, first_P: np.ndarray) -> np.ndarray:
        self.check(trace)
        return self._look_up(layer, trace.require("token_ids", f"predictor {self.name}")[rows_P].astype(np.int64))

    def _look_up(self, layer: int, key_N: np.ndarray) -> np.ndarray:
        """float32 [N, H, E]."""
        layers, ahead = self.targets(layer)
        later = int((ahead == 0).sum())
        parts = [(HERE, layers[:later]), (NEXT, layers[later:])]
        return np.concatenate([self._part(name, key_N, layers_H) for name, layers_H in parts if len(layers_H)], axis=1)

    def work(self, layer: int) -> tuple[int, int] | None:
        """An entry, popularity and a search by halves; a product for each output, a sum for each expert of the entry."""
        rows, own = len(self.targets(layer)[0]), self.schema_
        levels = sum(name.endswith("key_V") for name in self.tensors_) // 2  # what backs off to what
        width = self.tensors_[f"{HERE}.expert_VLW"].shape[2]
        search = 8 * max(1, len(self.tensors_[f"{HERE}.key_V"]).bit_length())
        outputs = rows * own.experts
        return 4 * outputs + levels * (2 * search + rows * (4 + 8 * width)), levels * (outputs + rows * width)

    def _part(self, name: str, key_N: np.ndarray, layers_H: np.ndarray) -> np.ndarray:
        """The rows of one kind of table."""
        popular_NHE = np.repeat(self.tensors_["popularity_LE"][layers_H][None], len(key_N), axis=0)
        return apply_table(self._table(name), key_N, layers_H, popular_NHE)

    def _table(self, name: str) -> dict[str, np.ndarray]:
        return {array: self.tensors_[f"{name}.{array}"] for array in ("key_V", "rest_VL", "expert_VLW", "chance_VLW")}


def routed(trace: Trace, rows: np.ndarray) -> Values:
    """What these rows were routed to, as 0 and 1."""

    def values(layer: int, some: np.ndarray) -> np.ndarray:
        ids_NK = trace.expert_ids[rows[some], layer]
        return np.concatenate([member for _, member in member_chunks(ids_NK, trace.header.num_experts)])

    return values


def expected(table: dict[str, np.ndarray], popular_LE: np.ndarray, key_N: np.ndarray) -> Values:
    """What `table` expects of tokens."""

    def values(layer: int, some: np.ndarray) -> np.ndarray:
        popular_N1E = np.repeat(popular_LE[None, layer : layer + 1], len(some), axis=0)
        return apply_table(table, key_N[some], np.array([layer]), popular_N1E)[:, 0]

    return values
