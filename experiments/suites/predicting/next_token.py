"""How predictable the next token's experts are from routed ids, from hidden states, from both, and once the token is known.

Reports contradict: 0.10 to 0.15 from the hidden state (Qwen3.8-Flash-Next, second hand), over 0.9 from routing history with a
state-space model (SeqMoE, arXiv 2609.12978, 11 named of k = 8). Here every source gets the same learner, a ridge regression
onto what is routed in every layer one token later, its penalty chosen on documents held out of the calibration half.

Legend: N tokens, L MoE layers, E experts, K top-k, D hidden size, F features, M = L * E targets, S sequences.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd
import pyarrow as pa

from rgpu.experiments.suites.predicting.fitting import Bench, clusters
from rgpu.experiments.suites.predicting.material import Material
from rgpu.experiments.suites.predicting.reading import each
from rgpu.experiments.suites.published.plain_predictors import token_table
from rgpu.experiments.suites.published.record import About, Criterion, near, note, shape
from rgpu.experiments.suites.published.values import published
from rgpu.results.rows import Context
from rgpu.traces import stats
from rgpu.traces.split import split
from rgpu.traces.trace import DECODE, Trace

ABOUT = About(
    "next_token",
    "predictor_next_token",
    "Recall of the next token's experts by what it is forecast from",
    "SeqMoE, arXiv 2609.12978 (over 0.9, 11 named of k = 8); a report on Qwen3.8-Flash-Next, second hand (0.10 to 0.15)",
    "all layers of the next token, forecast when the last layer of this one has been routed, k named and 11/8 of k",
    "other model and text; a ridge regression on each source, where theirs are a state-space model and an unnamed probe",
)
PENALTIES = (1e1, 1e2, 1e3, 1e4, 1e5)  # on standardised features
KEEP = (0.75, 0.95)  # of the running means of past routing, a token
HELD = 0.2  # of the documents, for the choice of the penalty
ROWS = 12_000  # that a regression is fitted on at most
HISTORY, HIDDEN, ALL_HIDDEN, BOTH = "routed ids", "hidden state", "hidden states of all layers", "ids and hidden states"
NUMBER, POPULAR, PREVIOUS = "the next token's number", "popularity", "previous token"


def pairs(trace: Trace) -> np.ndarray:
    """int64 [N]: tokens whose successor in the sequence was decoded and recorded."""
    owner_N = clusters(trace)
    good = np.r_[owner_N[1:] == owner_N[:-1], False]
    if trace.phase is not None:
        good &= np.r_[trace.phase[1:] == DECODE, False]
    recorded = (trace.expert_ids != trace.missing).all((1, 2))
    return np.flatnonzero(good & recorded & np.r_[recorded[1:], False])


def routed(trace: Trace) -> np.ndarray:
    """float32 [N, M]: 1 where the expert of the layer was routed."""
    hot_NLE = np.zeros((trace.tokens, trace.layers, trace.header.num_experts), np.float32)
    ids = np.where(trace.expert_ids == trace.missing, 0, trace.expert_ids).astype(np.int64)
    np.put_along_axis(hot_NLE, ids, 1, axis=2)
    hot_NLE[(trace.expert_ids == trace.missing).any((1, 2))] = 0
    return hot_NLE.reshape(trace.tokens, -1)


def history(trace: Trace, hot_NM: np.ndarray) -> np.ndarray:
    """float32 [N, 3 M]: what this token routed, and running means of its sequence that keep `KEEP` a token."""
    parts = [hot_NM]
    for keep in KEEP:
        mean_NM = np.empty_like(hot_NM)
        for a, b in zip(trace.seq_offsets[:-1], trace.seq_offsets[1:], strict=True):
            running = np.zeros(hot_NM.shape[1], np.float32)
            for n in range(a, b):
                running = np.float32(keep) * running + np.float32(1 - keep) * hot_NM[n]
                mean_NM[n] = running
        parts.append(mean_NM)
    return np.concatenate(parts, axis=1)


def sources(trace: Trace) -> dict[str, np.ndarray]:
    """Features float32 [N, F] by name."""
    hot_NM = routed(trace)
    found = {HISTORY: history(trace, hot_NM)}
    if trace.hidden is not None:
        hidden_NLD = np.asarray(trace.hidden, np.float32)
        found[HIDDEN] = hidden_NLD[:, -1]
        found[ALL_HIDDEN] = hidden_NLD.reshape(trace.tokens, -1)
        found[BOTH] = np.concatenate([found[HISTORY], found[ALL_HIDDEN]], axis=1)
    return found


def ridge(x_NF: np.ndarray, y_NM: np.ndarray, held_N: np.ndarray, recall: Callable[[np.ndarray, np.ndarray], float]
) -> Callable[[np.ndarray], np.ndarray]:  # fmt: skip
    """Scores from features, fitted on all rows. The penalty is the one that `recall(scores, y)` likes best on held-out rows
    (bool [N]) when the others alone are fitted; the first where none or all are held out."""

    def solved(rows: np.ndarray, penalties: tuple[float, ...]) -> list[Callable[[np.ndarray], np.ndarray]]:
        mean_F, std_F, centre_M = x_NF[rows].mean(0), x_NF[rows].std(0) + 1e-6, y_NM[rows].mean(0)
        z_NF = (x_NF[rows] - mean_F) / std_F
        y_RM = y_NM[rows] - centre_M
        few = (
            len(z_NF) < z_NF.shape[1]
        )  # then the Gram matrix of the rows is the smaller one, and gives the same weights
        gram = (z_NF @ z_NF.T if few else z_NF.T @ z_NF).astype(np.float64)
        value, vector = np.linalg.eigh(gram)
        turned = vector.T @ (y_RM if few else z_NF.T @ y_RM).astype(np.float64)
        made = [vector @ (turned / (np.maximum(value, 0) + p)[:, None]) for p in penalties]
        weights = [(z_NF.T.astype(np.float64) @ m if few else m).astype(np.float32) for m in made]

        def scores(weight_FM: np.ndarray, x: np.ndarray) -> np.ndarray:
            return np.asarray(((x - mean_F) / std_F) @ weight_FM + centre_M)

        return [partial(scores, weight_FM) for weight_FM in weights]

    best = PENALTIES[0]
    if held_N.any() and not held_N.all():
        tried = [recall(fitted(x_NF[held_N]), y_NM[held_N]) for fitted in solved(~held_N, PENALTIES)]
        best = PENALTIES[int(np.argmax(tried))]
    return solved(np.ones(len(x_NF), bool), (best,))[0]


def hits(score_NM: np.ndarray, hot_NM: np.ndarray, experts: int, width: int) -> np.ndarray:
    """int64 [N]: routed experts among the `width` best of each layer, over layers; ties by lowest id."""
    score_NLE = score_NM.reshape(len(score_NM), -1, experts)
    named_NLW = np.argsort(-score_NLE, axis=2, kind="stable")[:, :, :width]
    found = np.take_along_axis(hot_NM.reshape(score_NLE.shape), named_NLW, axis=2)
    return np.asarray(found.sum((1, 2)), np.int64)


def wide(top_k: int) -> int:
    """Experts named where 11 are of k = 8."""
    return -(-11 * top_k // 8)


def rows(bench: Bench, material: Material) -> list[pa.Table]:
    known, scored = material.subject.calibration, material.subject.scored
    top_k, experts = scored.header.top_k, scored.header.num_experts
    at_known, at_scored = pairs(known), pairs(scored)
    if len(at_known) > ROWS:
        at_known = np.sort(np.random.default_rng(0).permutation(at_known)[:ROWS])
    hot_known, hot_scored = routed(known), routed(scored)
    target_known, target_scored = hot_known[at_known + 1], hot_scored[at_scored + 1]
    context = bench.context(material, ABOUT.figure, lag=1)
    tables: list[pa.Table] = []

    def measured(name: str, score_NM: np.ndarray) -> None:
        tables.extend(_counted(context.at(case=name), scored, at_scored, score_NM, target_scored, experts))

    def recall(score_NM: np.ndarray, hot_NM: np.ndarray) -> float:
        return float(hits(score_NM, hot_NM, experts, top_k).sum())

    popular_M = stats.popularity(known).astype(np.float32).ravel()
    measured(POPULAR, np.tile(popular_M, (len(at_scored), 1)))
    measured(PREVIOUS, popular_M + hot_scored[at_scored])
    features, own = sources(known), sources(scored)
    held_N = ~np.isin(clusters(known)[at_known], split(known, 1 - HELD).calibration)
    for name in features:
        fitted = ridge(features[name][at_known], target_known, held_N, recall)
        measured(name, fitted(own[name][at_scored]))
    if known.token_ids is not None and scored.token_ids is not None:
        seen, uses_VLE = token_table(known)
        wanted = scored.token_ids[at_scored + 1]
        place = np.minimum(np.searchsorted(seen, wanted), len(seen) - 1)
        found = np.where((seen[place] == wanted)[:, None], uses_VLE[place].reshape(len(place), -1), 0)
        measured(NUMBER, popular_M + 1e4 * found.astype(np.float32))
    return tables


def _counted(
    at: Context, scored: Trace, rows_N: np.ndarray, score_NM: np.ndarray, hot_NM: np.ndarray, experts: int
) -> list[pa.Table]:
    top_k = scored.header.top_k
    owner_N = clusters(scored)[rows_N]
    asked_S = np.bincount(owner_N, minlength=scored.sequences) * scored.layers * top_k
    kept = asked_S > 0
    out = []
    for metric, width in (("recall", top_k), ("recall_wide", wide(top_k))):
        found_S = np.bincount(owner_N, hits(score_NM, hot_NM, experts, width), scored.sequences)
        out.append(at.ratio(metric, found_S[kept], asked_S[kept], keep=False, width=width))
    return out


def judge(found: pd.DataFrame) -> list[Criterion]:
    def by(metric: str) -> dict[str, float]:
        return {str(r.case): float(r.value) for r in each(found[found["metric"] == metric])}

    recall, wider = by("recall"), by("recall_wide")
    low = published("next_token", "recall", case=HIDDEN)
    high = published("next_token", "recall_wide", case=HISTORY)
    criteria = []
    if HIDDEN in recall:
        criteria.append(near("from the last hidden state:", recall[HIDDEN], low, 0.05))
        criteria.append(
            shape("the last hidden state names fewer than routed ids do", recall[HIDDEN] < recall[HISTORY], recall,
                  {HIDDEN: low, HISTORY: high})
        )  # fmt: skip
        criteria.append(note("what hidden states add to routed ids", True, recall[BOTH] - recall[HISTORY]))
    criteria.append(shape("routing history names over 0.9 with 11 of k = 8", wider[HISTORY] > high, wider, high))
    if NUMBER in recall:
        criteria.append(
            note(
                "knowing the next token names more than anything before it",
                recall[NUMBER] == max(recall.values()),
                recall,
            )
        )
    return criteria
