from dataclasses import replace

import numpy as np
import pytest

from rgpu.errors import InputError
from rgpu.predictors import sparse_table
from rgpu.predictors.ngram import NONE, Ngram, pairs, previous_tokens
from rgpu.predictors.popularity import popularity
from rgpu.predictors.token_id import TokenId
from rgpu.traces.trace import Trace
from rgpu.types import RoutingEvent
from tests.predicting import choices, learnable_trace, recall_at_k, routing_trace

TOKENS = 5


def by_token(length: int = 40, sequences: int = 10) -> Trace:
    """A token's id decides its experts; ids go round, so the next one is known too."""
    rng = np.random.default_rng(2)
    table = np.stack([choices(rng, 3, 8, 2) for _ in range(TOKENS)])
    tokens = np.concatenate([(np.arange(length) + rng.integers(TOKENS)) % TOKENS for _ in range(sequences)])
    return routing_trace(table[tokens], 8, length, tokens)


def by_pair(length: int = 60, sequences: int = 8) -> Trace:
    """Two tokens at random; only the pair of the last two decides the experts."""
    rng = np.random.default_rng(3)
    tokens = rng.integers(2, size=length * sequences)
    before = np.where(np.arange(len(tokens)) % length == 0, 0, np.roll(tokens, 1))
    table = np.arange(8).reshape(4, 2)
    ids = table[2 * before + tokens][:, None].repeat(2, axis=1)
    return routing_trace(ids, 8, length, tokens)


def test_a_trace_that_tokens_decide_is_known() -> None:
    trace = by_token()
    recall = recall_at_k(TokenId(horizon=2).fit(trace), trace)
    assert recall == {0: 1.0, 1: 1.0, 2: 1.0}


def test_pairs_know_what_single_tokens_cannot() -> None:
    trace = by_pair()
    single, paired = (recall_at_k(kind(horizon=1).fit(trace), trace)[1] for kind in (TokenId, Ngram))
    assert paired > 0.99 and single < 0.75


def test_chances_are_the_counted_ones_backed_off() -> None:
    ids = np.array([[[0]], [[1]], [[1]], [[2]]])
    trace = routing_trace(ids, 4, 4, np.array([7, 7, 7, 9]))
    predictor = TokenId(smoothing=1.0).fit(trace)
    predictor.observe(RoutingEvent(0, 0, np.array([[0]], np.int16), token_T=np.array([7], np.int32)))
    popular = popularity(trace)[0].astype(np.float64)
    seven, nine = (np.array([1, 2, 0, 0]) + popular) / 4, (np.array([0, 0, 1, 0]) + popular) / 2
    assert np.allclose(predictor.predict().probs_HE[0], (2 * seven + nine + popular) / 4)  # 7 was followed by 7, 7, 9


def test_unknown_tokens_are_popularity() -> None:
    trace = by_token()
    for predictor in (TokenId(horizon=2).fit(trace), Ngram(horizon=2).fit(trace)):
        predictor.observe(RoutingEvent(0, 0, np.array([[0, 1]], np.int16), token_T=np.array([999], np.int32)))
        assert np.allclose(predictor.predict().probs_HE, popularity(trace)[[1, 2, 0]])


@pytest.mark.parametrize("kind", [TokenId, Ngram])
def test_what_a_table_leaves_out_goes_to_popularity(kind: type[TokenId]) -> None:
    trace = learnable_trace()
    for settings in ({"width": 1}, {"tokens": 1}, {"width": 2, "tokens": 3}):
        predictor = kind(**settings).fit(trace)
        assert max(len(a) for n, a in predictor.tensors_.items() if n.endswith("key_V")) <= settings.get("tokens", 99)
        assert trace.token_ids is not None
        predictor.observe(RoutingEvent(0, 0, trace.expert_ids[:1, 0].astype(np.int16), token_T=trace.token_ids[:1]))
        assert np.allclose(predictor.predict().probs_HE.sum(1), 2, atol=0.01)  # less what is above 1


def test_the_token_before() -> None:
    trace = by_pair(length=3, sequences=2)
    tokens = np.array([4, 5, 6, 7, 8, 9], np.int32)
    assert previous_tokens(replace(trace, token_ids=tokens)).tolist() == [NONE, 4, 5, NONE, 7, 8]
    assert len(set(pairs(np.array([0, 1, NONE]), np.array([1, 0, 1])).tolist())) == 3


def test_rows_of_a_batch_follow_one_another_by_position() -> None:
    trace = by_pair()
    predictor, decode = Ngram(horizon=1).fit(trace), np.ones(2, np.uint8)
    ids = np.array([[0, 1], [0, 1]], np.int16)
    for number, tokens in enumerate(([0, 1], [1, 1])):
        for layer in range(2):
            predictor.observe(RoutingEvent(layer, number, ids, phase_T=decode, token_T=np.array(tokens, np.int32)))
            forecast = predictor.predict()
    predictor.observe(RoutingEvent(0, 2, ids, phase_T=decode, token_T=np.array([0, 1], np.int32)))
    forecast = predictor.predict()  # pairs (1, 0) and (1, 1)
    assert forecast.probs_HE[0, 4:].min() > 0.4 and forecast.probs_HE[0, :4].max() < 0.1


@pytest.mark.parametrize("name", ["tokens", "width"])
def test_empty_tables_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"got {name} 0"):
        TokenId(**{name: 0}).fit(by_token())


def test_no_more_rows_are_averaged_together_than_said(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    key_N, value_NE = rng.integers(0, 3, 200), rng.integers(0, 9, (200, 4)).astype(np.float32)  # one key has many rows
    read: list[int] = []

    def values(layer: int, rows: np.ndarray) -> np.ndarray:
        read.append(len(rows))
        return value_NE[rows]

    whole = sparse_table.make_table(key_N, values, 1, 2, 1.0, 8, 4)
    assert read == [200]
    monkeypatch.setattr(sparse_table, "STEP", 16)
    pieces = sparse_table.make_table(key_N, values, 1, 2, 1.0, 8, 4)
    assert max(read[1:]) <= 16 and sum(read[1:]) == 200
    assert all(np.array_equal(whole[name], pieces[name]) for name in whole)
