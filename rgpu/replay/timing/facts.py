"""What the clock needs to know of a trace, pass by pass: tokens, context, phase. Legend: N tokens, P passes, S sequences."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from rgpu.replay.events import decode_of, pass_groups
from rgpu.traces.trace import PADDING, PROMPT


@dataclass(frozen=True, slots=True)
class PassFacts:
    """float64 [P, 5] `work`: tokens, context read (tokens of KV, one read a sequence), the same within the window,
    attention pairs (token, token of context), the same within the window. bool [P] `decode`: counts for TPOT (every pass
    of a trace without phases); float64 [P] `steps`: output tokens a sequence gets from the pass; int64 [P] `sequence` of
    the first token; `outputs` float64 [P]: output tokens over all sequences of the pass."""

    work: np.ndarray
    decode: np.ndarray
    steps: np.ndarray
    outputs: np.ndarray
    sequence: np.ndarray
    prefill: bool

    @property
    def passes(self) -> int:
        return len(self.decode)


def pass_facts(trace: Any, window: int = 0, accepted: np.ndarray | None = None) -> PassFacts:
    """Facts of every pass in order. Context is the position in the sequence plus one; `accepted` float64 [P]: output
    tokens of each pass where passes hold speculated tokens (default 1 a sequence and decode pass)."""
    order, starts, _ = pass_groups(trace)
    owner = np.repeat(np.arange(trace.sequences), np.diff(trace.seq_offsets))[order]
    context = trace.positions[order].astype(np.float64) + 1
    real = np.ones(len(order), bool) if trace.phase is None else trace.phase[order] != PADDING
    near = np.minimum(context, window) if window else context
    passes = len(starts) - 1
    at = starts[:-1]
    number = np.repeat(np.arange(passes), np.diff(starts))
    tokens = np.add.reduceat(real.astype(np.float64), at)
    pairs = [np.add.reduceat(np.where(real, c, 0.0), at) for c in (context, near)]
    # KV is read once a sequence and pass: its longest context there, and with a window also the tokens evaluated
    group = np.lexsort((owner, number))
    head = np.flatnonzero(np.diff(number[group] * trace.sequences + owner[group], prepend=-1))
    longest = np.maximum.reduceat(np.where(real, context, 0.0)[group], head)
    rows = np.add.reduceat(real.astype(np.float64)[group], head)
    inside = np.minimum(longest, window + rows - 1) if window else longest
    kv = [np.bincount(number[group][head], v, passes) for v in (longest, inside)]
    sequences = np.bincount(number[group][head], (rows > 0).astype(np.float64), passes)
    has_phase = trace.phase is not None
    decode = decode_of(trace, order, starts) if has_phase else np.ones(passes, bool)
    steps = np.where(decode, 1.0, 0.0) if accepted is None else np.where(decode, accepted, 0.0)
    prompts = has_phase and bool((trace.phase == PROMPT).any())
    return PassFacts(
        np.column_stack([tokens, *kv, *pairs]), decode, steps, steps * sequences, owner[at].astype(np.int64), prompts
    )
