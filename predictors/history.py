"""Predictors that read the whole stack's routing token by token and keep a state: what they share at inference.

A token becomes a vector u: a table row an expert, summed over its routed experts in every layer, with, where asked for, a
row of its token id and a map of the last layer's router input. A state is computed from the vectors of the tokens before
(`_states`); it forecasts the whole stack of the token that comes and of the one after it. What this token has shown so far
enters beside it: the sum of its vector up to this layer, and this layer's own experts. All maps are linear and sums have
a fixed order. A prompt's rows are tokens one after the other; several decode rows of an event are averaged into one.

Legend: T rows of a pass, N rows, P passes, L MoE layers, E experts, H rows of a forecast, D hidden size, C size of a token's
vector, F size of the state, M = H * E outputs.
"""

from collections.abc import Callable
from typing import Self

import numpy as np

from rgpu.contracts import LinearForecast
from rgpu.errors import InputError
from rgpu.predictors.base import BasePredictor, speaking_rows
from rgpu.predictors.hidden import linear_reference, threshold_chances
from rgpu.predictors.previous_token import membership
from rgpu.traces.trace import DECODE, PADDING, Trace
from rgpu.types import RoutingEvent

INPUTS = ("routing", "hidden", "tokens")
ARRAYS = {"hidden": "hidden", "tokens": "token_ids"}
Push = Callable[[np.ndarray], np.ndarray]  # a token's vector [C] -> the state after it [F]


class History(BasePredictor):
    """Subclasses give `_begin() -> Push`, which starts a sequence; `inputs` is `routing`, `hidden`, `tokens` or several
    of them joined by `+`; `_state_size()` is F."""

    inputs: str
    _late_NC: np.ndarray | None
    forward: LinearForecast = staticmethod(linear_reference)

    def use(self, forward: LinearForecast) -> Self:
        """Apply maps by another implementation of the contract; forecasts do not change. Not saved, kept by `fit`."""
        self.forward = forward
        return self

    @property
    def parts(self) -> list[str]:
        return self.inputs.split("+")

    def _needs(self) -> tuple[str, ...]:
        return tuple(ARRAYS[part] for part in self.parts if part in ARRAYS)

    def _check_parameters(self) -> None:
        super()._check_parameters()
        if not set(self.parts) <= set(INPUTS) or len(set(self.parts)) < len(self.parts):
            raise InputError(
                f"predictor {self.name}: got inputs {self.inputs!r}; expected one or more of {', '.join(INPUTS)}, "
                "joined by +; set predictor.inputs"
            )

    def _begin(self) -> Push:
        raise NotImplementedError

    def _state_size(self) -> int:
        raise NotImplementedError

    # -- event by event

    def reset(self) -> None:
        super().reset()
        self._memo: tuple[np.ndarray, np.ndarray] | None = None
        self._vectors_NC, self._late_NC = np.zeros((0, 0), np.float32), None
        if hasattr(self, "schema_"):
            self._push, self._state_F = self._begin(), np.zeros(self._state_size(), np.float32)

    def _renew(self) -> None:
        super()._renew()
        self._heads: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def observe(self, event: RoutingEvent) -> None:
        self._fitted()
        before = self._layer
        super().observe(event)
        self._check_event(event)
        new = event.layer <= before or before < 0  # a pass, which may lack its first layers
        if new:  # what the one before showed becomes history
            self._remember()
        rows, mean = _history_rows(event.phase_T, len(event.experts_TK))
        member_NE = membership(event.experts_TK[rows], self.schema_.experts).astype(np.float32)
        token_N = None if event.token_T is None else event.token_T[rows]
        hidden_ND = None if event.hidden_TD is None else event.hidden_TD[rows]
        parts_NC = self._shown(event.layer, member_NE, token_N, hidden_ND)
        if mean:
            parts_NC, member_NE = _mean(parts_NC), _mean(member_NE)
        self._vectors_NC = parts_NC if new or len(self._vectors_NC) != len(parts_NC) else self._vectors_NC + parts_NC
        self._late_NC = self._last(event.layer, hidden_ND, mean)
        speaking = speaking_rows(event.phase_T, len(event.experts_TK))
        self._now_NE = member_NE[-1:] if len(speaking) else member_NE[:0]

    def _remember(self) -> None:
        """The tokens of the last pass enter the state."""
        whole_NC = self._vectors_NC if self._late_NC is None else self._vectors_NC + self._late_NC
        for vector_C in whole_NC:
            self._state_F = self._push(vector_C)
        self._vectors_NC = self._vectors_NC[:0]

    def _score(self, layer: int) -> np.ndarray:
        rows = len(self._now_NE)
        return self._forecast(
            layer, np.repeat(self._state_F[None], rows, 0), self._vectors_NC[-1:][:rows], self._now_NE
        )

    def _check_event(self, event: RoutingEvent) -> None:
        if "hidden" in self.parts and (event.hidden_TD is None or event.hidden_TD.shape[1] != self.schema_.hidden):
            got = "no hidden state" if event.hidden_TD is None else f"hidden states of size {event.hidden_TD.shape[1]}"
            raise InputError(
                f"predictor {self.name}: got an event with {got}; expected size {self.schema_.hidden}; "
                "record with rgpu record hidden=true or fit the predictor on this model"
            )
        if "tokens" in self.parts and event.token_T is None:
            raise InputError(
                f"predictor {self.name}: got an event with no token ids; expected one a row; record them or set inputs"
            )

    # -- a trace at once

    def predict_trace(self, trace: Trace, layer: int, rows_P: np.ndarray, first_P: np.ndarray) -> np.ndarray:
        self.check(trace)
        states_NF = self._trace_states(trace)
        shown_PC = self._trace_shown(trace, rows_P, layer + 1)
        now_PE = membership(trace.expert_ids[rows_P, layer], self.schema_.experts).astype(np.float32)
        return self._forecast(layer, states_NF[rows_P], shown_PC, now_PE)

    def _trace_states(self, trace: Trace) -> np.ndarray:
        """The state before the pass of each row, float32 [N, F]; kept until `reset` or another trace."""
        if self._memo is not None and self._memo[0] is trace.expert_ids:
            return self._memo[1]
        sequence_N = np.repeat(np.arange(trace.sequences), np.diff(trace.seq_offsets))
        real = np.arange(trace.tokens) if trace.phase is None else np.flatnonzero(trace.phase != PADDING)
        order = real[np.lexsort((real, trace.passes[real], sequence_N[real]))]
        vectors_NC = self._trace_shown(trace, order, trace.layers)
        if "hidden" in self.parts:
            last = trace.layers - 1
            late_NC = self._last(last, trace.require("hidden", f"predictor {self.name}")[order, last], False)
            vectors_NC = vectors_NC + late_NC
        states_NF = np.zeros((trace.tokens, self._state_size()), np.float32)
        state_F = before_F = states_NF[0].copy()
        push, previous = self._begin(), -1
        for row, vector_C in zip(order, vectors_NC, strict=True):
            if previous < 0 or sequence_N[row] != sequence_N[previous]:
                push, state_F, before_F = self._begin(), np.zeros_like(state_F), np.zeros_like(state_F)
            elif trace.passes[row] != trace.passes[previous]:
                before_F = state_F
            states_NF[row] = before_F
            state_F, previous = push(vector_C), row
        self._memo = trace.expert_ids, states_NF
        return states_NF

    def _trace_shown(self, trace: Trace, rows: np.ndarray, layers: int) -> np.ndarray:
        """Vectors of rows up to a layer, summed layer after layer, [N, C]."""
        total_NC: np.ndarray | None = None
        tokens_N = None if trace.token_ids is None else trace.token_ids[rows]
        for layer in range(layers):
            member_NE = membership(trace.expert_ids[rows, layer], self.schema_.experts).astype(np.float32)
            part_NC = self._shown(layer, member_NE, tokens_N, None)
            total_NC = part_NC if total_NC is None else total_NC + part_NC
        assert total_NC is not None
        return total_NC

    # -- arithmetic of both

    def _shown(
        self, layer: int, member_NE: np.ndarray, token_N: np.ndarray | None, hidden_ND: np.ndarray | None
    ) -> np.ndarray:
        """What one layer adds to the vector of each row, [N, C]; layer 0 brings the bias and the token's row."""
        bias_C = self.tensors_["bias_C"]
        part_NC = np.zeros((len(member_NE), len(bias_C)), np.float32)
        if "routing" in self.parts:
            part_NC = self.forward(member_NE, self.tensors_["routed_LEC"][layer], np.zeros_like(bias_C))
        if layer:
            return part_NC
        part_NC = part_NC + bias_C
        if "tokens" in self.parts and token_N is not None:
            part_NC = part_NC + self.tensors_["token_VC"][vocabulary_rows(self.tensors_["vocabulary_V"], token_N)]
        return part_NC

    def _last(self, layer: int, hidden_ND: np.ndarray | None, mean: bool) -> np.ndarray | None:
        """What the last layer's router input adds, once the pass is over, [N, C]."""
        if "hidden" not in self.parts or layer + 1 < self.schema_.layers or hidden_ND is None:
            return None
        x_ND = (np.asarray(hidden_ND, np.float32) - self.tensors_["mean_D"]) * self.tensors_["inverse_D"]
        part_NC = self.forward(x_ND, self.tensors_["hidden_DC"], np.zeros_like(self.tensors_["bias_C"]))
        return _mean(part_NC) if mean else part_NC

    def _forecast(self, layer: int, state_NF: np.ndarray, shown_NC: np.ndarray, now_NE: np.ndarray) -> np.ndarray:
        weight_XM, bias_M = self._head(layer)
        logits_NM = self.forward(np.concatenate([state_NF, shown_NC, now_NE], 1), weight_XM, bias_M)
        own = self.schema_
        chance_NHE = threshold_chances(logits_NM.reshape(len(now_NE), -1 if len(now_NE) else 0, own.experts), own.top_k)
        total_NH1 = np.maximum(np.add.reduce(chance_NHE, axis=-1, keepdims=True), np.float32(own.top_k))
        return chance_NHE * (np.float32(own.top_k) / total_NH1)  # where little is known all lie near the threshold

    def _head(self, layer: int) -> tuple[np.ndarray, np.ndarray]:
        """One map of state, vector so far and this layer's experts, [F + C + E, M], and its bias; temperatures folded in."""
        if layer not in self._heads:
            experts, tensors = self.schema_.experts, self.tensors_
            later = len(self.targets(layer)[1]) - 1
            columns = np.concatenate([np.arange(h * experts, (h + 1) * experts) for h in [*range(later), self.horizon]])
            ahead_FM = tensors["ahead_FX"][:, (layer + 1) * experts : (layer + 1 + later) * experts]
            after_FE = tensors["after_FX"][:, layer * experts : (layer + 1) * experts]
            beside = [tensors["shown_LCM"][layer][:, columns], tensors["now_LEM"][layer][:, columns]]
            weight_XM = np.concatenate([np.concatenate([ahead_FM, after_FE], 1), *beside])
            scale_M = np.repeat(tensors["scale_LH"][layer, [*range(later), self.horizon]], experts)
            bias_M = tensors["bias_L1M"][layer, 0, columns]
            self._heads[layer] = np.ascontiguousarray(weight_XM * scale_M), np.ascontiguousarray(bias_M * scale_M)
        return self._heads[layer]


def vocabulary_rows(vocabulary_V: np.ndarray, token_N: np.ndarray) -> np.ndarray:
    """Rows of a token table; its last row is that of ids never seen."""
    at_N = np.searchsorted(vocabulary_V, token_N)
    known_N = vocabulary_V[np.minimum(at_N, len(vocabulary_V) - 1)] == token_N
    return np.where(known_N, at_N, len(vocabulary_V))


def _history_rows(phase_T: np.ndarray | None, rows: int) -> tuple[np.ndarray, bool]:
    """Rows of an event that become history, and whether they are averaged: decode rows, else all that are not padding."""
    if phase_T is None:
        return np.arange(rows), False
    decode = np.flatnonzero(phase_T == DECODE)
    return (decode, len(decode) > 1) if len(decode) else (np.flatnonzero(phase_T != PADDING), False)


def _mean(rows_NC: np.ndarray) -> np.ndarray:
    return np.add.reduce(rows_NC, axis=0, dtype=np.float32)[None] / np.float32(len(rows_NC))
