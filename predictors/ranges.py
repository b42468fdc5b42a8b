"""Parameters that must be numbers in a range: neither NaN nor infinite, whatever the range."""

import math

from rgpu.errors import InputError

SEEDS = 2**32  # what every generator used here takes


def check_number(
    who: str, name: str, value: float, low: float, high: float = math.inf, above: bool = False, below: bool = False
) -> None:
    """`InputError` unless `value` is finite and lies from `low` to `high`, `above` and `below` leaving these out."""
    inside = (value > low if above else value >= low) and (value < high if below else value <= high)
    if not (inside and math.isfinite(value)):
        if above and below:
            wanted = f"between {low:g} and {high:g}"
        elif math.isinf(high):
            wanted = f"a number above {low:g}" if above else f"a number, {low:g} or more"
        else:
            wanted = f"above {low:g}, at most {high:g}" if above else f"{low:g} to {high:g}"
        raise InputError(f"predictor {who}: got {name} {value}; expected {wanted}; set predictor.{name}")


def check_seed(who: str, seed: int) -> None:
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < SEEDS:
        raise InputError(
            f"predictor {who}: got seed {seed}; expected a whole number from 0 to {SEEDS - 1}; set predictor.seed"
        )
