"""N-gram: the token id table with a second one above it, for pairs of a token and the one before it.

Source: token-indexed routing (OpenMoE, arXiv 2402.01739, section 5) with the interpolated back-off of n-gram language models
(Jelinek and Mercer 1980). Legend: N rows, P passes, L MoE layers, E experts.
"""

import numpy as np

from rgpu.predictors.routed import real_rows, successors
from rgpu.predictors.sparse_table import apply_table
from rgpu.predictors.token_id import HERE, NEXT, TokenId, expected, routed
from rgpu.traces.trace import DECODE, PADDING, Trace
from rgpu.types import RoutingEvent

PAIR = "pair_"  # prefix of the tables of pairs
NONE = -2  # no token before this one
LOW = 2**32 - 1


class Ngram(TokenId):
    """P(experts | previous id, current id), backed off to the current id and then to popularity; needs token ids.

    Parameters as of `TokenId`, for each of the four tables.
    """

    name = "ngram"

    def _tables(self, part: Trace, popular_LE: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
        tables = super()._tables(part, popular_LE)
        token_N, rows, (before, after) = part.require("token_ids", self.name), real_rows(part), successors(part)
        pair_N = pairs(previous_tokens(part), token_N)
        tables[PAIR + HERE] = self._make(pair_N[rows], routed(part, rows))
        tables[PAIR + NEXT] = self._make(pair_N[before], expected(tables[HERE], popular_LE, token_N[after]))
        return tables

    def reset(self) -> None:
        super().reset()
        self._previous_N = np.zeros(0, np.int64)  # of the rows of the running pass

    def observe(self, event: RoutingEvent) -> None:
        begins, last_N = event.layer <= getattr(self, "_layer", -1), getattr(self, "_token_N", None)
        super().observe(event)
        if len(self._token_N) and (begins or not len(self._previous_N)):
            self._previous_N = self._before(event, last_N)

    def _before(self, event: RoutingEvent, last_N: np.ndarray | None) -> np.ndarray:
        """int64 [N]: the token before each speaking row: of the same prompt, or of the pass before with as many rows."""
        assert event.token_T is not None
        if event.phase_T is None or not (event.phase_T == DECODE).any():
            phase_T = np.zeros(len(event.token_T), np.uint8) if event.phase_T is None else event.phase_T
            prompt_T = event.token_T[phase_T != PADDING]
            if len(prompt_T) > 1:
                return prompt_T[-2:-1].astype(np.int64)
        if last_N is None or len(last_N) != len(self._token_N):
            return np.full(len(self._token_N), NONE, np.int64)
        return last_N

    def _score(self, layer: int) -> np.ndarray:
        return self._look_up(layer, pairs(self._previous_N, self._token_N))

    def predict_trace(self, trace: Trace, layer: int, rows_P: np.ndarray, first_P: np.ndarray) -> np.ndarray:
        self.check(trace)
        token_N = trace.require("token_ids", f"predictor {self.name}")
        return self._look_up(layer, pairs(previous_tokens(trace), token_N)[rows_P])

    def _part(self, name: str, key_N: np.ndarray, layers_H: np.ndarray) -> np.ndarray:
        token_N = (key_N << 32) >> 32  # the lower half, with its sign
        return apply_table(self._table(PAIR + name), key_N, layers_H, super()._part(name, token_N, layers_H))


def pairs(before_N: np.ndarray, token_N: np.ndarray) -> np.ndarray:
    """int64 [N]: one number for each pair."""
    return before_N.astype(np.int64) << 32 | (token_N.astype(np.int64) & LOW)


def previous_tokens(trace: Trace) -> np.ndarray:
    """int64 [N]: the token before each row of the trace in its sequence, `NONE` for the first (and for padding)."""
    token_N = trace.require("token_ids", "predictor ngram")
    before_N = np.full(trace.tokens, NONE, np.int64)
    before, after = successors(trace)
    before_N[after] = token_N[before]
    return before_N
