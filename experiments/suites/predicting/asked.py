"""What the suite of predictors is asked for, checked before anything runs: its parts, families and links."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rgpu.errors import InputError
from rgpu.experiments.study.choosing import GRIDS
from rgpu.experiments.suites.predicting.fitting import names

TIMED, LIVE, TRACE, CHOICES = PARTS = ("prefetching", "live", "trace", "choices")  # that a run may be asked for alone
NEEDED = ("gate_lookahead", "linear")  # by the verdict on prefetching
LINKS = (0.5, 0.1)  # GB/s, emulated


def check(asked: Mapping[str, Any]) -> list[str]:
    """The families of a run. `InputError` where `asked` (cfg.predicting) names a part, family or link that there is not, or
    families that the part has no use for."""
    only, given = asked.get("only"), asked.get("families")
    if only not in (None, *PARTS):
        raise InputError(
            f"predicting.only: got {only!r}; expected null, {', '.join(PARTS)}; set predicting.only={TIMED}"
        )
    if given is not None and not _is_list(given):
        raise InputError(f"predicting.families: got {given!r}; expected a list; set predicting.families=[{given}]")
    everything = tuple(GRIDS) if only == CHOICES else tuple(names())
    families = [str(name) for name in (given or everything)]
    if unknown := sorted(set(families) - set(names())):
        raise InputError(
            f"predicting.families: got {', '.join(unknown)}; expected some of conf/predictor; choose others"
        )
    if len(set(families)) < len(families):
        raise InputError(f"predicting.families: got {', '.join(families)}; expected each once; name it once")
    if only == CHOICES:
        if not set(families) & set(GRIDS):
            raise InputError(
                f"predicting.families: got {', '.join(families)}; expected one with a grid; name some of {', '.join(GRIDS)}"
            )
    elif only != TRACE and not set(families) >= set(NEEDED):
        raise InputError(f"predicting.families: got {', '.join(families)}; expected {' and '.join(NEEDED)}; add them")
    if only == TRACE and asked.get("trace") is None:
        raise InputError(
            "predicting.trace: got null; expected a trace, whose routed ids are enough; set predicting.trace=PATH"
        )
    if only in (None, LIVE):
        speeds_of(asked)
        shares_of(asked, ())
        repeats_of(asked, 1)
    return families


def speeds_of(asked: Mapping[str, Any]) -> list[float]:
    """GB/s of the emulated links: numbers above 0, each once (a link twice would count as two repeats)."""
    given = asked.get("links")
    if given is None:
        return list(LINKS)
    fix = "expected GB/s above 0, a list with each once; set predicting.links=[0.5,0.1]"
    if not _is_list(given):
        raise InputError(f"predicting.links: got {given!r}; {fix}")
    speeds = [float(v) if type(v) in (int, float) else math.nan for v in given]
    if any(not 0 < v < math.inf for v in speeds) or len(set(speeds)) < len(speeds):
        raise InputError(f"predicting.links: got {list(given)}; {fix}")
    return speeds


def shares_of(asked: Mapping[str, Any], otherwise: tuple[float, ...]) -> tuple[float, ...]:
    """Shares of a layer's experts that have a slot in live runs."""
    given = asked.get("shares")
    if given is None:
        return otherwise
    fix = "expected different shares of the experts, above 0 and at most 1; set predicting.shares=[0.25,0.5]"
    if not _is_list(given):
        raise InputError(f"predicting.shares: got {given!r}; {fix}")
    shares = tuple(float(v) if type(v) in (int, float) else math.nan for v in given)
    if any(not 0 < v <= 1 for v in shares) or not shares or len(set(shares)) < len(shares):
        raise InputError(f"predicting.shares: got {list(given)}; {fix}")
    return shares


def repeats_of(asked: Mapping[str, Any], otherwise: int) -> int:
    """How often every live run is made."""
    repeats = otherwise if asked.get("repeats") is None else asked["repeats"]
    if type(repeats) is not int or repeats < 1:
        raise InputError(f"predicting.repeats: got {repeats!r}; expected a number from 1; set predicting.repeats=2")
    return repeats


def _is_list(given: Any) -> bool:
    return isinstance(given, Sequence) and not isinstance(given, str)
