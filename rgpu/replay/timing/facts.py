"""What the clock needs to know of a trace, pass by pass: tokens, context, phase. Legend: N tokens, P passes, S sequences."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from rgpu.replay.events import pass_groups
from rgpu.traces.trace import DECODE, PADDING, PROMPT


@dataclass(frozen=True, slots=True)
class PassFacts:
    """float64 [P, 6] `work`: tokens, context read (tokens of KV, one read a sequence), the same within the window,
    attention pairs (token, token of context), the same within the window, rows that yield a token (generated ones and the
    last of a prompt). bool [P] `decode`: evaluates generated tokens, with or without prompts beside them (every pass of a
    trace without phases); float64 [P] `steps`: output tokens that each sequence generating in the pass gets from it;
    `outputs` float64 [P]: the same over all of them; int64 [P] `sequence` of the first generated token, else of the first
    token. int64 [S] `first` pass of each sequence (P: none) and the pass in which its prompt ends (-1: none)."""

    work: np.ndarray
    decode: np.ndarray
    steps: np.ndarray
    outputs: np.ndarray
    sequence: np.ndarray
    first: np.ndarray
    prompt_end: np.ndarray

    @property
    def prefill(self) -> bool:
        """Whether any pass evaluates a prompt."""
        return bool((self.prompt_end >= 0).any())

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
    phase = np.full(len(order), DECODE) if trace.phase is None else trace.phase[order]
    generated, prompt = real & (phase == DECODE), real & (phase == PROMPT)
    yields = np.add.reduceat(generated | _prompt_ends(owner, real, prompt), at).astype(np.float64)
    generating = np.maximum.reduceat(generated[group], head)
    sequences = np.bincount(number[group][head], generating.astype(np.float64), passes)
    decode = sequences > 0
    steps = np.where(decode, 1.0 if accepted is None else accepted, 0.0)
    sequence = owner[at].astype(np.int64)
    mine, shown = np.unique(number[generated], return_index=True)
    sequence[mine] = owner[generated][shown]
    first, prompt_end = np.full(trace.sequences, passes), np.full(trace.sequences, -1)
    np.minimum.at(first, owner[real], number[real])
    np.maximum.at(prompt_end, owner[prompt], number[prompt])
    work = np.column_stack([tokens, *kv, *pairs, yields])
    return PassFacts(work, decode, steps, steps * sequences, sequence, first, prompt_end)


def _prompt_ends(owner: np.ndarray, real: np.ndarray, prompt: np.ndarray) -> np.ndarray:
    """bool [N]: prompt rows after which their sequence has no other prompt row before it generates or ends."""
    rows = np.argsort(owner, kind="stable")
    rows = rows[real[rows]]
    goes_on = np.zeros(len(rows), bool)
    goes_on[:-1] = (owner[rows][1:] == owner[rows][:-1]) & prompt[rows][1:]
    out = np.zeros(len(owner), bool)
    out[rows] = prompt[rows] & ~goes_on
    return out
