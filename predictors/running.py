"""What has been routed in the sequence so far, as whole numbers: sums that come out alike in any order, live and in replay.

Legend: P passes, L MoE layers, E experts, K top-k, M things compared with the running sequence.
"""

import numpy as np

from rgpu.predictors.base import BasePredictor, speaking_rows
from rgpu.predictors.routed import known_or_last, pass_of, sequence_of
from rgpu.traces.trace import PADDING, Trace
from rgpu.types import RoutingEvent

UNIT = 2.0**20  # what 1 is in a table of whole numbers


class RunningPredictor(BasePredictor):
    """Adds up what every token of the sequence routed, prompts' too; sequences of a batch are added up together."""

    def reset(self) -> None:
        super().reset()
        self._rows = 0

    def observe(self, event: RoutingEvent) -> None:
        super().observe(event)
        self._rows = min(1, len(speaking_rows(event.phase_T, len(event.experts_TK))))
        experts_TK = event.experts_TK if event.phase_T is None else event.experts_TK[event.phase_T != PADDING]
        self._add(event.layer, known_or_last(experts_TK, self.schema_.experts))

    def _add(self, layer: int, ids_TK: np.ndarray) -> None:
        """Take note of the real rows of one event; an id of E is not known."""
        raise NotImplementedError


class Matched(RunningPredictor):
    """Scores of M candidates, each a sum over the routed experts of int64 `gain_LEM` (row E is zero).

    Subclasses give `_mix(layer, score_PM) -> probs_PHE`, row by row.
    """

    def reset(self) -> None:
        super().reset()
        self._score_M = np.zeros(self.tensors_["gain_LEM"].shape[2], np.int64) if hasattr(self, "tensors_") else None
        self._seen: tuple[Trace, np.ndarray, np.ndarray] | None = None

    def _add(self, layer: int, ids_TK: np.ndarray) -> None:
        self._score_M = self._score_M + self.tensors_["gain_LEM"][layer][ids_TK.ravel()].sum(0)

    def _score(self, layer: int) -> np.ndarray:
        assert self._score_M is not None
        return self._mix(layer, np.repeat(self._score_M[None], self._rows, axis=0))

    def predict_trace(self, trace: Trace, layer: int, rows_P: np.ndarray, first_P: np.ndarray) -> np.ndarray:
        self.check(trace)
        if self._seen is None or self._seen[0] is not trace or self._seen[1].shape[1] != len(rows_P):
            gain_LPM = np.stack([self._gains(trace, at, rows_P) for at in range(trace.layers)])
            np.cumsum(gain_LPM, axis=0, out=gain_LPM)  # now of this pass up to each layer
            self._seen = trace, gain_LPM, before_pass(gain_LPM[-1], first_P)
        _, upto_LPM, before_PM = self._seen
        return self._mix(layer, before_PM + upto_LPM[layer])

    def _gains(self, trace: Trace, layer: int, rows_P: np.ndarray) -> np.ndarray:
        """int64 [P, M]: what each pass adds at `layer`."""
        rows, at = pass_of(trace, rows_P)
        table_EM = self.tensors_["gain_LEM"][layer]
        ids_NK = known_or_last(trace.expert_ids[rows, layer], self.schema_.experts)
        gain_PM = np.zeros((len(rows_P), table_EM.shape[1]), np.int64)
        for k in range(ids_NK.shape[1]):
            np.add.at(gain_PM, at, table_EM[ids_NK[:, k]])
        return gain_PM

    def _mix(self, layer: int, score_PM: np.ndarray) -> np.ndarray:
        raise NotImplementedError


def before_pass(made_P: np.ndarray, first_P: np.ndarray) -> np.ndarray:
    """What passes of the same sequence made before each pass: int64, the shape of `made_P` [P, ...]."""
    total_P = np.cumsum(made_P, axis=0) - made_P
    start_P = np.maximum.accumulate(np.where(first_P, np.arange(len(first_P)), 0))
    before_P: np.ndarray = total_P - total_P[start_P]
    return before_P


def map_counts(trace: Trace) -> tuple[np.ndarray, np.ndarray]:
    """Activation maps: int64 [S, L, E] tokens of each sequence that used each expert, and [S] its tokens."""
    experts = trace.header.num_experts
    rows = np.arange(trace.tokens) if trace.phase is None else np.flatnonzero(trace.phase != PADDING)
    sequence = sequence_of(trace, rows)
    count_SLE = np.zeros((trace.sequences, trace.layers, experts + 1), np.int64)
    for layer in range(trace.layers):
        ids_NK = known_or_last(trace.expert_ids[rows, layer], experts)
        code = (sequence[:, None] * (experts + 1) + ids_NK).ravel()
        count_SLE[:, layer] = np.bincount(code, minlength=trace.sequences * (experts + 1)).reshape(-1, experts + 1)
    return count_SLE[:, :, :experts], np.bincount(sequence, minlength=trace.sequences)
