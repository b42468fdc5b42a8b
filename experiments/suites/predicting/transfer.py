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
from rgpu.results.derive import MARGIN
from rgpu.results.rows import Context
from rgpu.results.statistics import CANNOT_TELL, MIN_CLUSTERS, Interval, holm, verdict
from rgpu.traces.split import held_apart, split
from rgpu.traces.trace import Trace

WORDS = {"higher": "better", "lower": "worse"}  # of being trained on the other side
ABOUT = About(
    "transfer",
    "predictor_transfer",
    "Recall of predictors that were trained on something else",
    "JustVugg/colibri issue 233 (document chunks against generations); hot sets: llama.cpp PR 27861, thecodacus PR 5",
    "the same predictor, fitted on one side and scored on both, on documents that neither saw",
    "models and text; a group trains on equally many sequences, so less of them than elsewhere in this report",
)
QUICKLY = ("popularity", "previous_token", "gate_lookahead", "linear", "mlp")  # of the quick form
LONG = ("boosted_trees", "history_gru", "history_transformer")  # to be trained ten times over
HORIZONS = (1, 3, 0)


@dataclass(frozen=True, slots=True)
class Side:
    """One of the things that a group tells apart: what trains on it, and what is scored of it."""

    name: str
    train: Trace
    test: Trace


@dataclass(frozen=True, slots=True)
class Gap:
    """What a predictor loses by having been trained on another side. `row`: its recall there."""

    predictor: str
    trained: str
    tested: str
    row: Row
    difference: Interval
    p: float
    clusters: int


def sides(material: Material) -> Iterator[tuple[str, list[Side]]]:
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
    usable = [n for n in bench.usable(material) if (n in QUICKLY if bench.quick else n not in LONG)]
    for group, own in sides(material):
        gaps: list[Gap] = []
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
                    held_apart(side.train, test.test, f"{name} ({group}: {side.name} on {test.name})")
                    made = evaluate(predictor, test.test, [test.test.header.top_k], HORIZON)
                    found[side.name, test.name] = [r for r in over_layers(made) if _shown(r, test.test)]
            for (trained, tested), made in found.items():
                at = context.at(predictor=name, baseline=trained, domain=tested)
                for row in made:
                    tables.append(result_rows(at, row, case=group, lag=None if row["horizon"] else 1))
                    if trained != tested and (tested, tested) in found:
                        (best,) = pick(found[tested, tested], horizon=row["horizon"])
                        gap, p = difference(row, best, MARGIN)
                        clusters = int((best["denominators"] > 0).sum())
                        gaps.append(Gap(name, trained, tested, row, gap, p, clusters))
        for horizon in HORIZONS:
            part = [g for g in gaps if g.row["horizon"] == horizon]
            tables += _gap_rows(context.at(case=group, horizon=horizon or None, lag=None if horizon else 1), part)
    return tables


def _gap_rows(at: Context, gaps: list[Gap]) -> Iterator[pa.Table]:
    """Differences of a group at one horizon, corrected over all of its predictors and sides."""
    for gap, p in zip(gaps, holm([g.p for g in gaps]), strict=True):
        found, said = gap.difference, verdict(gap.difference, float(p), margin=MARGIN, clusters=gap.clusters)
        yield at.rows("recall_difference", "share", found.estimate, lo=found.lo, hi=found.hi, p_value=float(p),
                      verdict=WORDS.get(said, said), count=gap.clusters, width=gap.row["width"], predictor=gap.predictor,
                      baseline=gap.trained, domain=gap.tested)  # fmt: skip


def _shown(row: Row, trace: Trace) -> bool:
    return row["metric"] == "recall" and row["width"] == trace.header.top_k and row["horizon"] in HORIZONS


def _spread(lost: pd.Series) -> dict[str, float]:
    """Mean, least and most: signed, as what one side gains would hide what another loses in the mean."""
    return {"mean": float(lost.mean()), "least": float(lost.min()), "most": float(lost.max())}


def _told(gaps: pd.DataFrame) -> pd.DataFrame:
    """Differences with a verdict; the others decide nothing."""
    return gaps[gaps["verdict"].isin(list(WORDS.values()))]


def judge(found: pd.DataFrame) -> list[Criterion]:
    criteria: list[Criterion] = []
    gaps = found[found["metric"] == "recall_difference"]
    near_one = gaps[gaps["horizon"] == 1]
    for group, part in near_one.groupby("case", observed=True):
        lost = {
            str(name): _spread(own["value"].astype(float)) for name, own in part.groupby("predictor", observed=True)
        }
        said_of = f"{group}: recall lost one layer ahead by training on another side, mean, least and most over sides"
        criteria.append(note(said_of, True, lost))
    hot = near_one[(near_one["case"] == "domain") & (near_one["predictor"] == "popularity")]
    told = _told(hot)
    if len(told):
        claim = f"a hot list of another domain names less than the domain's own ({len(told)} of {len(hot)} pairs can be told)"
        measured = {f"{r.baseline} on {r.domain}": float(r.value) for r in each(told)}
        criteria.append(shape(claim, (told["verdict"] == "worse").all(), measured))
    texts = found[(found["case"] == "text") & (found["metric"] == "recall") & (found["horizon"] == 3)]
    texts = texts[texts["domain"] == "generations"]
    if len(texts):
        at = {(str(r.predictor), str(r.baseline)): float(r.value) for r in each(texts)}
        said = {b: published("transfer", "recall", baseline=b, predictor="linear") for b in ("text", "generations")}
        if ("linear", "text") in at:
            ours = {b: at["linear", b] for b in said}
            gap = gaps[(gaps["case"] == "text") & (gaps["horizon"] == 3) & (gaps["predictor"] == "linear")]
            gap = gap[gap["domain"] == "generations"]
            less = "a probe trained on text names less on generations, 3 layers ahead"
            if len(told := _told(gap)):
                criteria.append(shape(less, (told["verdict"] == "worse").all(), ours, said))
            else:
                criteria.append(note(f"{less}: {CANNOT_TELL}", False, ours))
            if ("gate_lookahead", "generations") in at and int(texts["count"].min()) >= MIN_CLUSTERS:
                free = at["gate_lookahead", "generations"]
                criteria.append(
                    shape("look-ahead is within a point of the trained probe, 3 layers ahead",
                          abs(free - ours["generations"]) <= 0.01, {"look-ahead": free, **ours}, {"look-ahead": 0.716, **said})
                )  # fmt: skip
    return criteria
