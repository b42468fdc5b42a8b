"""The kernels that predictors are given: they compute by contract and import none, so what runs them hands one over."""

from typing import TypeVar

from rgpu.contracts import LinearForecast
from rgpu.errors import InputError
from rgpu.kernels.linear_forecast import linear_forecast
from rgpu.predictors.hidden import HiddenPredictor
from rgpu.predictors.history import History

P = TypeVar("P")


PLACES = ("host", "device")


def with_kernel(predictor: P, forward: LinearForecast = linear_forecast) -> P:
    """The same predictor, with a kernel for its maps where it is of linear form: its forecasts keep their bits."""
    if isinstance(predictor, HiddenPredictor | History):
        predictor.use(forward)
    for member in getattr(predictor, "members", ()):  # an ensemble's, and those of ensembles among them
        with_kernel(member, forward)
    return predictor


def placed(predictor: P, place: str, device: str, capped: bool) -> P:
    """`with_kernel` for a live run that forecasts on its "host" or on its "device"; `capped`: memory is laid out."""
    if place not in PLACES:
        raise InputError(f"forecast: got {place!r}; expected {' or '.join(PLACES)}")
    if place == "host":
        return with_kernel(predictor)
    if device != "cuda" or capped or not isinstance(predictor, HiddenPredictor):
        got = "no predictor" if predictor is None else f"predictor={getattr(predictor, 'name', predictor)}"
        raise InputError(
            f"forecast: got device with device={device}, {got}, {'a cap' if capped else 'no cap'} on memory; expected "
            "device=cuda, a predictor that reads hidden states, such as linear, and no cap, which would not count its maps; "
            "set forecast=host"
        )
    from rgpu.kernels.device_forecast import DeviceForecast

    return with_kernel(predictor, DeviceForecast(device))
