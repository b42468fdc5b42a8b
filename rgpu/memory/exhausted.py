"""Memory that runs out in the middle of a run: one line instead of an allocator's."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from rgpu.errors import InputError

_SAYINGS = ("can't allocate memory", "not enough memory", "CUDA out of memory", "out of memory")


@contextmanager
def told_in_a_line(doing: str, remedy: str, what: str = "") -> Iterator[None]:
    """An allocation that fails in here, on host or GPU, is an `InputError`: "cannot `doing`: got no memory for `what`;
    `remedy`". `what`: by default the allocator's own words."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_shortage(error):
            raise
        line = what or f"it ({' '.join(str(error).split())[:160]})"
        raise InputError(f"cannot {doing}: got no memory for {line}; {remedy}") from error


def is_shortage(error: BaseException) -> bool:
    """Whether an allocation failed. torch says so with an error of its own on a GPU, on a host in words."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return type(error) is RuntimeError and any(words in str(error) for words in _SAYINGS)
