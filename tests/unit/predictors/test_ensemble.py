from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from rgpu.errors import InputError, TraceError
from rgpu.experiments.injected import with_kernel
from rgpu.kernels.linear_forecast import linear_forecast
from rgpu.predictors.base import load_predictor
from rgpu.predictors.ensemble import Ensemble
from rgpu.predictors.gate_lookahead import GateLookahead
from rgpu.predictors.markov import Markov
from rgpu.predictors.oracle import Oracle
from rgpu.predictors.popularity import Popularity
from rgpu.predictors.previous_token import PreviousToken
from rgpu.predictors.stacking import EDGE, fit_logistic, held_out, logistic, shared_out, speaking_rows_of, targets_of
from rgpu.predictors.token_id import TokenId
from rgpu.replay.prediction import speaking_passes
from rgpu.replay.stream import routing_events
from rgpu.traces.trace import Trace
from rgpu.types import RoutingEvent
from tests.predicting import LAYERS, learnable_trace, recall_at_k, write_checkpoint


@pytest.fixture(scope="module")
def trace() -> Trace:
    return learnable_trace(sequences=12)


def log_loss(probs_PE: np.ndarray, true_PE: np.ndarray) -> float:
    p = np.clip(probs_PE.astype(np.float64), EDGE, 1 - float(EDGE))
    return float(-np.mean(true_PE * np.log(p) + (1 - true_PE) * np.log(1 - p)))


def test_no_worse_than_its_best_member_where_it_was_weighed(trace: Trace) -> None:
    def members() -> list[object]:
        return [Popularity(), PreviousToken(), Markov(), TokenId()]

    ensemble = Ensemble(members(), horizon=2).fit(trace)
    fitting, weighing = held_out(trace, ensemble.holdout, ensemble.seed)
    for member in ensemble.members:  # as they were when they were weighed
        member.fit(fitting)
    rows, first = speaking_rows_of(weighing)
    better = 0
    for layer in range(LAYERS):
        targets, ahead = ensemble.targets(layer)
        for h, target in enumerate(targets):
            passes, true = targets_of(weighing, rows, first, int(target), bool(ahead[h]))
            parts: list[Any] = ensemble.members
            alone = [log_loss(m.predict_trace(weighing, layer, rows, first)[passes, h], true) for m in parts]
            together = log_loss(ensemble.predict_trace(weighing, layer, rows, first)[passes, h], true)
            assert together <= min(alone) + 1e-5
            better += together < min(alone) - 1e-3
    assert better > LAYERS


def test_members_are_saved_with_it(trace: Trace, tmp_path) -> None:  # type: ignore[no-untyped-def]
    nested = Ensemble([Ensemble([Popularity()]), Markov(smoothing=2.0)], horizon=1).fit(trace)
    nested.save(tmp_path / "both")
    loaded = load_predictor(tmp_path / "both", expect=trace)
    assert loaded.members[1].smoothing == 2.0 and loaded.members[0].members[0].horizon == 1
    for event in routing_events(trace.select(np.array([0]))):
        nested.observe(event)
        loaded.observe(event)
        assert np.array_equal(nested.predict().probs_HE, loaded.predict().probs_HE)


def test_needs_what_its_members_need(trace: Trace, tmp_path) -> None:  # type: ignore[no-untyped-def]
    folder = write_checkpoint(tmp_path / "model")
    ensemble = Ensemble([GateLookahead(folder), TokenId()], horizon=1)
    assert ensemble.needs == ("hidden", "token_ids")
    for array in ensemble.needs:
        with pytest.raises(TraceError, match=f"needs the array '{array}'"):
            ensemble.fit(replace(trace, **{array: None}))
    alone = GateLookahead(folder, horizon=1).fit(trace)
    assert recall_at_k(ensemble.fit(trace), trace)[1] >= recall_at_k(alone, trace)[1] - 0.01
    assert ensemble.schema_.hidden == ensemble.members[0].schema_.hidden > 0


def test_padding_alone_says_nothing_and_batches_are_averaged(trace: Trace) -> None:
    ensemble = Ensemble([PreviousToken(), Markov()], horizon=1).fit(trace)
    ids = np.array([[0, 1], [2, 3]], np.int16)
    ensemble.observe(RoutingEvent(0, 0, ids, phase_T=np.full(2, 2, np.uint8)))
    assert not ensemble.predict().probs_HE.any()
    ensemble.observe(RoutingEvent(0, 1, ids, phase_T=np.ones(2, np.uint8)))
    assert ensemble.predict().probs_HE.shape == (2, 8)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([], "no members"),
        ([Oracle()], "oracle, which reads the future"),
        ([{"_target_": "rgpu.nothing.X", "parameters": {}}], "cannot be made"),
        ([{"_target_": "json.JSONDecoder", "parameters": {}}], "JSONDecoder; expected a predictor"),
    ],
)
def test_what_cannot_be_a_member_is_refused(trace: Trace, members: list[object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Ensemble(members).fit(trace)


def test_a_share_outside_0_to_1_is_refused(trace: Trace) -> None:
    with pytest.raises(InputError, match="holdout 1"):
        Ensemble([Popularity()], holdout=1.0).fit(trace)


def test_what_it_costs_is_what_its_members_cost(trace: Trace) -> None:
    members = [Popularity(), PreviousToken()]
    ensemble = Ensemble(members, horizon=1).fit(trace)
    counted = [m.work(0) for m in members]
    assert counted[0] is not None and counted[1] is not None
    assert ensemble.work(0) == (counted[0][0] + counted[1][0], counted[0][1] + counted[1][1] + 2 * 2 * 2 * 8)


def test_weights_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 4000))
    true = (rng.random(4000) < 1 / (1 + np.exp(-(np.array([1.5, -0.5, 0]) @ x - 1)))).astype(np.float64)
    found = fit_logistic(x, true, np.zeros(3), ridge=1e-12)
    sklearn = LogisticRegression(C=1e9, tol=1e-10).fit(x.T, true)
    assert np.allclose(found, [*sklearn.coef_[0], sklearn.intercept_[0]], atol=1e-4)


def test_weights_of_what_says_nothing_stay_put() -> None:
    weights = fit_logistic(np.zeros((2, 50)), np.tile([0.0, 1.0], 25), np.array([0.25, 0.75]))
    assert np.allclose(weights, [0.25, 0.75, 0], atol=1e-6)
    separable = fit_logistic(np.array([[-1.0, 1.0]]), np.array([0.0, 1.0]), np.zeros(1))
    assert np.isfinite(separable).all() and separable[0] > 3


def test_passes_are_those_that_are_scored(trace: Trace) -> None:
    rows, first = speaking_rows_of(trace)
    scored, sequence = speaking_passes(trace)
    assert np.array_equal(rows, scored)
    assert np.array_equal(first, np.r_[True, np.diff(sequence) > 0])


def test_one_document_is_fitted_and_weighed_alike() -> None:
    one = learnable_trace(sequences=1)
    assert held_out(one, 0.5, 0) == (one, one)


def test_shares_sum_to_k_in_their_order() -> None:
    probs = logistic(np.array([[[-3, 5, 4, 0]], [[-9, -9, -9, 9]]], np.float32))
    out = shared_out(probs, 2)
    assert np.allclose(out[0].sum(), 2, atol=1e-3) and out.max() < 1
    assert np.array_equal(np.argsort(out, kind="stable"), np.argsort(probs, kind="stable"))


def test_members_of_members_are_given_the_kernel() -> None:
    inner = GateLookahead()
    given = with_kernel(Ensemble([Ensemble([inner, Popularity()]), Popularity()]))
    assert given.members[0].members[0] is inner  # type: ignore[attr-defined]
    assert inner.forward is linear_forecast
