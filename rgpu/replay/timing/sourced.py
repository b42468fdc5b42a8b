"""Numbers that say where they come from: `{value: 25.0, source: "..."}` in yaml, checked with one-line errors."""

from collections.abc import Mapping
from typing import Any

from rgpu.errors import InputError

# The largest value by how a name ends; what is beyond it is a wrong unit, and the clock's whole picoseconds would overflow.
LIMITS = {"_gb_per_s": 1e6, "_tflops": 1e6, "_gflops": 1e9, "_us": 1e6, "_kib": 1e6, "_gb": 1e6}
LIMIT = 1e15  # bytes, parameters and operations


def numbers(
    data: Mapping[str, Any], required: tuple[str, ...], optional: tuple[str, ...], what: str
) -> tuple[dict[str, float], dict[str, str]]:
    """(values, sources) of the named entries. Missing, unknown, negative, not a number, too large, without a source:
    `InputError`."""
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
        limit = next((most for end, most in LIMITS.items() if name.endswith(end)), LIMIT)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= limit:
            raise InputError(f"{what}: got {name}={value!r}; expected a number from 0 to {limit:,.0f}")
        values[name], sources[name] = float(value), str(entry["source"])
    return values, sources
