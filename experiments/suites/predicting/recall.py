"""Recall against how far ahead and how many: every family, on text it did not see (BigMoeOnEdge, Fate, mixtral-offloading)."""

import pandas as pd
import pyarrow as pa

from rgpu.experiments.study.predictor_metrics import result_rows
from rgpu.experiments.suites.predicting.fitting import Bench, widths
from rgpu.experiments.suites.predicting.material import Material
from rgpu.experiments.suites.predicting.reading import each
from rgpu.experiments.suites.published.record import About, Criterion, near, note, shape

ABOUT = About(
    "recall",
    "predictor_recall",
    "Recall against horizon and against the number of experts named",
    "BigMoeOnEdge docs/expert-prediction.md; Fate, arXiv 2502.12224; Speculating Experts, arXiv 2603.19289; splch; "
    "mixtral-offloading, arXiv 2312.17238, figure 2 right",
    "share of the routed experts among those named, by MoE layers ahead, on text that trained nothing",
    "models of 30 to 80 billion weights with 48 layers or so; a family here is the one in predictors/, of 10,000 tokens",
)
MIDDLE = 0.807  # Qwen3.6-35B: the middle of the three published look-aheads
METRICS = ("recall", "mass", "exact", "miss_bytes")


def rows(bench: Bench, material: Material) -> list[pa.Table]:
    context = bench.context(material, ABOUT.figure)
    tables = [
        result_rows(context, row, predictor=name)
        for name in bench.usable(material)
        for row in bench.pooled(name, material)
        if row["metric"] in METRICS
    ]
    experts = material.subject.scored.header.num_experts
    return [
        *tables,
        *(context.rows("recall_chance", "share", w / experts, width=w) for w in widths(material.subject.scored)),
    ]


def by_horizon(found: pd.DataFrame, predictor: str, metric: str = "recall") -> dict[int, float]:
    """Value at the router's own width, by MoE layers ahead."""
    own = found[(found["predictor"] == predictor) & (found["case"] == "layer") & (found["metric"] == metric)]
    own = own[own["width"] == found["width"].min()]
    return {int(r.horizon): float(r.value) for r in each(own)}


def judge(found: pd.DataFrame) -> list[Criterion]:
    here = [str(p) for p in found["predictor"].dropna().unique()]
    wide = found[(found["metric"] == "recall") & (found["case"] == "layer") & (found["horizon"] == 1)]
    grows = {
        p: bool(wide[wide["predictor"] == p].sort_values("width")["value"].astype(float).is_monotonic_increasing)
        for p in here
    }
    criteria = [note("naming more experts never loses recall (it cannot)", all(grows.values()), grows)]
    if "gate_lookahead" in here:
        at = by_horizon(found, "gate_lookahead")
        falls = [at[h] > at[h + 1] for h in range(1, max(at))]
        criteria.append(shape("gate look-ahead names less the further it looks", all(falls), at))
        criteria.append(near("gate look-ahead one layer ahead:", at[1], MIDDLE, 0.05))
        lost = (at[1] - at[max(at)]) / (max(at) - 1)
        criteria.append(near("points lost a further layer:", lost, 0.0375, 0.005))
        learned = [p for p in here if p not in ("popularity", "previous_token", "gate_lookahead")]
        best = {p: by_horizon(found, p) for p in learned}
        if best:
            top = max(best, key=lambda p: best[p][1])
            gain = {h: best[top][h] - at[h] for h in at}
            criteria.append(note(f"what training adds to look-ahead ({top}), by layers ahead", gain[1] > 0, gain))
    tail = found[(found["metric"] == "recall") & (found["case"] == "token") & (found["width"] == found["width"].min())]
    ahead = {str(r.predictor): float(r.value) for r in each(tail)}
    criteria.append(note("next token, same layer", True, ahead))
    return criteria
