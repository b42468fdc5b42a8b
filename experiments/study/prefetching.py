"""Prefetching, judged: the grid in time, the verdict, and the break-even atlas, on one trace. Entry: `run`."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from rgpu.experiments.injected import with_kernel
from rgpu.experiments.study import break_even
from rgpu.experiments.study.predicting_time import work_of
from rgpu.experiments.study.prefetch_time import COST, FEW, MACHINES, ORACLE, SHARE, Court, arms_of, rows
from rgpu.experiments.study.prefetch_verdict import DEFAULT, FREE, judge
from rgpu.predictors.gate_lookahead import GateLookahead
from rgpu.predictors.linear import Linear
from rgpu.results.rows import Context
from rgpu.traces.split import held_apart
from rgpu.traces.trace import Trace

GRID_SEQUENCES, ATLAS_SEQUENCES = 16, 12  # of the scored half; the verdict is on all of it
QUICK_SEQUENCES = 3  # of the quick atlas
SHARES = (0.25, 0.5)


def run(
    context: Context, calibration: Trace, scored: Trace, model: Path | str, out: Path, quick: bool,
    fitted: Mapping[str, Any] | None = None, seen: bool = False,
) -> tuple[list[pa.Table], dict[str, Any]]:  # fmt: skip
    """(rows of `prefetch_time` and `prefetch_break_even`, document with the verdicts and where the atlas lies).

    Traces with hidden states and of other documents: predictors are fitted on one, everything is timed on the other.
    `fitted`: predictors fitted on `calibration`, by name; gate look-ahead and the default's are made where they lack.
    `seen`: the default was chosen on scored documents.
    """
    began = time.perf_counter()
    held_apart(calibration, scored, "prefetching")
    found = dict(fitted or {})
    for needed in (GateLookahead(model=model), Linear(model=model)):
        if needed.name not in found:
            found[needed.name] = needed.fit(calibration)
    for predictor in found.values():
        with_kernel(predictor)
    names = [FREE.predictor, DEFAULT.predictor] if quick else list(found)
    some = scored.select(np.arange(scored.sequences)[: None if quick else GRID_SEQUENCES])
    at = context.at(method="replay", trace_tokens=some.tokens)
    work = {name: work_of(found[name], some) for name in names}
    court = Court(some, {name: found[name] for name in names}, predicting=work)
    shares, machines = ((SHARE,), FEW) if quick else (SHARES, FEW)
    arms = arms_of([*names, ORACLE], quick)
    with tqdm(total=len(arms) * len(shares), desc="prefetching", unit="arm", disable=None) as bar:
        tables = rows(court, at, arms, shares, machines, bar)
    judged = (FREE.predictor, DEFAULT.predictor)
    whole = court if quick else Court(scored, {n: found[n] for n in judged}, predicting=work)
    costs = (COST,) if quick else (COST, "reference")
    verdicts = [judge(whole, share, FEW if quick else MACHINES, cost, seen) for cost in costs for share in shares]
    few = scored.select(np.arange(scored.sequences)[: QUICK_SEQUENCES if quick else ATLAS_SEQUENCES])
    points = break_even.atlas(few, break_even.QUICK if quick else break_even.Grid())
    tables += break_even.rows(points, context.at(method="replay", trace_tokens=few.tokens))
    document = {
        "simulated": True,
        "sequences": {
            "calibration": calibration.sequences,
            "verdicts": scored.sequences,
            "grid": some.sequences,
            "atlas": few.sequences,
        },
        "verdicts": verdicts,
        "atlas": break_even.write(points, out),
        "atlas_points": len(points),
        "never_pays": int(sum(np.isnan(p["recall_needed"]) for p in points)),
        "seconds": round(time.perf_counter() - began, 1),
    }
    return tables, document
