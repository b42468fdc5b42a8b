from typing import Any

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier

from rgpu.errors import InputError
from rgpu.predictors.boosted_trees import BoostedTrees, _ranks
from rgpu.predictors.markov import Markov
from rgpu.predictors.tree_arrays import chances, constant, exported
from rgpu.replay.prediction import evaluate
from rgpu.traces.split import split
from tests.predicting import learnable_trace


@pytest.mark.parametrize("trees", [1, 25])
def test_arrays_say_what_scikit_learn_says(trees: int) -> None:
    rng = np.random.default_rng(0)
    x_NJ = rng.normal(size=(800, 5)).round(1)  # many values that equal a threshold
    y_N = rng.random(800) < 1 / (1 + np.exp(-x_NJ[:, 0] * x_NJ[:, 1] - x_NJ[:, 2]))
    model = HistGradientBoostingClassifier(max_iter=trees, max_leaf_nodes=9).fit(x_NJ, y_N)
    other_NJ = rng.normal(size=(300, 5)).round(1)
    wanted_N = model.predict_proba(other_NJ)[:, 1]
    found_N = chances(exported(model), other_NJ)
    assert np.allclose(found_N, wanted_N, rtol=0, atol=1e-15)
    assert np.array_equal(found_N[7:8], chances(exported(model), other_NJ[7:8]))


def test_one_leaf_says_one_thing() -> None:
    assert chances(constant(0.25), np.zeros((3, 6))) == pytest.approx(0.25)
    assert chances(constant(1.0), np.zeros((1, 6))) == pytest.approx(1)


def test_ranks_of_routed_experts() -> None:
    assert _ranks(np.array([[2, 0], [4, 1]]), 4, 2).tolist() == [[1, 2, 0, 2], [2, 1, 2, 2]]


def test_trees_beat_the_table_they_read() -> None:
    trace = learnable_trace(sequences=24, tokens=60)
    parts = split(trace)
    held = trace.select(parts.scored)

    def recall(predictor: Any) -> float:
        rows = evaluate(predictor.fit(trace, parts), held)
        return float(np.mean([r["value"] for r in rows if (r["metric"], r["width"]) == ("recall", 2)]))

    assert recall(BoostedTrees()) > recall(Markov())


def test_one_document_and_every_expert_chosen() -> None:
    single = learnable_trace(sequences=1)
    assert BoostedTrees(trees=2).fit(single).schema_.experts == 8


@pytest.mark.parametrize("bad", [{"trees": 0}, {"leaves": 1}, {"rate": 0.0}, {"pairs": 0}])
def test_bad_parameters(bad: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"got {next(iter(bad))}"):
        BoostedTrees(**bad).fit(learnable_trace())
