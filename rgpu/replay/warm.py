"""Warm runs: the pool keeps its content over a whole order of the sequences, and several random orders are run.

Legend: O orders, S sequences. The orders are drawn once and are the same for every policy and capacity, so that everything
compared is paired by order and by sequence.
"""

from typing import Any

import numpy as np

from rgpu.errors import InputError
from rgpu.policies.loop import COUNTS
from rgpu.replay.engine import ReplayResult
from rgpu.traces.trace import Trace, batched, interleaved

ORDERS = 20  # fewest that a warm result rests on (semantics, section Statistics)


def sequence_orders(sequences: int, orders: int, seed: int = 0) -> np.ndarray:
    """int64 [O, S]: random permutations of the sequences."""
    rng = np.random.default_rng([seed, sequences])
    return np.stack([rng.permutation(sequences) for _ in range(orders)]).astype(np.int64)


def reorderable(trace: Trace) -> bool:
    """Whether the sequences may be run in any order: at least two, none sharing a pass, one after another."""
    return trace.sequences >= 2 and not batched(trace) and not interleaved(trace)


def orders_of(trace: Trace, asked: Any, reset: str) -> int:
    """How many orders a run takes: `asked`, or for "auto" the fewest that allow an interval; 0: one run in trace order."""
    fits = reset == "none" and reorderable(trace)
    if asked == "auto":
        return ORDERS if fits else 0
    if isinstance(asked, bool) or not isinstance(asked, int) or asked < 0:
        raise InputError(f"orders: got {asked!r}; expected auto or a whole number from 0")
    if asked and reset != "none":
        raise InputError(
            f"orders: got {asked} with replay.reset={reset}; expected a warm run; set replay.reset=none or orders=0"
        )
    if asked and not fits:
        raise InputError(
            f"orders: got {asked} for a trace of one sequence, or whose sequences share passes or alternate; "
            "expected several, one after another; set orders=0"
        )
    return asked


def counts_by_sequence(result: ReplayResult, order_S: np.ndarray) -> np.ndarray:
    """int64 [S, COUNTS]: what each sequence counted, by its own number, from a run `by_sequence` in the given order."""
    if len(result.pieces) != len(order_S):
        raise InputError(
            f"orders: got {len(result.pieces)} counted stretches for {len(order_S)} sequences; expected one each; "
            "remove empty sequences or set orders=0"
        )
    counts_SC = np.empty((len(order_S), COUNTS), np.int64)
    counts_SC[order_S] = result.pieces
    return counts_SC
