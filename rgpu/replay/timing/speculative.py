"""Speculative decoding as a trace transform: each decode pass evaluates `width` tokens of one sequence at once.

Assumptions, as no trace holds rejected tokens: a pass routes the next `width` tokens of the recorded text, whether accepted
or not (a rejected draft's experts are those of the true continuation); each drafted token is accepted with probability
`acceptance` until the first rejection, and the pass gives one token more than it accepts; drafting itself takes no time.
Legend: N rows, P passes.
"""

import numpy as np

from rgpu.errors import InputError
from rgpu.traces.trace import PADDING, PROMPT, Trace, TraceHeader, batched


def speculative(trace: Trace, width: int, acceptance: float = 1.0, seed: int = 0) -> tuple[Trace, np.ndarray]:
    """(trace whose decode passes hold `width` tokens, float64 [P] output tokens of each pass: 0 for prompts).

    `width` counts evaluated tokens: 1 is plain decoding. Raises InputError on batches and on values out of range.
    """
    if width < 1 or not 0 <= acceptance <= 1:
        raise InputError(
            f"speculative: got width={width}, acceptance={acceptance}; expected a width from 1 and a share from 0 to 1"
        )
    if seed < 0:
        raise InputError(f"seed: got {seed}; expected a whole number from 0 for the drafts that speculative accepts")
    if batched(trace):
        raise InputError("speculative: got passes that mix sequences; expected batch 1; use another trace")
    rng = np.random.default_rng(seed)
    rows: list[np.ndarray] = []
    passes: list[np.ndarray] = []
    accepted: list[float] = []
    lengths = []
    for s in range(trace.sequences):
        low, high = int(trace.seq_offsets[s]), int(trace.seq_offsets[s + 1])
        own = np.arange(low, high)
        phase = None if trace.phase is None else trace.phase[low:high]
        prompt = own[:0] if phase is None else own[phase == PROMPT]
        decode = own if phase is None else own[(phase != PROMPT) & (phase != PADDING)]
        before = len(rows)
        for number in np.unique(trace.passes[prompt]):
            group = prompt[trace.passes[prompt] == number]
            rows.append(group)
            passes.append(np.full(len(group), len(accepted), np.int32))
            accepted.append(0.0)
        at = 0
        while at < len(decode):
            group = decode[at : at + width]
            drafts = len(group) - 1
            rejected = np.flatnonzero(rng.random(drafts) >= acceptance)
            taken = 1 + (int(rejected[0]) if len(rejected) else drafts)
            rows.append(group)
            passes.append(np.full(len(group), len(accepted), np.int32))
            accepted.append(float(taken))
            at += taken
        lengths.append(sum(len(group) for group in rows[before:]))
    row_N = np.concatenate(rows) if rows else np.zeros(0, np.int64)
    header = TraceHeader(**{**trace.header.to_json(), "checksum": ""})
    kept = {n: a[row_N] for n, a in trace.arrays().items() if n not in ("seq_offsets", "passes")}
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    number_N = np.concatenate(passes) if passes else np.zeros(0, np.int32)
    return Trace(header=header, seq_offsets=offsets, passes=number_N, **kept), np.asarray(accepted)
