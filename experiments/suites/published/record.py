"""What a recomputed figure says of itself, and the status that its own numbers give it.

Criteria are of three kinds. `shape`: an ordering, a zero, a rise or fall that the publication reports. `value`: a published
number met within a stated tolerance. `note`: something of ours beside it, which decides nothing. On one trace
    not reproduced   a shape does not hold (said as such: a figure that fails is not one that could not be tested)
    shape only       every shape holds; no published number is met, or none can be compared
    reproduced       every shape and every value holds
    not testable     something the figure needs is not there
Over traces the figure fails if it fails on any recorded one, and is reproduced if shapes hold on all of them and values on at
least one; what is said to be possible needs one trace only. Calibrated synthetic traces are judged too, but count only where
no recorded trace can be.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

REPRODUCED, SHAPE_ONLY, NOT_REPRODUCED, NOT_TESTABLE = "reproduced", "shape only", "not reproduced", "not testable"
STATUSES = (REPRODUCED, SHAPE_ONLY, NOT_REPRODUCED, NOT_TESTABLE)


@dataclass(frozen=True, slots=True)
class About:
    """`figure`: the drawing (a module of experiments/figures); `same` and `differs`: against the publication.
    `exists`: it says that something can happen, so one recorded trace where it does is enough."""

    id: str
    figure: str
    title: str
    paper: str
    same: str
    differs: str
    exists: bool = False


@dataclass(frozen=True, slots=True)
class Criterion:
    """One thing asked of the numbers. `measured` is what decided it, `published` what it is held against."""

    text: str
    holds: bool
    measured: Any
    published: Any = None
    kind: str = "shape"

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("kind", "text", "holds", "measured", "published")}


class NotTestableError(Exception):
    """Raised by a figure's computation where a trace or a machine lacks what it needs; says what."""


def shape(text: str, holds: Any, measured: Any, published: Any = None) -> Criterion:
    return Criterion(text, bool(holds), rounded(measured), rounded(published))


def note(text: str, holds: Any, measured: Any) -> Criterion:
    return Criterion(text, bool(holds), rounded(measured), None, "note")


def near(text: str, measured: float, published: float, tolerance: float) -> Criterion:
    """A value criterion: within `tolerance` of the published number."""
    said = f"{text} within {tolerance:g} of {published:.4g}"
    return Criterion(said, abs(measured - published) <= tolerance, rounded(measured), rounded(published), "value")


def status_of(criteria: list[Criterion]) -> str:
    """The status on one trace."""
    if not any(c.kind != "note" for c in criteria):
        return NOT_TESTABLE
    if not all(c.holds for c in criteria if c.kind == "shape"):
        return NOT_REPRODUCED
    values = [c.holds for c in criteria if c.kind == "value"]
    return REPRODUCED if values and all(values) else SHAPE_ONLY


def overall(by_trace: Mapping[str, str], synthetic: set[str], exists: bool = False) -> str:
    """The status over traces; `synthetic` names those that are not recorded; `exists` as in `About`."""
    tested = {t: s for t, s in by_trace.items() if s != NOT_TESTABLE}
    recorded = [s for t, s in tested.items() if t not in synthetic]
    if not tested:
        return NOT_TESTABLE
    if not recorded:  # a value met on made-up routing proves nothing
        return NOT_REPRODUCED if NOT_REPRODUCED in tested.values() else SHAPE_ONLY
    if exists and set(recorded) > {NOT_REPRODUCED}:
        recorded = [s for s in recorded if s != NOT_REPRODUCED]
    if NOT_REPRODUCED in recorded:
        return NOT_REPRODUCED
    return REPRODUCED if REPRODUCED in recorded else SHAPE_ONLY


def rounded(value: Any) -> Any:
    """Numbers for people, inside dicts and lists too."""
    if isinstance(value, Mapping):
        return {str(k): rounded(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(v) for v in value]
    return round(float(value), 5) if isinstance(value, float) or hasattr(value, "dtype") else value
