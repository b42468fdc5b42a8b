"""Trained on one thing, tested on another: domains, text against generations, short against long context, and a model against
its int4 self. Every test of a group is on the same forecasts, so differences are paired by sequence."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa

from rgpu.errors import InputError
from rgpu.experiments.study.predictor_metrics import difference, domains_of, pick, result_rows
from rgpu.experiments.suites.predicting.fitting import HORIZON, Bench
from rgpu.experiments.suites.predicting.material import Material, documents, only, window, without
from rgpu.experiments.suites.predicting.reading import each
from rgpu.experiments.suites.published.record import About, Criterion, note, shape
from rgpu.experiments.suites.published.values import published
from rgpu.replay.prediction import evaluate
from rgpu.replay.scores import Row, over_layers
from rgpu.traces.split import split
from rgpu.traces.trace import Trace

ABOUT = About(
    "transfer",
    "predictor_transfer",
    "Recall of predictors that were trained on something else",
    "JustVugg/colibri issue 233 (document chunks against generations); hot sets: llama.cpp PR 27861, thecodacus PR 5",
    "the same predictor, fitted on one side and scored on both, on documents that neither saw",
    "models and text; a group trains on equally many sequences, so less of them than elsewhere in this report",
)
CHOSEN = ("popularity", "previous_token", "gate_lookahead", "linear", "mlp")
HORIZONS = (1, 3, 0)


@dataclass(frozen=True, slots=True)
class Side:
    """One of the things that a group tells apart: what trains on it, and what is scored of it."""

    name: str
    train: Trace
    test: Trace


def sides(material: Material, quick: bool) -> Iterator[tuple[str, list[Side]]]:
    """Groups that this material has."""
    known, scored = material.subject.calibration, material.subject.scored
    domain_S, test_S = domains_of(known), domains_of(scored)
    shared = sorted((set(domain_S) & set(test_S)) - {""})
    counts = [int((domain_S == d).sum()) for d in shared]
    if len(shared) > 1 and min(counts) >= 2:
        shared = sorted(shared, key=lambda d: -int((domain_S == d).sum()))[:4]
        few = min(int((domain_S == d).sum()) for d in shared)
        yield "domain", [
            Side(d, known.select(np.flatnonzero(domain_S == d)[:few]), scored.select(np.flatnonzero(test_S == d)))
            for d in shared
        ]  # fmt: skip
    longest = int(np.diff(known.seq_offsets).max())
    first, second = longest // 3, 2 * longest // 3
    early, late = ((window(t, 0, first), window(t, second, longest)) for t in (known, scored))
    if min(t.sequences for t in (*early, *late)) >= 2:
        names = (f"tokens 0 to {first - 1}", f"tokens {second} to {longest - 1}")
        yield "context", [Side(n, a, b) for n, a, b in zip(names, early, late, strict=True)]
    if "text" in material.more:
        text, own = material.more["text"], documents(known)
        few = min(only(text, own).sequences, known.sequences)
        tests = without(text, own)
        yield (
            "text",
            [
                Side("generations", known.select(np.arange(few)), scored),
                Side("text", only(text, own).select(np.arange(few)), tests),
            ],
        )
    if "int4" in material.more:
        parts, whole = split(material.subject.whole), material.more["int4"]
        yield (
            "precision",
            [
                Side("float32", known, scored),
                Side("int4", whole.select(parts.calibration), whole.select(parts.scored)),
            ],
        )


def rows(bench: Bench, material: Material) -> list[pa.Table]:
    context = bench.context(material, ABOUT.figure)
    tables: list[pa.Table] = []
    usable = [n for n in CHOSEN if n in bench.usable(material)]
    for group, own in sides(material, bench.quick):
        for name in usable:
            found: dict[tuple[str, str], list[Row]] = {}
            for side in own:
                label = f"{group}-{side.name}".replace(" ", "_")
                try:
                    predictor = bench.fitted(name, material, side.train, label)
                except InputError as error:
                    bench.refused[material.subject.name][f"{name} ({group}: {side.name})"] = str(error)
                    continue
                for test in own:
                    made = evaluate(predictor, test.test, [test.test.header.top_k], HORIZON)
                    found[side.name, test.name] = [r for r in over_layers(made) if _shown(r, test.test)]
            for (trained, tested), made in found.items():
                at = context.at(predictor=name, baseline=trained, domain=tested)
                for row in made:
                    tables.append(result_rows(at, row, case=group, lag=None if row["horizon"] else 1))
                    if trained != tested and (tested, tested) in found:
                        (best,) = pick(found[tested, tested], horizon=row["horizon"])
                        gap, p = difference(row, best)
                        tables.append(
                            at.rows("recall_difference", "share", gap.estimate, lo=gap.lo, hi=gap.hi, p_value=p, case=group,
                                    width=row["width"], horizon=row["horizon"] or None, lag=None if row["horizon"] else 1)
                        )  # fmt: skip
    return tables


def _shown(row: Row, trace: Trace) -> bool:
    return row["metric"] == "recall" and row["width"] == trace.header.top_k and row["horizon"] in HORIZONS


def judge(found: pd.DataFrame) -> list[Criterion]:
    criteria: list[Criterion] = []
    gaps = found[found["metric"] == "recall_difference"]
    near_one = gaps[gaps["horizon"] == 1]
    for group, part in near_one.groupby("case", observed=True):
        lost = {
            str(name): float(own["value"].astype(float).mean())
            for name, own in part.groupby("predictor", observed=True)
        }
        criteria.append(note(f"{group}: mean recall lost one layer ahead by training on the other side", True, lost))
    hot = near_one[(near_one["case"] == "domain") & (near_one["predictor"] == "popularity")]
    if len(hot):
        sure = bool((hot["hi"].astype(float) < 0).all())
        criteria.append(shape("a hot list of another domain names less than the domain's own", sure,
                              {f"{r.baseline} on {r.domain}": float(r.value) for r in each(hot)}))  # fmt: skip
    text = found[(found["case"] == "text") & (found["metric"] == "recall") & (found["horizon"] == 3)]
    text = text[text["domain"] == "generations"]
    if len(text):
        at = {(str(r.predictor), str(r.baseline)): float(r.value) for r in each(text)}
        said = {b: published("transfer", "recall", baseline=b, predictor="linear") for b in ("text", "generations")}
        if ("linear", "text") in at:
            ours = {b: at["linear", b] for b in said}
            gap = gaps[(gaps["case"] == "text") & (gaps["horizon"] == 3) & (gaps["predictor"] == "linear")]
            gap = gap[gap["domain"] == "generations"]
            worse = bool((gap["hi"].astype(float) < 0).all())
            criteria.append(
                shape("a probe trained on text names less on generations, 3 layers ahead", worse, ours, said)
            )
            if ("gate_lookahead", "generations") in at:
                free = at["gate_lookahead", "generations"]
                criteria.append(
                    shape("look-ahead is within a point of the trained probe, 3 layers ahead",
                          abs(free - ours["generations"]) <= 0.01, {"look-ahead": free, **ours}, {"look-ahead": 0.716, **said})
                )  # fmt: skip
    return criteria
