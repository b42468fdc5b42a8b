"""Every policy against every other at one capacity: better, worse, or cannot tell."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from rgpu.experiments.figures import style

NAME = "pair_verdicts"
TITLE = "Which policy is better: every pair"
ORDER = 35
GUIDE = (
    "Read along a row: blue, the policy of the row is better than that of the column; red, it is worse; grey, these "
    "sequences cannot tell. The number is the relative difference in percent. Holm's correction runs over all pairs of a "
    "panel; bounds and clairvoyant policies are left out, and hits are compared only among policies that load nothing ahead."
)
WORDS = {"better": 1.0, "worse": -1.0, "cannot tell": 0.0}
COLOURS = ListedColormap(["#e58b86", "#e7e9ec", "#8db8e8"])
WHAT = {
    "hit_rate": "hits",
    "loads_per_token": "loads per token",
    "bytes_per_token": "bytes per token",
    "tpot": "time per token",
}
LARGE = 18  # policies beyond which the cells carry no number


def draw(table: pd.DataFrame, figure: Figure) -> None:
    rows = style.select(table, "pair_difference", list(WHAT))
    rows = rows[np.isclose(rows["capacity_share"].astype(float), style.nearest_share(rows))]
    parts = [
        (f"{WHAT[str(metric)]}: {title}", part[part["metric"] == metric])
        for title, part in style.groups(rows)
        for metric in WHAT
        if (part["metric"] == metric).any()
    ]
    names = style.policy_order([*rows["policy"], *rows["baseline"]])
    width = max(4.6, 0.36 * len(names) + 1.8)
    axes = style.panels(figure, len(parts), columns=2, width=width, height=max(3.2, 0.3 * len(names) + 1.3))
    totals = _totals(table)
    for axis, (title, part) in zip(axes, parts, strict=True):
        _panel(axis, part, totals)
        axis.set_title(title)
    share = float(rows["capacity_share"].iloc[0])
    note = f"At {100 * share:.0f} % of the experts resident. Cells: difference in % of the column's policy."
    style.footer(figure, rows, note)


def _totals(table: pd.DataFrame) -> dict[Any, float]:
    """Value of each policy at each point, for the relative differences."""
    rows = table[
        (table["experiment"] == "capacity_sweep") & table["sequence"].isna() & table["metric"].isin(list(WHAT))
    ]
    keys = zip(*(rows[c] for c in ("policy", "metric", "scope", "reset", "slots")), strict=True)
    return dict(zip(keys, rows["value"].to_numpy(float), strict=True))


def _panel(axis: Axes, part: pd.DataFrame, totals: dict[Any, float]) -> None:
    names = style.policy_order([*part["policy"], *part["baseline"]])
    index = {n: i for i, n in enumerate(names)}
    cells = np.full((len(names), len(names)), np.nan)
    for row, value in zip(part.itertuples(), part["value"].to_numpy(float), strict=True):
        i, j = index[str(row.policy)], index[str(row.baseline)]
        cells[i, j] = WORDS[str(row.verdict)]
        cells[j, i] = -cells[i, j]
        for a, b, column, sign in ((i, j, row.baseline, 1), (j, i, row.policy, -1)):
            base = totals.get((column, row.metric, row.scope, row.reset, row.slots))
            if base and len(names) <= LARGE:
                axis.text(b, a, f"{100 * sign * value / base:+.0f}", ha="center", va="center", fontsize=7)
    axis.imshow(np.ma.masked_invalid(cells), cmap=COLOURS, vmin=-1, vmax=1, aspect="auto")
    labels = [style.policy_label(n) for n in names]
    axis.set_xticks(range(len(names)), labels, rotation=60, ha="right", fontsize=8)
    axis.set_yticks(range(len(names)), labels, fontsize=8)
    axis.grid(False)
