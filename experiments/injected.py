"""The kernels that predictors are given: they compute by contract and import none, so what runs them hands one over."""

from typing import TypeVar

from rgpu.kernels.linear_forecast import linear_forecast
from rgpu.predictors.hidden import HiddenPredictor

P = TypeVar("P")


def with_kernel(predictor: P) -> P:
    """The same predictor, with the compiled map where it is of linear form: its forecasts keep their bits."""
    if isinstance(predictor, HiddenPredictor):
        predictor.use(linear_forecast)
    return predictor
