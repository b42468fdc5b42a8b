"""Predictors that apply one linear map a forecast row to the router's input, with sums in a fixed order.

Legend: N rows, D hidden size, L MoE layers, H rows of a forecast, E experts, K top-k, M = H * E outputs.
"""

from typing import Self

import numpy as np

from rgpu.contracts import LinearForecast
from rgpu.errors import InputError
from rgpu.predictors.base import BasePredictor, speaking_rows
from rgpu.predictors.room import map_bytes
from rgpu.traces.trace import Trace
from rgpu.types import RoutingEvent

ONE, HALF, FAR, HAIR = np.float32(1), np.float32(0.5), np.float32(80), np.float32(2**-12)
TIE = np.float32(2**-10)  # share of the slowly saturating term that keeps near-certain experts in order
BLOCK = 256  # rows of one block in `fixed_matmul`: a block's accumulator stays in cache


def fixed_matmul(x_ND: np.ndarray, w_DM: np.ndarray) -> np.ndarray:
    """float32 [N, M] `x @ w`, each output summed over d = 0, 1, ... in float32.

    BLAS chooses its order of summation by shape, thread count and processor; here one row alone and the same row in a
    batch give the same bits, on any machine, which is what lets a replay repeat a live run.
    """
    x_ND = np.asarray(x_ND, np.float32)
    rows, outputs = len(x_ND), w_DM.shape[1]
    if rows == 1 and outputs > 1:  # with one output numpy would sum in pairs
        return np.add.reduce(x_ND[0][:, None] * w_DM, axis=0)[None]
    y_NM = np.empty((rows, outputs), np.float32)
    for start in range(0, rows, BLOCK):
        x_DN = np.ascontiguousarray(x_ND[start : start + BLOCK].T)
        y_MN = np.zeros((outputs, x_DN.shape[1]), np.float32)
        product_MN = np.empty_like(y_MN)
        for x_N, w_M in zip(x_DN, w_DM, strict=True):
            np.multiply(w_M[:, None], x_N, out=product_MN)
            y_MN += product_MN
        y_NM[start : start + BLOCK] = y_MN.T
    return y_NM


def scaled(x_ND: np.ndarray, tiny: float) -> np.ndarray:
    """float32 [N, D]: rows of root mean square 1, squares summed in float64 over d = 0, 1, ..., as any machine does."""
    x_ND = np.asarray(x_ND, np.float32)
    square_ND = np.multiply(x_ND, x_ND, dtype=np.float64)
    mean_N = np.add.accumulate(square_ND, axis=1)[:, -1] / x_ND.shape[1]
    found: np.ndarray = x_ND * (1 / np.sqrt(mean_N + tiny)).astype(np.float32)[:, None]
    return found


def linear_reference(x_ND: np.ndarray, weight_DM: np.ndarray, bias_M: np.ndarray, tiny: float = 0.0) -> np.ndarray:
    """`LinearForecast` in numpy."""
    logits_NM: np.ndarray = fixed_matmul(scaled(x_ND, tiny) if tiny > 0 else x_ND, weight_DM)
    logits_NM += bias_M
    return logits_NM


def top_k_share(logits_NHE: np.ndarray, top_k: int) -> np.ndarray:
    """`top_k` times the softmax, at most 1: the chance of being among the top-k if shares of weight were chances.

    Above 1 the order of the shares is kept by staying a hair below 1 (at most 2**-12).
    """
    share_NHE = logits_NHE - np.maximum.reduce(
        logits_NHE, axis=-1, keepdims=True
    )  # in place from here on: a forecast is
    np.exp(share_NHE, out=share_NHE)  # small, so what it costs is the number of calls and of arrays
    share_NHE /= np.add.reduce(share_NHE, axis=-1, keepdims=True)
    ceiling_NHE = ONE - share_NHE
    ceiling_NHE *= HAIR
    np.subtract(ONE, ceiling_NHE, out=ceiling_NHE)
    share_NHE *= np.float32(top_k)
    return np.minimum(share_NHE, ceiling_NHE, out=share_NHE)


def threshold_chances(logits_NHE: np.ndarray, top_k: int) -> np.ndarray:
    """Sigmoid of the logit less the row's threshold, midway between K-th and (K+1)-th: rows sum to about K."""
    experts = logits_NHE.shape[-1]
    if top_k >= experts:
        return np.ones_like(logits_NHE)
    ranked_NHE = logits_NHE.copy()
    ranked_NHE.sort(-1)
    threshold = ranked_NHE[..., experts - top_k, None] + ranked_NHE[..., experts - top_k - 1, None]
    x_NHE = logits_NHE - threshold * HALF
    chance_NHE = np.negative(x_NHE)  # 1 / (1 + exp(-x)), in place as in `top_k_share`
    np.minimum(chance_NHE, FAR, out=chance_NHE)
    np.exp(chance_NHE, out=chance_NHE)
    chance_NHE += ONE
    np.divide(ONE, chance_NHE, out=chance_NHE)
    chance_NHE *= ONE - TIE
    order_NHE = np.abs(x_NHE)  # 0.5 + 0.5 * x / (1 + |x|)
    order_NHE += ONE
    x_NHE *= HALF
    x_NHE /= order_NHE
    x_NHE += HALF
    x_NHE *= TIE
    chance_NHE += x_NHE
    return chance_NHE


class HiddenPredictor(BasePredictor):
    """Subclasses give `_map(layer) -> (weight_DM, bias_M)` and `_activate(logits_NHE) -> probs_NHE`.

    The map is applied by `forward`, numpy unless `use` put a compiled one in its place: the same bits, several times as fast.
    """

    needs = ("hidden",)
    reads = "hidden state"  # what an event brings, in words
    tiny = 0.0  # above 0: the map is of inputs scaled to a root mean square of 1, this much added to the mean square
    forward: LinearForecast = staticmethod(linear_reference)

    def use(self, forward: LinearForecast) -> Self:
        """Apply the map by another implementation of the contract; forecasts do not change. Not saved, kept by `fit`."""
        self.forward = forward
        return self

    def reset(self) -> None:
        super().reset()
        self._hidden_ND = np.zeros((0, 0), np.float32)

    def _renew(self) -> None:
        super()._renew()
        self._maps: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def observe(self, event: RoutingEvent) -> None:
        super().observe(event)
        hidden_TD = self._brought(event)
        if hidden_TD is None or hidden_TD.shape[1] != self.schema_.hidden:
            got = f"no {self.reads}" if hidden_TD is None else f"{self.reads}s of size {hidden_TD.shape[1]}"
            raise InputError(
                f"predictor {self.name}: got an event with {got}; expected size {self.schema_.hidden}; "
                f"record with rgpu record {self.needs[0]}=true or fit the predictor on this model"
            )
        self._hidden_ND = hidden_TD[speaking_rows(event.phase_T, len(hidden_TD))]

    def _brought(self, event: RoutingEvent) -> np.ndarray | None:
        """What an event has of the states that are read, [T, D]."""
        return event.hidden_TD

    def _recorded(self, trace: Trace, layer: int, rows_P: np.ndarray) -> np.ndarray:
        """The same of a trace, [P, D]."""
        return trace.require("hidden", f"predictor {self.name}")[rows_P, layer]

    def _score(self, layer: int) -> np.ndarray:
        return self._score_hidden(layer, self._hidden_ND)

    def predict_trace(self, trace: Trace, layer: int, rows_P: np.ndarray, first_P: np.ndarray) -> np.ndarray:
        self.check(trace)
        return self._score_hidden(layer, self._recorded(trace, layer, rows_P))

    def _score_hidden(self, layer: int, hidden_ND: np.ndarray) -> np.ndarray:
        """float32 [N, H, E]. Row n depends on row n of the input alone, bit for bit."""
        weight_DM, bias_M = self._cached_map(layer)
        logits_NM = self.forward(hidden_ND, weight_DM, bias_M, self.tiny)
        return self._activate(logits_NM.reshape(len(logits_NM), bias_M.size // self.schema_.experts, -1))

    def work(self, layer: int) -> tuple[int, int] | None:
        """The map is read once and every weight is multiplied and added once."""
        weight_DM, bias_M = self._cached_map(layer)
        return weight_DM.nbytes + bias_M.nbytes, 2 * weight_DM.size

    def _derived_bytes(self) -> int:
        """The maps as they are applied."""
        own = self.schema_
        return map_bytes(own.layers, own.experts, self.horizon, own.hidden)

    def _cached_map(self, layer: int) -> tuple[np.ndarray, np.ndarray]:
        found = self._maps.get(layer)
        if found is None:
            weight_DM, bias_M = self._map(layer)
            found = np.ascontiguousarray(weight_DM, np.float32), np.ascontiguousarray(bias_M, np.float32)
            self._maps[layer] = found
        return found

    def _map(self, layer: int) -> tuple[np.ndarray, np.ndarray]:
        raise NotImplementedError

    def _activate(self, logits_NHE: np.ndarray) -> np.ndarray:
        raise NotImplementedError
