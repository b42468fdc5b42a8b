from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from rgpu.errors import InputError
from rgpu.predictors.history import vocabulary_rows
from rgpu.predictors.history_gru import HistoryGru
from rgpu.predictors.history_training import HistoryProblem, segments, trailing
from rgpu.predictors.history_transformer import HistoryTransformer
from rgpu.predictors.training_rows import Rows
from rgpu.replay.prediction import evaluate, speaking_passes
from rgpu.replay.stream import routing_events
from rgpu.traces.split import split
from rgpu.traces.trace import PADDING, Trace, TraceHeader
from rgpu.types import RoutingEvent
from tests.predicting import EXPERTS, LAYERS, TOP_K, learnable_trace

KINDS: list[Any] = [HistoryGru, HistoryTransformer]
every_kind = pytest.mark.parametrize("kind", KINDS)


def with_tokens(trace: Trace) -> Trace:
    ids = np.random.default_rng(5).integers(0, 40, trace.tokens).astype(np.int32)
    return replace(trace, token_ids=ids)


def turning_trace(sequences: int = 12, tokens: int = 30) -> Trace:
    """Experts that step on by one a token, from a random first, the same in every layer: only history tells."""
    rng = np.random.default_rng(0)
    first = rng.integers(0, EXPERTS, sequences).repeat(tokens)
    now = (first + np.tile(np.arange(tokens), sequences)) % EXPERTS
    ids = np.stack([now, (now + 3) % EXPERTS], 1)[:, None].repeat(LAYERS, 1).astype(np.uint8)
    metas = [{"document": f"d{s}"} for s in range(sequences)]
    count = sequences * tokens
    return Trace(
        TraceHeader("turning", EXPERTS, TOP_K, list(range(LAYERS)), sequences=metas), ids,
        np.arange(sequences + 1, dtype=np.int64) * tokens, np.tile(np.arange(tokens, dtype=np.int32), sequences),
        np.arange(count, dtype=np.int32), phase=np.ones(count, np.uint8),
    )  # fmt: skip


@every_kind
def test_learns_what_only_history_tells(kind: Any) -> None:
    trace = turning_trace()
    parts = split(trace)
    rows = evaluate(kind(size=16, epochs=25, lr=0.02, decay=0.0).fit(trace, parts), trace.select(parts.scored))
    value = {(r["horizon"], r["layer"]): r["value"] for r in rows if (r["metric"], r["width"]) == ("recall", TOP_K)}
    assert min(value.values()) > 0.9


@every_kind
@pytest.mark.parametrize("inputs", ["routing", "hidden", "tokens+hidden", "routing+tokens"])
def test_live_is_the_trace_at_once_whatever_the_inputs(kind: Any, inputs: str) -> None:
    trace = with_tokens(learnable_trace(sequences=3, tokens=12))
    predictor = kind(inputs=inputs, size=8, epochs=1).fit(trace)
    rows, sequence = speaking_passes(trace)
    first = np.r_[True, sequence[1:] != sequence[:-1]]
    for s in range(trace.sequences):
        part = trace.select(np.array([s]))
        predictor.reset()
        for event in routing_events(part):
            predictor.observe(event)
            found = predictor.predict().probs_HE
            at = int(np.flatnonzero(sequence == s)[event.pass_id])
            assert np.array_equal(found, predictor.predict_trace(trace, event.layer, rows, first)[at])
    assert predictor.needs == tuple(
        {"hidden": "hidden", "tokens": "token_ids"}[p] for p in inputs.split("+") if p != "routing"
    )


@every_kind
def test_numpy_and_torch_agree(kind: Any) -> None:
    trace = with_tokens(learnable_trace(sequences=2, tokens=12))
    trace = replace(trace, passes=np.arange(24, dtype=np.int32), phase=np.ones(24, np.uint8))
    predictor = kind(inputs="routing+hidden+tokens", size=8, epochs=2).fit(trace)
    rows = Rows(trace, predictor.horizon)
    every = torch.arange(24)
    span, speaks = predictor._window()
    windows = segments(every, rows.sequence_N, span) if speaks else trailing(every, rows.real, rows.sequence_N, span)
    problem = HistoryProblem(
        "x", trace, rows, predictor.parts, (windows, windows), span if speaks else 1, predictor._states, "cpu",
        predictor.tensors_,
    )  # fmt: skip
    parameters = {name: torch.from_numpy(t) for name, t in predictor.tensors_.items()}
    numbers, logits = problem.logits(parameters, windows)
    assert torch.equal(numbers, every)
    states = predictor._trace_states(trace)
    for layer in range(LAYERS):
        weight, bias = predictor._head(layer)
        shown = predictor._trace_shown(trace, every.numpy(), layer + 1)
        now = rows.members(every)[layer].numpy()
        ours = np.concatenate([states, shown, now], 1) @ weight + bias
        heads = [*range(len(predictor.targets(layer)[0]) - 1), predictor.horizon]
        scale = predictor.tensors_["scale_LH"][layer, heads][:, None]
        assert np.allclose(ours.reshape(24, -1, EXPERTS), logits[layer][:, heads].numpy() * scale, atol=1e-4)


@every_kind
def test_several_decode_rows_are_one_mean_token(kind: Any) -> None:
    trace = learnable_trace(sequences=2, tokens=12)
    predictor = kind(size=8, epochs=1).fit(trace)
    for event in routing_events(trace.select(np.array([0]))):
        twice = RoutingEvent(
            event.layer, event.pass_id, np.repeat(event.experts_TK[-1:], 2, 0), phase_T=np.ones(2, np.uint8)
        )
        predictor.observe(twice)
        assert predictor.predict().probs_HE.shape == (len(predictor.targets(event.layer)[0]), EXPERTS)
    padding = replace(twice, phase_T=np.full(2, PADDING, np.uint8))
    predictor.observe(padding)
    assert not predictor.predict().probs_HE.any()


def test_units_stay_in_their_sequence() -> None:
    sequence_N = np.repeat([0, 1], [5, 3])
    found = segments(torch.arange(8), sequence_N, 3)
    assert found.tolist() == [[0, 1, 2], [3, 4, -1], [5, 6, 7]]
    assert len(segments(torch.arange(8), sequence_N, 3, most=6)) == 2
    windows = trailing(torch.tensor([1, 5, 7]), np.arange(8), sequence_N, 2)
    assert windows.tolist() == [[-1, 0, 1], [-1, -1, 5], [5, 6, 7]]


def test_ids_never_seen_share_the_last_row() -> None:
    assert vocabulary_rows(np.array([2, 5, 9]), np.array([5, 4, 100, 9])).tolist() == [1, 3, 3, 2]


@pytest.mark.parametrize("inputs", ["", "weights", "routing+routing"])
def test_unknown_inputs(inputs: str) -> None:
    with pytest.raises(InputError, match="got inputs"):
        HistoryGru(inputs=inputs).fit(learnable_trace())


def test_bad_sizes_and_missing_token_ids() -> None:
    with pytest.raises(InputError, match="got size 9 and 2 heads"):
        HistoryTransformer(size=9).fit(learnable_trace())
    with pytest.raises(InputError, match="got span 0"):
        HistoryGru(span=0).fit(learnable_trace())
    predictor = HistoryGru(inputs="tokens", epochs=0, size=4).fit(with_tokens(learnable_trace()))
    with pytest.raises(InputError, match="no token ids"):
        predictor.observe(next(routing_events(replace(learnable_trace(), token_ids=None))))


@every_kind
def test_a_sequence_may_begin_in_the_middle_of_a_pass(kind: Any) -> None:
    trace = learnable_trace(sequences=1, tokens=12)
    predictor = kind(size=8, epochs=0).fit(trace)
    events = list(routing_events(trace))
    for event in events[2:]:
        predictor.observe(event)
        assert np.isfinite(predictor.predict().probs_HE).all()
    began = predictor._state_F.copy()
    predictor.reset()
    for event in events[2 : 2 * LAYERS]:
        predictor.observe(event)
    assert len(predictor._vectors_NC) == 1 and began.any()
