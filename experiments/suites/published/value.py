"""One published number and where it belongs."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Value:
    """One published number. `columns`: where it sits among the rows of the figure; `about`: model and setting."""

    figure: str
    metric: str
    value: float
    unit: str
    source: str
    about: str
    columns: dict[str, Any] = field(default_factory=dict)
