"""Random numbers that depend on what they are for and on nothing else: no generator, hence no order of calls.

Source: the finaliser of SplitMix64 (Steele, Lea and Flood 2014). Legend: N keys, E draws a key.
"""

import numpy as np

_STEP = np.uint64(0x9E3779B97F4A7C15)


def mixed(key_N: np.ndarray, value: np.ndarray | np.uint64) -> np.ndarray:
    """uint64 [N]: another key, of both; all bits depend on all bits."""
    with np.errstate(over="ignore"):
        z_N = (key_N ^ (value + _STEP)) * _STEP
        z_N = (z_N ^ (z_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z_N = (z_N ^ (z_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed_N: np.ndarray = z_N ^ (z_N >> np.uint64(31))
    return mixed_N


def uniform(key_N: np.ndarray, what: tuple[int, ...], count: int) -> np.ndarray:
    """float64 [N, count] in [0, 1): draws of each key for the purpose `what`."""
    for value in what:
        key_N = mixed(key_N, np.uint64(value))
    draw_NE = mixed(key_N[:, None], np.arange(1, count + 1, dtype=np.uint64)[None])
    return (draw_NE >> np.uint64(11)).astype(np.float64) * 2.0**-53
