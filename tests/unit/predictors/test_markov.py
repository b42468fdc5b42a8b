import numpy as np
import pytest

from rgpu.errors import InputError
from rgpu.predictors.markov import Markov
from rgpu.predictors.popularity import popularity
from rgpu.predictors.routed import conditional, joint_counts, pass_of, successors
from rgpu.traces.trace import Trace
from rgpu.types import RoutingEvent
from tests.predicting import LAYERS, TOP_K, choices, learnable_trace, recall_at_k, routing_trace


def chain(tokens: int = 600) -> Trace:
    """Each expert leads to one expert of the next layer; those of the first layer lead to the next token's too."""
    rng = np.random.default_rng(1)
    steps = [rng.permutation(8) for _ in range(4)]
    ids = np.empty((tokens, 4, 2), np.int64)
    for t in range(tokens):
        ids[t, 0] = choices(rng, 1, 8, 2)[0] if t % 50 == 0 else steps[3][ids[t - 1, 0]]
        for layer in range(1, 4):
            ids[t, layer] = steps[layer - 1][ids[t, layer - 1]]
    return routing_trace(ids, 8, 50)


def test_a_deterministic_chain_is_known_at_every_horizon() -> None:
    trace = chain()
    assert recall_at_k(Markov(horizon=3).fit(trace), trace) == {0: 1.0, 1: 1.0, 2: 1.0, 3: 1.0}


def test_chances_are_the_counted_ones() -> None:
    ids = np.array([[[0], [1]], [[0], [2]], [[0], [2]], [[3], [0]]])
    predictor = Markov(horizon=1, smoothing=1.0).fit(routing_trace(ids, 4, 4))
    predictor.observe(RoutingEvent(0, 0, np.array([[0]], np.int16), phase_T=np.ones(1, np.uint8)))
    later, following = predictor.predict().probs_HE
    assert np.allclose(later, (np.array([0, 1, 2, 0]) + np.array([0.25, 0.25, 0.5, 0])) / 4)
    assert np.allclose(following, (np.array([2, 0, 0, 1]) + np.array([0.75, 0, 0, 0.25])) / 4)


def test_nothing_known_is_popularity() -> None:
    trace = learnable_trace()
    predictor = Markov(horizon=2).fit(trace)
    predictor.observe(RoutingEvent(1, 0, np.full((1, TOP_K), -1, np.int16), phase_T=np.ones(1, np.uint8)))
    assert np.allclose(predictor.predict().probs_HE, popularity(trace)[[2, 3, 1]])


def test_rows_sum_to_k() -> None:
    trace = learnable_trace()
    predictor = Markov().fit(trace)
    for layer in range(LAYERS):
        predictor.observe(RoutingEvent(layer, 0, np.array([[1, 6]], np.int16), phase_T=np.ones(1, np.uint8)))
        assert np.allclose(predictor.predict().probs_HE.sum(1), TOP_K, atol=1e-5)


def test_counts_leave_out_what_was_not_recorded() -> None:
    before, after = np.array([[0, 255], [0, 1]]), np.array([[2, 3], [255, 255]])
    joint, seen = joint_counts(before, after, 4)
    assert joint.sum() == 2 and joint[0, 2] == joint[0, 3] == 1
    assert seen.tolist() == [1, 0, 0, 0]
    assert np.allclose(conditional(before, after, np.full(4, 0.5, np.float32), 1.0)[3], 0.5)


def test_passes_and_successors_of_a_trace_with_prompts() -> None:
    trace = learnable_trace(sequences=2, tokens=6)
    rows, of_pass = pass_of(trace, np.array([3, 4, 5, 9, 10, 11]))
    assert rows.tolist() == list(range(12))
    assert of_pass.tolist() == [0, 0, 0, 0, 1, 2, 3, 3, 3, 3, 4, 5]
    before, after = successors(trace)
    assert before.tolist() == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10] and np.array_equal(after, before + 1)


def test_smoothing_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="smoothing 0"):
        Markov(smoothing=0).fit(learnable_trace())
