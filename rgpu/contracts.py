"""Contracts without torch: what a predictor and a planner give the controller, and what moves an expert's bytes."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from rgpu.types import ExpertKey, RoutingEvent


@dataclass(frozen=True, slots=True)
class Forecast:
    """Probability that each expert will be routed, made right after one event.

    Row h speaks of MoE layer `layers[h]`, `tokens_ahead[h]` passes later (0: this forward pass, 1: the next).
    `probs_HE` float32 in [0, 1]: the chance that the expert is among the top-k there (rows sum to about k).
    """

    layers: np.ndarray
    tokens_ahead: np.ndarray
    probs_HE: np.ndarray


class Predictor(Protocol):
    """Sees events in order and forecasts. `reset` forgets the sequence, never what was fitted."""

    name: str

    def reset(self) -> None: ...

    def observe(self, event: RoutingEvent) -> None: ...

    def predict(self) -> Forecast: ...


class LinearForecast(Protocol):
    """The linear map behind predictors of linear form: (`x_ND`, `weight_DM`, `bias_M`) -> float32 [N, M], `x @ weight + bias`.

    `x_ND` is rounded to float32, the others are contiguous float32. Each output is summed in float32 from 0 over
    d = 0, 1, ..., every product rounded before it is added, the bias last: implementations agree bit for bit, so that a
    forecast does not depend on which of them made it, nor a row on its company. With `tiny` above 0 the inputs of a row are
    first multiplied by 1 / sqrt(mean of their squares + tiny), the squares summed over d = 0, 1, ... in float64, the factor
    then rounded to float32.
    """

    def __call__(
        self, x_ND: np.ndarray, weight_DM: np.ndarray, bias_M: np.ndarray, tiny: float = 0.0, /
    ) -> np.ndarray: ...


class Planner(Protocol):
    """Turns a forecast into ordered loads. `resident_LE` bool: what is (logically) resident now.

    Never a resident or a key twice, nothing for an empty forecast, and the same loads for the same calls in the same order:
    a planner that keeps state is built anew for each run. One that learns from what was routed also has `observe(event)`,
    called with every event before its `plan`; one that has to know how much room there is has `told(slots, pool_of)`, called
    before all else with the slots of each pool and the pool of each MoE layer, and again when pools have changed their size.
    """

    def plan(self, forecast: Forecast, resident_LE: np.ndarray) -> list[ExpertKey]: ...


class TransferEngine(Protocol):
    """Copies experts into slots: those on demand in the order they were submitted, those `ahead` behind them. Into one slot
    only the last copy submitted counts. After `wait` that copy is complete for whatever is computed next. `cancel` drops it
    if it was ahead and has not begun; whether it did.

    A slot's address is its pool and its row there (staging rows come last)."""

    def submit(self, key: ExpertKey, pool: int, slot: int, ahead: bool = False) -> None: ...

    def cancel(self, pool: int, slot: int) -> bool: ...

    def wait(self, pool: int, slot: int) -> None: ...

    def close(self) -> None: ...


class ExpertCompute(Protocol):
    """Computes routed experts from the slots that hold them. An implementation is built from a `SlotLayout` and a `Gate`.

    `x_TD` activations; `slots_SB` uint8 [S, stride], every row one expert's buffer; `slot_TK` int32, the slot of each
    (token, expert) pair, -1 where the expert is not resident: such a pair adds nothing; `weight_TK` float32 router weights.
    -> [T, D] in the dtype of x: for every token the weighted sum of its resident experts, accumulated in float32 in the
    order of K, so that it never depends on which slot an expert sits in. Bad shapes, dtypes or slots: `InputError`.
    """

    def __call__(self, x_TD: Any, slots_SB: Any, slot_TK: Any, weight_TK: Any) -> Any: ...
