"""What predictors share that read nothing but routed ids: which earlier choices speak for a forecast, and how to count.

Legend: N rows scored together, P passes of a trace, L MoE layers, E experts, K top-k, H rows of a forecast. An id of E means
"not known": it was not recorded, was given up by a lossy run, or lies before the sequence.
"""

from collections.abc import Iterator

import numpy as np

from rgpu.predictors.base import BasePredictor, speaking_rows
from rgpu.traces.trace import PADDING, Trace
from rgpu.types import RoutingEvent

CHUNK = 65536  # rows counted together: sums of 0 and 1 in float32 stay exact, and memory bounded
Parent = tuple[int, int]  # (layer, 0: as last routed there, 1: as routed there one pass before that)


class RoutedPredictor(BasePredictor):
    """Subclasses give `_parents(layer)`, the choices that a forecast made at `layer` reads, and `_combine(layer, ids)`.

    Rows of one pass and of the pass before are matched by position where there are as many, else the earlier ones count as
    not known: the rows of a batch keep their order, those of a prompt and of the decode step after it need not.
    """

    def reset(self) -> None:
        super().reset()
        self._now: dict[int, np.ndarray] = {}
        self._before: dict[int, np.ndarray] = {}
        self._rows = 0

    def observe(self, event: RoutingEvent) -> None:
        super().observe(event)
        rows = speaking_rows(event.phase_T, len(event.experts_TK))
        self._rows = len(rows)
        if len(rows):
            if event.layer in self._now:
                self._before[event.layer] = self._now[event.layer]
            self._now[event.layer] = known_or_last(event.experts_TK[rows], self.schema_.experts)

    def _score(self, layer: int) -> np.ndarray:
        return self._combine(layer, self._parents_now(layer))

    def _parents_now(self, layer: int) -> list[np.ndarray]:
        """int64 [N, K] of each parent of `layer`, as the events so far show them."""
        found = []
        for at, ago in self._parents(layer):
            ids_NK = (self._before if ago else self._now).get(at)
            if ids_NK is None or len(ids_NK) != self._rows:
                ids_NK = np.full((self._rows, self.schema_.top_k), self.schema_.experts, np.int64)
            found.append(ids_NK)
        return found

    def predict_trace(self, trace: Trace, layer: int, rows_P: np.ndarray, first_P: np.ndarray) -> np.ndarray:
        self.check(trace)
        return self._combine(layer, self.parent_ids(trace, layer, rows_P, first_P))

    def parent_ids(self, trace: Trace, layer: int, rows_P: np.ndarray, first_P: np.ndarray) -> list[np.ndarray]:
        """int64 [P, K] of each parent of `layer`, as the events of a batch-1 trace show them."""
        found = []
        for at, ago in self._parents(layer):
            ids_PK = known_or_last(trace.expert_ids[rows_P, at], self.schema_.experts)
            if ago or at > layer:  # what the pass before showed
                ids_PK = np.roll(ids_PK, 1, axis=0)
                ids_PK[first_P] = self.schema_.experts
            found.append(ids_PK)
        return found

    def _parents(self, layer: int) -> list[Parent]:
        raise NotImplementedError

    def _combine(self, layer: int, ids: list[np.ndarray]) -> np.ndarray:
        """float32 [N, H, E] of the parents' ids int64 [N, K]; row n from row n alone, bit for bit."""
        raise NotImplementedError


def known_or_last(experts_NK: np.ndarray, experts: int) -> np.ndarray:
    """int64 [N, K]: the ids, with E for those outside 0..E-1."""
    ids_NK = experts_NK.astype(np.int64)
    return np.where((ids_NK >= 0) & (ids_NK < experts), ids_NK, experts)


def real_rows(trace: Trace) -> np.ndarray:
    """int64: rows that are tokens, not padding."""
    return np.arange(trace.tokens) if trace.phase is None else np.flatnonzero(trace.phase != PADDING)


def successors(trace: Trace) -> tuple[np.ndarray, np.ndarray]:
    """Rows of tokens that have a next token in their sequence, and the rows of those: int64 both."""
    real = real_rows(trace)
    sequence = sequence_of(trace, real)
    follows = sequence[1:] == sequence[:-1]
    return real[:-1][follows], real[1:][follows]


def sequence_of(trace: Trace, rows: np.ndarray) -> np.ndarray:
    """int64: the sequence of each row."""
    return np.searchsorted(trace.seq_offsets, rows, side="right") - 1


def pass_of(trace: Trace, rows_P: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of tokens, and for each the index in `rows_P` (one row a pass) of its pass: int64 both."""
    real = real_rows(trace)
    of_rows = _pass_key(trace, rows_P)
    order = np.argsort(of_rows, kind="stable")
    at = np.searchsorted(of_rows[order], _pass_key(trace, real))
    return real, order[at]


def _pass_key(trace: Trace, rows: np.ndarray) -> np.ndarray:
    return sequence_of(trace, rows) << 32 | trace.passes[rows].astype(np.int64)


def member_chunks(ids_NK: np.ndarray, experts: int) -> Iterator[tuple[slice, np.ndarray]]:
    """(rows, float32 [rows, E] of 0 and 1: routed or not) chunk by chunk."""
    for start in range(0, len(ids_NK), CHUNK):
        ids = known_or_last(ids_NK[start : start + CHUNK], experts)
        member = np.zeros((len(ids), experts + 1), np.float32)
        np.put_along_axis(member, ids, np.float32(1), axis=1)
        yield slice(start, start + len(ids)), np.ascontiguousarray(member[:, :experts])


def joint_counts(before_NK: np.ndarray, after_NK: np.ndarray, experts: int) -> tuple[np.ndarray, np.ndarray]:
    """float64 [E, E] rows that routed a before and b after, and [E] rows that routed a before and anything after: exact."""
    joint_EE, seen_E = np.zeros((experts, experts)), np.zeros(experts)
    for (_, before), (_, after) in zip(
        member_chunks(before_NK, experts), member_chunks(after_NK, experts), strict=True
    ):
        joint_EE += before.T @ after
        seen_E += before[after.any(1)].sum(0, dtype=np.float64)
    return joint_EE, seen_E


def conditional(before_NK: np.ndarray, after_NK: np.ndarray, popular_E: np.ndarray, smoothing: float) -> np.ndarray:
    """float64 [E, E]: P(b after | a before), shrunk towards the popularity of b as if `smoothing` more rows showed it."""
    joint_EE, seen_E = joint_counts(before_NK, after_NK, len(popular_E))
    return (joint_EE + smoothing * popular_E.astype(np.float64)) / np.maximum(seen_E + smoothing, 1e-12)[:, None]


def summed(table_EE: np.ndarray, ids_NK: np.ndarray) -> np.ndarray:
    """float32 [N, E]: the table's rows of each row's K experts, added in their order."""
    total_NE: np.ndarray = np.add.reduce(table_EE[ids_NK], axis=1)
    return total_NE
