"""Recall of what needs no training: popularity, the previous token, the token's own number (BigMoeOnEdge, splch, OpenMoE).

All three forecast a token's experts in every layer before the token is evaluated. Legend: N tokens, L MoE layers, E experts,
K top-k, S sequences, V token numbers.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from rgpu.experiments.suites.published.bench import Bench
from rgpu.experiments.suites.published.record import About, Criterion, near, shape
from rgpu.experiments.suites.published.subjects import Subject
from rgpu.experiments.suites.published.values import published
from rgpu.results.rows import Context
from rgpu.traces import stats
from rgpu.traces.trace import PROMPT, Trace

ABOUT = About(
    "plain_predictors",
    "field_plain_predictors",
    "Popularity, previous token and token number as predictors: recall at width k",
    "BigMoeOnEdge docs/expert-prediction.md and route traces; splch/predictability-aware-training; OpenMoE, arXiv 2402.01739",
    "share of a token's experts that are among the k named, same layer, before the token runs; popularity from other text",
    "other models and text; the table of token numbers falls back to popularity for numbers it never saw; OLMoE and Mixtral "
    "rows are counted from published tables of token and expert, each domain scored with a table of the others",
)
COUNTED = {
    "olmoe-1b-7b": ("olmoe-1b-7b-0924_token_expert_counts", 8),
    "mixtral-8x7b": ("mixtral-8x7b-v0.1_token_expert_counts", 2),
}
_FIRST = 1e6  # ranks what a predictor names before what popularity adds


def scored_tokens(trace: Trace) -> np.ndarray:
    """int64 [N]: decoded tokens that follow another token of their sequence, every expert recorded."""
    follows = np.ones(trace.tokens, bool)
    follows[trace.seq_offsets[:-1][np.diff(trace.seq_offsets) > 0]] = False
    if trace.phase is not None:
        follows &= trace.phase != PROMPT
    return np.flatnonzero(follows & (trace.expert_ids != trace.missing).all((1, 2)))


def token_table(trace: Trace) -> tuple[np.ndarray, np.ndarray]:
    """(token numbers seen [V], uses float32 [V, L, E]): which experts every token number was routed to."""
    tokens = trace.require("token_ids", "a table of token numbers")
    seen, row_N = np.unique(tokens, return_inverse=True)
    layers, experts = trace.layers, trace.header.num_experts
    uses = np.zeros((len(seen), layers, experts), np.float32)
    valid = trace.expert_ids < experts
    n, layer, _ = np.nonzero(valid)
    np.add.at(uses, (row_N[n], layer, trace.expert_ids[valid].astype(np.int64)), 1)
    return seen, uses


def scores(name: str, layer: int, rows_N: np.ndarray, trace: Trace, popular_LE: np.ndarray, table: Any) -> np.ndarray:
    """float32 [N, E]: how a predictor ranks the experts of one layer for some tokens; popularity breaks ties."""
    score_NE = np.repeat(popular_LE[layer].astype(np.float32)[None], len(rows_N), axis=0)
    if name == "previous_token":
        before_NK = trace.expert_ids[rows_N - 1, layer].astype(np.int64)
        at = np.arange(len(rows_N))[:, None]
        score_NE[at, np.minimum(before_NK, score_NE.shape[1] - 1)] += np.where(before_NK < score_NE.shape[1], _FIRST, 0)
    if name == "token_id":
        seen, uses = table
        wanted = trace.require("token_ids", "a table of token numbers")[rows_N]
        place = np.minimum(np.searchsorted(seen, wanted), len(seen) - 1)
        score_NE += np.where((seen[place] == wanted)[:, None], uses[place, layer], 0) * np.float32(_FIRST)
    return score_NE


def recall(
    name: str, trace: Trace, popular_LE: np.ndarray, table: Any, widths: list[int], rows_N: np.ndarray
) -> dict[int, np.ndarray]:
    """Experts named and routed, int64 [S], by width."""
    sequence_N = np.repeat(np.arange(trace.sequences), np.diff(trace.seq_offsets))[rows_N]
    found = {w: np.zeros(trace.sequences, np.int64) for w in widths}
    for layer in range(trace.layers):
        order_NW = np.argsort(-scores(name, layer, rows_N, trace, popular_LE, table), axis=1, kind="stable")[
            :, : widths[-1]
        ]
        hit_NW = (order_NW[:, :, None] == trace.expert_ids[rows_N, layer][:, None, :]).any(2).cumsum(1)
        for w in widths:
            found[w] += np.bincount(sequence_N, hit_NW[:, w - 1], trace.sequences).astype(np.int64)
    return found


def rows(bench: Bench, subject: Subject) -> list[pa.Table]:
    trace, known = subject.scored, subject.calibration
    top_k, experts = trace.header.top_k, trace.header.num_experts
    widths = [w for w in (top_k, 2 * top_k, 4 * top_k) if w <= experts]
    rows_N = scored_tokens(trace)
    if bench.quick:
        rows_N = rows_N[:2000]
    sequence_N = np.repeat(np.arange(trace.sequences), np.diff(trace.seq_offsets))[rows_N]
    asked = np.bincount(sequence_N, minlength=trace.sequences) * trace.layers * top_k
    names = ["popularity", "previous_token"]
    table = None
    if trace.token_ids is not None and known.token_ids is not None:
        names.append("token_id")
        table = token_table(known)
    popular_LE = stats.popularity(known)
    tables = []
    context = bench.context(subject, ABOUT.figure, method="counted", case="token", lag=1)
    for name in names:
        for width, hits in recall(name, trace, popular_LE, table, widths, rows_N).items():
            at = context.at(predictor=name, width=width)
            kept = asked > 0
            tables.append(at.ratio("recall", hits[kept], asked[kept], keep=False))
    chance = [context.rows("recall_chance", "share", w / experts, width=w) for w in widths]
    return tables + chance


def extra(bench: Bench, shared: Path) -> dict[str, list[pa.Table]]:
    """Rows by trace from published tables of (domain, layer, token number, expert, count): a domain, a table of the others."""
    out = {}
    for name, (file, top_k) in COUNTED.items():
        path = shared / "popularity" / f"{file}.npz"
        if path.exists():
            with np.load(path, allow_pickle=False) as data:
                about = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
                out[name] = _counted(bench, name, about, {k: data[k] for k in data.files}, top_k)
    return out


def _counted(bench: Bench, name: str, about: dict[str, Any], data: dict[str, np.ndarray], top_k: int) -> list[pa.Table]:
    uses = pd.DataFrame(data)
    experts = int(data["expert"].max()) + 1
    hits = {"popularity": 0.0, "token_id": 0.0}
    asked = 0.0
    for domain in range(len(about["domains"])):
        own, other = uses[uses["domain"] == domain], uses[uses["domain"] != domain]
        for _, layer in own.groupby("layer"):
            rest = other[other["layer"] == layer["layer"].iloc[0]]
            popular = np.bincount(rest["expert"], rest["count"], experts)
            listed = named_by_token(rest, layer["token_id"].to_numpy(), popular / popular.sum(), top_k)
            named = (listed == layer["expert"].to_numpy()[:, None]).any(1)
            hot = np.isin(layer["expert"], np.argsort(-popular, kind="stable")[:top_k])
            hits["token_id"] += float(layer["count"][named].sum())
            hits["popularity"] += float(layer["count"][hot].sum())
            asked += float(layer["count"].sum())
    layers = ", ".join(map(str, about["layers"]))
    source = f"{about['model']}, layers {layers}: token and expert counts (allenai/OLMoE, Apache-2.0)"
    context = Context(
        experiment=ABOUT.figure,
        model=about["model"],
        trace=name,
        source=source,
        trace_tokens=round(asked / top_k / len(about["layers"])),
        method="counted",
        provenance=bench.provenance,
    ).at(case="token", lag=1, width=top_k)
    tables = [
        context.rows("recall", "share", n / asked, predictor=p, numerator=n, denominator=asked) for p, n in hits.items()
    ]
    return [*tables, context.rows("recall_chance", "share", top_k / experts)]


def named_by_token(known: pd.DataFrame, wanted: np.ndarray, popular_E: np.ndarray, top_k: int) -> np.ndarray:
    """int64 [N, K]: the K experts a table names for each wanted token number, popularity for what it lacks."""
    seen, row = np.unique(known["token_id"].to_numpy(), return_inverse=True)
    table = np.tile(popular_E, (len(seen) + 1, 1))  # the last row: numbers never seen
    np.add.at(table, (row, known["expert"].to_numpy()), known["count"].to_numpy(float))
    best = np.argsort(-table, axis=1, kind="stable")[:, :top_k]
    place = np.minimum(np.searchsorted(seen, wanted), len(seen) - 1)
    return np.asarray(best[np.where(seen[place] == wanted, place, len(seen))])


def judge(found: pd.DataFrame) -> list[Criterion]:
    rates = found[found["metric"] == "recall"]
    rates = rates[rates["width"] == rates["width"].min()]
    at = {str(r.predictor): float(r.value) for r in rates.itertuples()}
    criteria = []
    if "previous_token" in at:
        margin = at["previous_token"] - at["popularity"]
        said = {
            m: published("plain_predictors", "recall", predictor="previous_token", domain=m)
            - published("plain_predictors", "recall", predictor="popularity", domain=m)
            for m in ("Qwen3-30B-A3B", "gemma-4-26B-A4B", "gpt-oss-120b")
        }
        criteria.append(
            shape(
                "the previous token names no more than a static hot list does, a point aside", margin <= 0.01, at, said
            )
        )
        if str(found["trace"].iloc[0]) == "gpt-oss-20b":
            criteria.append(near("previous token, gpt-oss family:", at["previous_token"], 0.179, 0.05))
    if "token_id" in at:
        criteria.append(
            shape(
                "the token's own number names more than popularity does",
                at["token_id"] > at["popularity"],
                at,
                {"token_id": 0.51, "popularity": 0.15},
            )
        )
        criteria.append(near("recall of the table of token numbers:", at["token_id"], 0.51, 0.05))
    return criteria
