"""From the rows of a figure to its record: criteria on every trace, statuses, numbers, files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from rgpu.experiments.suites.published import marks
from rgpu.experiments.suites.published.record import NOT_TESTABLE, About, Criterion, overall, status_of
from rgpu.experiments.suites.published.values import values_of


def document(
    module: Any,
    rows: pd.DataFrame,
    reasons: Mapping[str, str],
    synthetic: set[str],
    index: Mapping[str, Any],
    folder: Path,
) -> dict[str, Any]:
    """The record of one figure as JSON data. `reasons`: traces on which it could not be computed, and why."""
    about: About = module.ABOUT
    own, _ = marks.apart(rows[rows["experiment"] == about.figure])
    own = own[own["sequence"].isna()]
    by_trace: dict[str, dict[str, Any]] = {}
    for trace in dict.fromkeys(own["trace"].astype(str)):
        criteria = judged(module, own[own["trace"] == trace])
        by_trace[trace] = {
            "status": status_of(criteria),
            "calibrated synthetic": trace in synthetic,
            "criteria": [c.to_json() for c in criteria],
        }
    for trace, why in reasons.items():
        by_trace[trace] = {"status": NOT_TESTABLE, "calibrated synthetic": trace in synthetic, "why": why}
    statuses = {trace: entry["status"] for trace, entry in by_trace.items()}
    files = [str(folder / file) for f in index["figures"] if f["name"] == about.figure for file in f["files"]]
    return {
        "id": about.id,
        "title": about.title,
        "paper": about.paper,
        "same": about.same,
        "differs": about.differs,
        "status": overall(statuses, synthetic, about.exists),
        "by_trace": statuses,
        "numbers": by_trace,
        "published": [
            {
                "metric": v.metric,
                "value": v.value,
                "unit": v.unit,
                "at": v.columns,
                "about": v.about,
                "source": v.source,
            }
            for v in values_of(about.id)
        ],
        "files": files,
    }


def judged(module: Any, rows: pd.DataFrame) -> list[Criterion]:
    """The criteria of a figure on the rows of one trace."""
    found: list[Criterion] = module.judge(rows)
    return found
