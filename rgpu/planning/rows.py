"""What planners share: which rows of a forecast they read and in which order, and the check of their parameters.

Legend: H rows of a forecast, E experts.
"""

from collections.abc import Iterator

import numpy as np

from rgpu.contracts import Forecast
from rgpu.errors import InputError


def nearest_rows(forecast: Forecast, horizon: int, next_token: bool = False) -> list[int]:
    """Rows of the next `horizon` MoE layers of this pass, nearest first; with `next_token` those of the next pass last."""
    now = np.flatnonzero(forecast.tokens_ahead == 0)
    rows = now[np.argsort(forecast.layers[now], kind="stable")][:horizon].tolist()
    return rows + np.flatnonzero(forecast.tokens_ahead == 1).tolist() if next_token else rows


def distances(forecast: Forecast, layers: int, horizon: int, next_token: bool = False) -> Iterator[tuple[int, int]]:
    """(row, MoE layers until its event) of `nearest_rows`; the same layer of the next pass is all `layers` away."""
    if not len(forecast.layers):
        return
    current = forecast.layers[forecast.tokens_ahead == 1]
    first = int(current[0]) if len(current) else int(forecast.layers.min()) - 1
    for row in nearest_rows(forecast, horizon, next_token):
        yield row, int(forecast.layers[row]) - first + layers * int(forecast.tokens_ahead[row])


def most_likely(probs_E: np.ndarray) -> np.ndarray:
    """Experts that may come at all, int64, most likely first, ties by lowest id."""
    order = np.argsort(-probs_E, kind="stable")
    return order[probs_E[order] > 0]


def check(planner: str, *limits: tuple[str, float, float, float]) -> None:
    """`InputError` where a parameter (name, value, least, most) is out of range."""
    for name, value, low, high in limits:
        if not low <= value <= high:
            expected = f"{low:g} or more" if high == np.inf else f"{low:g} to {high:g}"
            raise InputError(f"planner {planner}: got {name} {value}; expected {expected}; set planner.{name}")
