"""The accuracy that is none: per-expert accuracy and exact match beside recall, for every family."""

import pandas as pd
import pyarrow as pa

from rgpu.experiments.study.predictor_metrics import pick, result_rows
from rgpu.experiments.suites.predicting.fitting import Bench
from rgpu.experiments.suites.predicting.material import Material
from rgpu.experiments.suites.predicting.reading import each
from rgpu.experiments.suites.published.record import About, Criterion, note, shape

ABOUT = About(
    "accuracy",
    "predictor_accuracy",
    "What is called accuracy: per-expert accuracy and exact match against recall",
    "MoE-Beyond, arXiv 2508.17137; SpecPrefetch, arXiv 2607.24787; MoE-SpeQ, arXiv 2511.14102",
    "accuracy over all experts, exact match and F1 of the same forecasts, k experts named, one layer ahead",
    "here 4 of 32 experts are routed (naming none is 87.5 % accurate), there 6 of 64 (90.6 %) and others; fewer experts are "
    "easier to name all of",
)
COMPLETE = 0.6  # of the recall: what exact match is at most where recall is about `NEAR`; published 0.52 and 0.49
NEAR, REACH = 0.9, 0.05
METRICS = ("accuracy", "exact", "recall", "f1", "f1_micro", "mass", "top1")


def rows(bench: Bench, material: Material) -> list[pa.Table]:
    context = bench.context(material, ABOUT.figure)
    header = material.subject.scored.header
    tables = [context.rows("accuracy_of_none", "share", 1 - header.top_k / header.num_experts)]
    for name in bench.usable(material):
        own = pick(bench.pooled(name, material), horizon=1)
        recall = next(r["value"] for r in own if r["metric"] == "recall" and r["width"] == header.top_k)
        for row in own:
            if row["metric"] in METRICS and row["width"] in (1, header.top_k):
                tables.append(result_rows(context, row, predictor=name, x=recall))
    return tables


def judge(found: pd.DataFrame) -> list[Criterion]:
    def by(metric: str) -> dict[str, float]:
        return {str(r.predictor): float(r.value) for r in each(found[found["metric"] == metric])}

    accuracy, recall, exact = by("accuracy"), by("recall"), by("exact_match")
    none = float(found[found["metric"] == "accuracy_of_none"]["value"].iloc[0])
    worst, best = min(recall, key=recall.__getitem__), max(recall, key=recall.__getitem__)
    said = {"SpecPrefetch": {"recall": 0.896, "exact": 0.465},
            "MoE-SpeQ": {"recall": 0.909, "exact": 0.441}}  # fmt: skip
    gap = {p: accuracy[p] - recall[p] for p in recall}
    narrow = accuracy[best] - accuracy[worst] < (recall[best] - recall[worst]) / 2
    measured = {p: [accuracy[p], recall[p]] for p in (worst, best)}
    top_k = int(found[found["metric"] == "recall"]["width"].iloc[0])
    closest = min(recall, key=lambda p: abs(recall[p] - NEAR))
    own = {"predictor": closest, "recall": recall[closest], "exact": exact[closest], "k": top_k}
    criteria = []
    if abs(recall[closest] - NEAR) <= REACH:
        text = f"where recall is about {NEAR}, exact match is at most {COMPLETE} of it"
        criteria.append(shape(text, exact[closest] <= COMPLETE * recall[closest], own, said))
        alone = {"exact": exact[closest], "recall to the power of k": recall[closest] ** top_k}
        criteria.append(
            note(
                "exact match is below what independent hits would give",
                alone["exact"] < recall[closest] ** top_k,
                alone,
            )
        )
    return [
        *criteria,  # what follows holds of any forecast of k experts
        note("accuracy is above recall", min(gap.values()) > 0, gap),
        note("accuracy tells the best from the worst less than half as well as recall does", narrow, measured),
        note("predictors less accurate than naming none", True, [p for p in accuracy if accuracy[p] < none]),
    ]
