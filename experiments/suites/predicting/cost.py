"""What a forecast costs against what it finds: microseconds an event, bytes of state, operations, recall one layer ahead."""

import pandas as pd
import pyarrow as pa

from rgpu.experiments.study.predictor_cost import cost_of
from rgpu.experiments.study.predictor_metrics import pick, result_rows
from rgpu.experiments.suites.predicting.fitting import Bench
from rgpu.experiments.suites.predicting.material import Material
from rgpu.experiments.suites.predicting.reading import each
from rgpu.experiments.suites.published.record import About, Criterion, note

ABOUT = About(
    "cost",
    "predictor_cost",
    "Cost of a forecast against its recall",
    "not published as such: papers give recall or speed of their whole engine",
    "observe and predict of one event on one thread of this machine, against recall one layer ahead at width k",
    "the reference model is small (hidden size 256): a linear map grows with hidden size and experts, a table does not",
)
UNITS = {
    "us": "us/event",
    "bytes_read": "bytes/event",
    "flops": "flop/event",
    "parameters": "numbers",
    "state_bytes": "bytes",
}


def rows(bench: Bench, material: Material) -> list[pa.Table]:
    context = bench.context(material, ABOUT.figure)
    subject = material.subject
    tables = []
    for name in bench.usable(material):
        cost = cost_of(
            bench.fitted(name, material, subject.calibration, "calibration"),
            subject.scored,
            200 if bench.quick else 600,
        )
        own = pick(bench.pooled(name, material), horizon=1, width=subject.scored.header.top_k, metric="recall")
        at = context.at(predictor=name)
        tables += [result_rows(at, row, x=cost.us) for row in own]
        said = cost.to_json()
        tables.append(at.rows("us", UNITS["us"], cost.us, lo=cost.us_lo, hi=cost.us_hi, count=cost.events))
        tables += [at.rows(k, UNITS[k], said[k]) for k in UNITS if k != "us" and said[k] is not None]
    return tables


def front(cost: dict[str, float], gain: dict[str, float]) -> list[str]:
    """Names that nothing both cheaper and better beats, cheapest first."""
    kept: list[str] = []
    for name in sorted(cost, key=lambda n: (cost[n], -gain[n])):
        if not kept or gain[name] > gain[kept[-1]]:
            kept.append(name)
    return kept


def judge(found: pd.DataFrame) -> list[Criterion]:
    def by(metric: str) -> dict[str, float]:
        return {str(r.predictor): float(r.value) for r in each(found[found["metric"] == metric])}

    us, recall, held = by("us"), by("recall"), by("state_bytes")
    return [
        note("not beaten in microseconds and recall", True, {n: [us[n], recall[n]] for n in front(us, recall)}),
        note("not beaten in bytes of state and recall", True, {n: [held[n], recall[n]] for n in front(held, recall)}),
    ]
