"""Numbers that say where they come from: `{value: 25.0, source: "..."}` in yaml, checked with one-line errors."""

import math
from collections.abc import Mapping
from typing import Any

from rgpu.errors import InputError


def numbers(
    data: Mapping[str, Any], required: tuple[str, ...], optional: tuple[str, ...], what: str
) -> tuple[dict[str, float], dict[str, str]]:
    """(values, sources) of the named entries. Missing, unknown, negative, not a number, without a source: `InputError`."""
    known = (*required, *optional)
    if unknown := sorted(set(data) - set(known)):
        raise InputError(f"{what}: got the entry '{unknown[0]}'; expected {', '.join(known)}")
    if missing := [name for name in required if name not in data]:
        raise InputError(f"{what}: got no {missing[0]}; expected {missing[0]}: {{value: ..., source: ...}}")
    values: dict[str, float] = {}
    sources: dict[str, str] = {}
    for name in known:
        entry = data.get(name)
        if entry is None:
            continue
        if (
            not isinstance(entry, Mapping)
            or set(entry) != {"value", "source"}
            or not str(entry["source"] or "").strip()
        ):
            raise InputError(f"{what}: got {name}={entry!r}; expected {{value: ..., source: where it comes from}}")
        value = entry["value"]
        if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value) or value < 0:
            raise InputError(f"{what}: got {name}={value!r}; expected a number from 0")
        values[name], sources[name] = float(value), str(entry["source"])
    return values, sources
