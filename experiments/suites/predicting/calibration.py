"""Whether a chance of 0.7 is one: reliability diagrams and expected calibration error, one layer ahead and one token ahead."""

import numpy as np
import pandas as pd
import pyarrow as pa

from rgpu.experiments.study.predictor_metrics import pick, result_rows
from rgpu.experiments.suites.predicting.fitting import Bench
from rgpu.experiments.suites.predicting.material import Material
from rgpu.experiments.suites.predicting.reading import each
from rgpu.experiments.suites.published.record import About, Criterion, note

ABOUT = About(
    "calibration",
    "predictor_calibration",
    "Reliability of forecast chances and expected calibration error",
    "not published for expert prediction; the method is Naeini, Cooper and Hauskrecht 2015",
    "chances of all (token, expert) pairs in ten bins of equal width, against how many were routed",
    "nothing to compare with: no published predictor reports its calibration",
)


def rows(bench: Bench, material: Material) -> list[pa.Table]:
    context = bench.context(material, ABOUT.figure)
    tables = []
    for name in bench.usable(material):
        pooled = bench.pooled(name, material)
        for horizon, case in ((1, "layer"), (0, "token")):
            for metric in ("ece", "log_loss", "tied", "ceiling"):
                for row in pick(pooled, horizon=horizon, metric=metric):
                    tables.append(result_rows(context, row, predictor=name))
            at = context.at(predictor=name, case=case, horizon=horizon or None, lag=None if horizon else 1)
            (row,) = pick(pooled, horizon=horizon, metric="ece")
            for bins_2S in np.moveaxis(row["bins"], 1, 0):  # pairs, chances, routed; [3, S]
                if not bins_2S[0].sum():
                    continue
                kept = bins_2S[0] > 0
                chance = float(bins_2S[1].sum() / bins_2S[0].sum())
                tables.append(at.ratio("routed", bins_2S[2][kept], bins_2S[0][kept], keep=False, x=chance))
    return tables


def judge(found: pd.DataFrame) -> list[Criterion]:
    ece = found[(found["metric"] == "ece") & (found["case"] == "layer")]
    loss = found[(found["metric"] == "log_loss") & (found["case"] == "layer")]
    criteria = [
        note(
            "expected calibration error, one layer ahead",
            True,
            {str(r.predictor): float(r.value) for r in each(ece)},
        ),
        note(
            "log-loss, nats a pair, one layer ahead",
            True,
            {str(r.predictor): float(r.value) for r in each(loss)},
        ),
    ]
    ceiling = found[found["metric"] == "ceiling"]
    if len(ceiling):
        criteria.append(note("recall of ranking by the stored logits", True, float(ceiling["value"].iloc[0])))
    return criteria
