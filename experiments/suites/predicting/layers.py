"""Layer by layer: recall, top-1, what widening the set gives, and how little a hidden state turns from layer to layer.

Legend: N tokens, L MoE layers, D hidden size, S sequences.
"""

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from rgpu.experiments.study.predictor_metrics import result_rows
from rgpu.experiments.suites.predicting.fitting import Bench, clusters
from rgpu.experiments.suites.predicting.material import Material
from rgpu.experiments.suites.predicting.reading import each
from rgpu.experiments.suites.published.record import About, Criterion, near, note, shape
from rgpu.experiments.suites.published.values import published
from rgpu.traces.trace import Trace

ABOUT = About(
    "layers",
    "predictor_layers",
    "Recall by layer, before and after widening; top-1 and cosine of hidden states by distance",
    "Fate, arXiv 2502.12224; MoE-APEX, arXiv 2411.01433, figures 8a and 8b",
    "recall one layer ahead at every layer, named k and 2 k experts; top-1 and cosine of router inputs 1 to 3 layers apart",
    "other models; Fate widens by confidence to a size it does not state, here every set is 2 k, so the two are not compared; "
    "layer 0 has no forecast from a layer before it",
)
WIDER = "wider by confidence"  # Fate's sets


def rows(bench: Bench, material: Material) -> list[pa.Table]:
    context = bench.context(material, ABOUT.figure)
    scored = material.subject.scored
    top_k = scored.header.top_k
    tables = []
    for name in bench.usable(material):
        for row in bench.scores(name, material):
            if row["case"] != "layer" or row["metric"] not in ("recall", "top1"):
                continue
            if row["metric"] == "recall" and (row["horizon"] > 1 or row["width"] not in (top_k, 2 * top_k)):
                continue
            case = "width k" if row["width"] in (1, top_k) else "width 2 k"
            tables.append(result_rows(context, row, predictor=name, case=case))
        for row in bench.pooled(name, material):
            if row["case"] == "layer" and row["metric"] == "top1":
                tables.append(result_rows(context, row, predictor=name, case="over layers"))
    if scored.hidden is not None:
        for distance in (1, 2, 3):
            for layer in range(distance, scored.layers):
                sums, counts = cosines(scored, layer - distance, layer)
                at = context.at(layer=layer, horizon=distance, method="counted")
                tables.append(at.ratio("hidden_cosine", sums, counts, keep=False))
    return tables


def cosines(trace: Trace, first: int, second: int) -> tuple[np.ndarray, np.ndarray]:
    """Sum of cosines between the router inputs of two layers, and tokens: float64 [S] both."""
    hidden = trace.require("hidden", "the cosine of hidden states")
    a_ND, b_ND = (np.asarray(hidden[:, layer], np.float32) for layer in (first, second))
    norm_N = np.linalg.norm(a_ND, axis=1) * np.linalg.norm(b_ND, axis=1)
    cosine_N = np.einsum("nd,nd->n", a_ND, b_ND) / np.maximum(norm_N, 1e-12)
    owner_N = clusters(trace)
    return np.bincount(owner_N, cosine_N, trace.sequences), np.bincount(owner_N, minlength=trace.sequences).astype(
        float
    )


def judge(found: pd.DataFrame) -> list[Criterion]:
    criteria: list[Criterion] = []
    own = found[found["predictor"] == "gate_lookahead"]
    if len(own):
        recall = own[own["metric"] == "recall"]
        narrow, wide = (float(recall[recall["case"] == f"width {w}"]["value"].mean()) for w in ("k", "2 k"))
        fate = {w: published("layers", "recall", case=case) for w, case in (("k", "width k"), ("wider", WIDER))}
        measured = {"k": narrow, "2 k": wide, "Fate, of a width it does not state": fate}
        criteria.append(
            note("twice as many names find more at every layer (they cannot find less)", _wider(recall), measured)
        )
        tops = own[(own["metric"] == "top1") & (own["case"] == "over layers")]
        top = {int(r.horizon): float(r.value) for r in each(tops)}
        apex = {h: published("layers", "top1", horizon=h) for h in (1, 2, 3)}
        criteria.append(shape("top-1 falls with distance", all(top[h] >= top[h + 1] for h in (1, 2)), top, apex))
        criteria.append(near("top-1 one layer ahead:", top[1], apex[1], 0.03))
    cosine = found[found["metric"] == "hidden_cosine"]
    if len(cosine):
        groups: Any = cosine.groupby("horizon")
        at = {int(h): float(part["value"].astype(float).mean()) for h, part in groups}
        falls = all(at[h] > at[h + 1] for h in range(1, max(at)))
        criteria.append(shape("hidden states turn further with every layer between them", falls, at))
    best = found[(found["metric"] == "recall") & (found["case"] == "width k")]
    if len(best):
        spread = {}
        for name, part in best.groupby("predictor", observed=True):
            spread[str(name)] = [float(part["value"].astype(float).min()), float(part["value"].astype(float).max())]
        criteria.append(note("lowest and highest layer, one layer ahead", True, spread))
    return criteria


def _wider(recall: pd.DataFrame) -> bool:
    table = recall.pivot_table(index="layer", columns="case", values="value", observed=True).astype(float)
    return bool((table["width 2 k"] > table["width k"]).all())
