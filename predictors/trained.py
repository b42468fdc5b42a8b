"""What the predictors trained by gradient descent share: a schedule, its checks, the learning curve."""

from typing import Any

from rgpu.errors import InputError
from rgpu.predictors.base import BasePredictor
from rgpu.predictors.descent import Schedule
from rgpu.predictors.ranges import check_number


class Trained(BasePredictor):
    """Mixed in before the kind of predictor. `curve_` after fit: one row an epoch (`descent.descend`).

    The fields of `schedule` and `validation`, the share of documents held out for choices, are constructor parameters.
    """

    schedule: Schedule
    validation: float
    curve_: list[dict[str, Any]]

    def _check_parameters(self) -> None:
        super()._check_parameters()
        self.schedule.check(self.name)
        check_number(self.name, "validation", self.validation, 0, 1, above=True, below=True)

    def _at_least_one(self, *names: str) -> None:
        """`InputError` for the first of these constructor parameters below 1."""
        for name in names:
            if getattr(self, name) < 1:
                raise InputError(
                    f"predictor {self.name}: got {name} {getattr(self, name)}; expected 1 or more; set predictor.{name}"
                )

    def __getattr__(self, name: str) -> Any:
        """Fields of the schedule read as the constructor parameters that they are."""
        if name in Schedule.__dataclass_fields__ and "schedule" in self.__dict__:
            return getattr(self.schedule, name)
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
