"""What a pass's time counts for, by hand: first tokens, output tokens, sequences that share a pass."""

from typing import Any

import numpy as np
import pytest

from rgpu.replay.timing.clock import PARTS
from rgpu.replay.timing.facts import pass_facts
from rgpu.replay.timing.link import TALLIES
from rgpu.replay.timing.result import TimingResult
from rgpu.traces.trace import DECODE, PADDING, PROMPT, Trace, TraceHeader


def trace_of(*sequences: list[tuple[int, int]]) -> Trace:
    """Rows (pass, phase) of each sequence."""
    rows = [row for sequence in sequences for row in sequence]
    n = len(rows)
    positions = np.concatenate([np.arange(len(s)) for s in sequences]).astype(np.int32)
    return Trace(
        TraceHeader("t", 4, 1, [0], expert_bytes=[1000]), np.zeros((n, 1, 1), np.uint8),
        np.cumsum([0, *(len(s) for s in sequences)]), positions, np.array([p for p, _ in rows], np.int32),
        phase=np.array([phase for _, phase in rows], np.uint8),
    )  # fmt: skip


def timed(trace: Trace, seconds: list[float], **given: Any) -> TimingResult:
    parts = np.zeros((len(seconds), PARTS), np.int64)
    parts[:, 0] = parts[:, 1] = np.array(seconds) * 1e12
    return TimingResult("m", "fetch", "expert", parts, pass_facts(trace, **given), np.zeros(TALLIES, np.int64))


def test_prompts_of_one_pass_each_have_a_first_token() -> None:
    own = [(0, PROMPT), (0, PROMPT), (1, DECODE)]
    found = timed(trace_of(own, own), [3, 1])
    assert found.ttft_s().tolist() == [3, 3] and found.tpot_s == 1
    assert found.facts.outputs.tolist() == [0, 2] and found.summary()["tokens_per_s"] == 2
    assert found.facts.prefill


def test_a_prompt_beside_generated_tokens() -> None:
    first = [(0, PROMPT), (0, PROMPT), (1, DECODE), (2, DECODE), (3, DECODE)]
    second = [(1, PROMPT), (1, PROMPT), (2, PROMPT), (3, DECODE)]
    found = timed(trace_of(second, first), [3, 4, 5, 1])
    assert found.ttft_s().tolist() == [9, 3]
    assert found.facts.decode.tolist() == [False, True, True, True] and found.facts.outputs.tolist() == [0, 1, 1, 2]
    assert found.tpot_s == pytest.approx(10 / 3) and found.summary()["tokens_per_s"] == pytest.approx(4 / 10)
    assert found.facts.sequence.tolist() == [1, 1, 1, 0]
    assert found.facts.work[:, 5].tolist() == [1, 1, 2, 2]  # rows that yield a token


def test_padding_is_nobodys_time_to_a_first_token() -> None:
    found = timed(trace_of([(1, PROMPT), (2, DECODE)], [(0, PADDING), (0, PROMPT), (1, DECODE)]), [1, 2, 4])
    assert found.ttft_s().tolist() == [2, 1] and found.facts.outputs.tolist() == [0, 1, 1]


def test_without_prompts_there_is_no_first_token() -> None:
    found = timed(trace_of([(0, DECODE), (1, DECODE)]), [1, 2])
    assert found.ttft_s().size == 0 and found.summary()["ttft_s"] is None and found.tpot_s == 1.5
    trace = trace_of([(0, DECODE), (1, DECODE)])
    trace.phase = None
    assert timed(trace, [1, 2]).tpot_s == 1.5 and not pass_facts(trace).prefill
