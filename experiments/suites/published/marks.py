"""Published values on a figure: markers of their own, named under it, never mixed with what was computed here."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rgpu.experiments.figures import style
from rgpu.experiments.suites.published.values import values_of
from rgpu.results.rows import table

METHOD = "published"
LOOK: dict[str, Any] = {
    "linestyle": "none", "markerfacecolor": "none", "markeredgewidth": 1.3, "markersize": 8, "color": "#b3001b", "zorder": 4,
}  # fmt: skip


def value_rows(figure: str, id: str, trace: str, provenance: dict[str, Any]) -> list[pa.Table]:
    """The published values of figure `id` as rows beside those of one trace."""
    return [
        table(
            {**provenance, "experiment": figure, "trace": trace, "method": METHOD, "source": f"{v.source}: {v.about}",
             "synthetic": False, "simulated": False, "metric": v.metric, "unit": v.unit, "value": v.value, **v.columns}
        )
        for v in values_of(id)
    ]  # fmt: skip


def apart(rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(what was computed here, what was published)."""
    said = rows["method"] == METHOD
    return rows[~said], rows[said]


def select(rows: pd.DataFrame, figure: str, metrics: str | Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Both parts of a figure's rows; raises `MissingRows` where nothing was computed."""
    computed, _ = apart(rows)
    own = style.select(computed, figure, metrics)
    wanted = [metrics] if isinstance(metrics, str) else list(metrics)
    said = rows[(rows["experiment"] == figure) & (rows["method"] == METHOD) & rows["metric"].isin(wanted)]
    return own, said


def mark(axis: Axes, x: Any, y: Any, marker: str = "o", label: str = "published", **look: Any) -> None:
    """Published values as open markers."""
    axis.plot([float(v) for v in x], [float(v) for v in y], marker=marker, label=label, **{**LOOK, **look})


def line(axis: Axes, value: Any, label: str, linestyle: Any = (0, (2, 2))) -> None:
    """A published value that has no place along the axis."""
    axis.axhline(float(value), color=LOOK["color"], linestyle=linestyle, linewidth=1.2, label=label)


def footer(figure: Figure, own: pd.DataFrame, said: pd.DataFrame, note: str = "") -> None:
    """The caption of what was computed, and the sources of the published markers."""
    sources = sorted(set(said["source"].astype(str)))
    tail = f"Published (red, open): {'; '.join(sources)}." if sources else ""
    style.footer(figure, own, " ".join(part for part in (note, tail) if part))


def numbers(column: pd.Series) -> list[float]:
    return [float(v) for v in column]
