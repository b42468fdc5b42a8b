"""Recall around a change of topic, by distance from it in tokens."""

import pandas as pd
import pyarrow as pa

from rgpu.errors import InputError
from rgpu.experiments.study.predictor_metrics import DISTANCES, around_switches, cell_name, result_rows
from rgpu.experiments.suites.predicting.fitting import HORIZON, Bench
from rgpu.experiments.suites.predicting.material import Material
from rgpu.experiments.suites.predicting.reading import each
from rgpu.experiments.suites.published.record import About, Criterion, NotTestableError, note

ABOUT = About(
    "switches",
    "predictor_switches",
    "Recall by distance from a topic switch",
    "not published",
    "held-out text of one domain, then another, read token by token; recall at width k by tokens from the switch",
    "the text is not the model's own; documents that trained a predictor are left out",
)


def rows(bench: Bench, material: Material) -> list[pa.Table]:
    if "switch" not in material.more:
        raise NotTestableError("no trace with topic switches of this model (the quick form reads none again)")
    trace, known = material.more["switch"], material.subject.calibration
    top_k = trace.header.top_k
    context = bench.context(material, ABOUT.figure).at(
        source="rgpu reference model reading held-out text token by token (not on-policy)", trace_tokens=trace.tokens
    )
    tables = []
    for name in bench.usable(material):
        predictor = bench.fitted(name, material, known, "calibration")
        try:
            found, _ = around_switches(predictor, trace, known, HORIZON, [top_k])
        except InputError as error:
            bench.refused[material.subject.name][f"{name} (switches)"] = str(error)
            continue
        for row in found:
            if row["metric"] == "recall" and row["horizon"] in (0, 1):
                offset = DISTANCES[row["cell"]]
                tables.append(result_rows(context, row, predictor=name, offset=offset, domain=cell_name(row["cell"])))
    return tables


def judge(found: pd.DataFrame) -> list[Criterion]:
    criteria = []
    for case, text in (("layer", "one layer ahead"), ("token", "next token")):
        own = found[found["case"] == case]
        drop = {}
        for name, part in own.groupby("predictor", observed=True):
            at = {int(r.offset): float(r.value) for r in each(part)}
            drop[str(name)] = at[DISTANCES[1]] - at[DISTANCES[0]]
        criteria.append(note(f"recall in the first tokens after a switch less that before it, {text}", True, drop))
    return criteria
