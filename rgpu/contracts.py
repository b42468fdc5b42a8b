"""Contracts without torch: what a predictor and a planner give the controller, and what moves an expert's bytes."""

from dataclasses import dataclass
from typing import Protocol

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


class Planner(Protocol):
    """Turns a forecast into ordered loads. `resident_LE` bool: what is (logically) resident now."""

    def plan(self, forecast: Forecast, resident_LE: np.ndarray) -> list[ExpertKey]: ...


class TransferEngine(Protocol):
    """Copies experts into slots in the order they were submitted; `wait` returns once that slot's last copy is complete.

    A slot's address is its pool and its row there (staging rows come last)."""

    def submit(self, key: ExpertKey, pool: int, slot: int) -> None: ...

    def wait(self, pool: int, slot: int) -> None: ...

    def close(self) -> None: ...
