"""Compiling of the clock's kernels: cached on disk in a folder named after every source that goes into them."""

import hashlib
import pathlib
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import njit

KERNELS = (
    "compiled",
    "machine",
    "link",
    "serve",
    "clock",
    "classes",
)  # files with compiled functions or their constants


def _stamp() -> str:
    """numba watches the file of the compiled function only, and kernels here call functions of other files."""
    here = pathlib.Path(__file__).parent
    sources = [*(here / f"{name}.py" for name in KERNELS), here.parents[1] / "policies" / "loop.py"]
    return hashlib.sha256(b"".join(p.read_bytes() for p in sources) + numba.__version__.encode()).hexdigest()[:12]


# A function that only kernels call: it counts no references to its arrays, so it must allocate nothing. Counting them
# atomically at each call takes longer than most of these functions do.
inner = njit(nogil=True, error_model="numpy", _nrt=False)

NOT_NEGATIVE = np.int64(2**63 - 1)


@inner
def index(x):  # type: ignore[no-untyped-def]
    """x, of which the compiler then knows that it is not negative: it leaves out the test for Python's indices from the end
    (a third of the time of queueing background copies)."""
    return x & NOT_NEGATIVE


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`njit` that releases the GIL; compiled at first use."""
    base = numba.config.CACHE_DIR or str(pathlib.Path.home() / ".cache" / "rgpu" / "numba")
    previous = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = f"{base}/timing-{_stamp()}"
    try:
        return njit(cache=True, nogil=True, error_model="numpy")(function)  # type: ignore[no-any-return]
    finally:
        numba.config.CACHE_DIR = previous
