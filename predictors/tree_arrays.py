"""Trees of scikit-learn's histogram gradient boosting as plain arrays, walked in numpy: nothing is pickled.

Legend: N rows, J features, Q nodes of all trees, R trees.
"""

from typing import Any

import numpy as np

ONE, FAR = np.float64(1), np.float64(700)
NAMES = ("feature_Q", "threshold_Q", "left_Q", "right_Q", "value_Q", "root_R", "about_2")


def exported(model: Any) -> dict[str, np.ndarray]:
    """Arrays of a fitted binary HistGradientBoostingClassifier without categories. A leaf is its own child; `about_2`
    holds the score before the first tree and the greatest depth."""
    trees = [group[0].nodes for group in model._predictors]
    starts = np.cumsum([0, *(len(nodes) for nodes in trees)])
    nodes = np.concatenate(trees)
    offset_Q = np.repeat(starts[:-1], np.diff(starts))
    own_Q, leaf_Q = np.arange(len(nodes)), nodes["is_leaf"].astype(bool)
    children = {
        f"{side}_Q": np.where(leaf_Q, own_Q, nodes[side].astype(np.int64) + offset_Q).astype(np.int32)
        for side in ("left", "right")
    }
    about_2 = np.array([float(model._baseline_prediction.ravel()[0]), float(nodes["depth"].max())])
    return children | {
        "feature_Q": np.where(leaf_Q, 0, nodes["feature_idx"]).astype(np.int32),
        "threshold_Q": np.where(leaf_Q, np.inf, nodes["num_threshold"]), "value_Q": nodes["value"].astype(np.float64),
        "root_R": starts[:-1].astype(np.int32), "about_2": about_2,
    }  # fmt: skip


def constant(chance: float) -> dict[str, np.ndarray]:
    """A model of one leaf that says `chance` of everything, in the form of `exported`."""
    score = np.log(max(chance, 1e-9)) - np.log(max(1 - chance, 1e-9))
    one = np.zeros(1, np.int32)
    return {
        "feature_Q": one, "threshold_Q": np.full(1, np.inf), "left_Q": one, "right_Q": one, "value_Q": np.zeros(1),
        "root_R": one, "about_2": np.array([score, 0.0]),
    }  # fmt: skip


def chances(trees: dict[str, np.ndarray], x_NJ: np.ndarray) -> np.ndarray:
    """float64 [N]: what the model's predict_proba says of the second class; row n from row n alone, trees added in order."""
    node_NR = np.repeat(trees["root_R"][None], len(x_NJ), 0)
    at_N1 = np.arange(len(x_NJ))[:, None]
    for _ in range(int(trees["about_2"][1])):
        goes_left = x_NJ[at_N1, trees["feature_Q"][node_NR]] <= trees["threshold_Q"][node_NR]
        node_NR = np.where(goes_left, trees["left_Q"][node_NR], trees["right_Q"][node_NR])
    score_N = np.full(len(x_NJ), trees["about_2"][0])
    for value_N in trees["value_Q"][node_NR].T:
        score_N = score_N + value_N
    chance_N: np.ndarray = ONE / (ONE + np.exp(np.minimum(-score_N, FAR)))
    return chance_N
