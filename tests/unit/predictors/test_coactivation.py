import numpy as np
import pytest

from rgpu.errors import InputError
from rgpu.predictors.coactivation import Coactivation
from rgpu.predictors.markov import Markov
from rgpu.predictors.online_head import OnlineHead, hot
from rgpu.predictors.routed import summed
from rgpu.replay.prediction import evaluate, speaking_passes
from rgpu.replay.stream import routing_events
from rgpu.traces.trace import Trace
from rgpu.types import RoutingEvent
from tests.predicting import LAYERS, TOP_K, choices, learnable_trace, recall_at_k, routing_trace


def two_sources(tokens: int = 1200, length: int = 60) -> Trace:
    """At layer 2 the first expert follows from layer 1, the second from layer 0: neither layer alone tells both."""
    rng = np.random.default_rng(4)
    ids = np.empty((tokens, 3, 2), np.int64)
    ids[:, 0], ids[:, 1] = choices(rng, tokens, 8, 2), choices(rng, tokens, 8, 2)
    ids[:, 2, 0] = ids[:, 1, 0] // 2
    ids[:, 2, 1] = 4 + ids[:, 0, 0] // 2
    return routing_trace(ids, 8, length)


def log_loss(predictor: object, trace: Trace, horizon: int) -> float:
    rows = [r for r in evaluate(predictor, trace) if r["metric"] == "log_loss" and r["horizon"] == horizon]
    return float(np.mean([r["value"] for r in rows]))


def test_two_layers_know_more_than_one() -> None:
    trace = two_sources()
    together, alone = Coactivation(horizon=1).fit(trace), Markov(horizon=1).fit(trace)
    rows, sequence = speaking_passes(trace)
    first = np.r_[True, np.diff(sequence) > 0]

    def recall(predictor: Coactivation | Markov) -> float:
        named = np.argsort(-predictor.predict_trace(trace, 1, rows, first)[:, 0], kind="stable")[:, :2]
        return float((named[:, :, None] == trace.expert_ids[rows, 2][:, None]).any(1).mean())

    assert recall(together) > recall(alone) + 0.05
    assert log_loss(together, trace, 1) < log_loss(alone, trace, 1) - 0.05


def test_weights_of_a_deterministic_layer_name_it() -> None:
    rng = np.random.default_rng(1)
    step, here = rng.permutation(8), choices(rng, 600, 8, 2)
    trace = routing_trace(np.stack([here, step[here], step[step[here]]], axis=1), 8, 50)
    assert recall_at_k(Coactivation(horizon=2).fit(trace), trace)[1] > 0.99


def test_rows_sum_to_about_k() -> None:
    trace = learnable_trace()
    predictor = Coactivation().fit(trace)
    for event in routing_events(trace.select(np.array([0]))):
        predictor.observe(event)
        assert np.allclose(predictor.predict().probs_HE.sum(1), TOP_K, atol=0.02)


def test_experts_that_are_not_known_say_nothing() -> None:
    table = np.vstack([np.eye(3), np.zeros(3)]).astype(np.float32)
    assert summed(table, np.array([[0, 3], [1, 1]])).tolist() == [[1, 0, 0], [0, 2, 0]]


@pytest.mark.parametrize(("experts", "top_k"), [(8, 2), (64, 8), (256, 8), (3, 16)])
def test_sums_are_in_the_order_of_k_however_many_rows(experts: int, top_k: int) -> None:
    rng = np.random.default_rng(experts)
    table, ids = rng.normal(size=(experts + 1, experts)).astype(np.float32), rng.integers(experts + 1, size=(90, top_k))
    one_by_one = table[ids[:, 0]]
    for k in range(1, top_k):
        one_by_one = one_by_one + table[ids[:, k]]
    assert np.array_equal(summed(table, ids), one_by_one)
    assert np.array_equal(np.concatenate([summed(table, row[None]) for row in ids]), one_by_one)


def test_what_shifts_in_a_sequence_is_learnt_online() -> None:
    """In calibration layers have nothing to do with each other; while decoding one follows from the other."""
    rng = np.random.default_rng(9)
    here, there, step = choices(rng, 900, 8, 2), choices(rng, 900, 8, 2), rng.permutation(8)
    calibration = routing_trace(np.stack([here, there], axis=1), 8, 90)
    shifted = routing_trace(np.stack([here, step[here]], axis=1), 8, 300)
    still, learning = (OnlineHead(horizon=1, lr=lr).fit(calibration) for lr in (0.0, 0.3))
    assert recall_at_k(learning, shifted)[1] > 0.7 > 0.5 > recall_at_k(still, shifted)[1]
    fitted = learning.tensors_["map_LHXE"].copy()
    for event in routing_events(shifted.select(np.array([0]))):
        learning.observe(event)
    assert np.array_equal(learning.tensors_["map_LHXE"], fitted)


def test_a_step_goes_down_the_gradient() -> None:
    predictor = OnlineHead(horizon=1, lr=0.5).fit(learnable_trace())
    head, true = predictor._head(0), hot(np.array([[5, 6], [0, 1]]), 8)
    at = predictor._rows_read([np.array([[1, 2]]), np.array([[7, 7]]), np.array([[8, 8]]), np.array([[3, 8]])])[0]
    before = head.odds(at)
    for _ in range(2):  # what is not known is read as nothing, however often it was to learn
        head.learn(slice(None), at, before, true)
    after = head.odds(at)
    gradient = 1 / (1 + np.exp(-before)) - true
    known = np.array([[3], [4]])  # bias and experts: two here, of the last token none and one
    assert np.allclose(after, before - 2 * known * 0.5 * gradient, atol=1e-5)
    assert not head._map_HXE[:, [8, 18]].any()


def test_batches_learn_row_by_row() -> None:
    trace = learnable_trace()
    predictor = OnlineHead(horizon=1, lr=0.5).fit(trace)
    decode, ids = np.ones(2, np.uint8), np.array([[0, 1], [2, 3]], np.int16)
    said = []
    for number in range(3):
        for layer in range(LAYERS):
            predictor.observe(RoutingEvent(layer, number, ids, phase_T=decode))
            said.append(predictor.predict().probs_HE)
    assert not np.array_equal(said[LAYERS], said[2 * LAYERS])
    predictor.observe(RoutingEvent(0, 3, ids, phase_T=np.full(2, 2, np.uint8)))
    assert not predictor.predict().probs_HE.any()
    predictor.observe(RoutingEvent(0, 4, ids[:1], phase_T=decode[:1]))  # another number of rows: nothing to learn from
    assert predictor.predict().probs_HE.any()


@pytest.mark.parametrize(("settings", "message"), [({"lr": -1.0}, "lr -1"), ({"holdout": 0.0}, "holdout 0")])
def test_what_cannot_be_is_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        OnlineHead(**settings).fit(learnable_trace())  # type: ignore[arg-type]
