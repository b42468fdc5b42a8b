"""Where a replay empties its pools: at every sequence, at every batch, or never."""

from typing import Any

import numpy as np

from rgpu.errors import InputError, TraceError
from rgpu.replay.events import pass_groups

RESETS = ("none", "sequence", "batch")


def segments(trace: Any, reset: str) -> np.ndarray:
    """int64 [P + 1] bounds over passes: between two bounds the pool keeps its content; every bound empties it."""
    if reset not in RESETS:
        raise InputError(f"replay.reset: got {reset!r}; expected one of {', '.join(RESETS)}")
    order, starts, numbers = pass_groups(trace)
    if reset == "none":
        return np.array([0, len(numbers)])
    sequence = np.repeat(np.arange(trace.sequences), np.diff(trace.seq_offsets))[order]
    low, high = np.minimum.reduceat(sequence, starts[:-1]), np.maximum.reduceat(sequence, starts[:-1])
    if reset == "sequence" and (low != high).any():
        raise TraceError(
            "replay.reset=sequence: got passes that mix sequences; expected batch 1; use replay.reset=batch"
        )
    owner = np.arange(trace.sequences)  # sequences that ever share a pass belong to one batch
    for a, b in np.unique(np.stack([low, high], 1), axis=0):
        owner[a : b + 1] = owner[a : b + 1].min()
    batch = owner[low]
    changes = np.flatnonzero(batch[1:] != batch[:-1]) + 1
    bounds = np.concatenate([[0], changes, [len(numbers)]])
    if len(np.unique(batch[bounds[:-1]])) != len(bounds) - 1:
        raise TraceError(
            f"replay.reset={reset}: got sequences whose passes interleave; expected one after another; use none"
        )
    return bounds
