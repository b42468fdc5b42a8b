"""One policy against each other: how much more or less it loads, and takes, with intervals and verdicts."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rgpu.experiments.figures import style

NAME = "comparison"
TITLE = "One policy against every other"
ORDER = 36
GUIDE = (
    "Each line is one other policy: left of zero, ours needs less than it. Blue: better; red: worse; grey: these sequences "
    "cannot tell. Bars are 95 % paired intervals, Holm-corrected over the policies of a panel."
)
COLOURS = {"better": "#0b62c4", "worse": "#d62f2f", "cannot tell": "#8a8f98"}
MOST = 6  # panels


def draw(table: pd.DataFrame, figure: Figure) -> None:
    rows = style.select(table, "comparison", ["loads_per_token", "tpot"])
    ours = str(rows["policy"].iloc[0])
    rows = rows[rows["policy"] == ours]
    loads, timed = rows[rows["metric"] == "loads_per_token"], rows[rows["metric"] == "tpot"]
    parts = []
    for share in sorted(set(loads["capacity_share"].to_numpy(float))):
        own = loads[loads["capacity_share"].to_numpy(float) == share]
        parts.append((f"loads, {100 * share:.0f} % resident", 1.0, "loads per token", own))
    if len(timed):
        near = timed[np.isclose(timed["capacity_share"].astype(float), style.nearest_share(timed))]
        share = 100 * style.nearest_share(timed)
        parts += [(f"{m}, {share:.0f} % resident (simulated)", 1e3, "ms per token", p)
                  for m, p in near.groupby("machine", observed=True)]  # fmt: skip
    parts = parts[:MOST]
    height = max(2.6, 0.2 * loads["baseline"].nunique() + 1.0)
    axes = style.panels(figure, len(parts), columns=3, width=3.9, height=height)
    for axis, (title, scale, unit, part) in zip(axes, parts, strict=True):
        _panel(axis, part, scale)
        axis.set_title(title)
        axis.set_xlabel(f"{unit}: {ours} minus the other")
    style.footer(figure, rows, "All policies on the same sequences at equal bytes, staging included.")


def _panel(axis: Axes, part: pd.DataFrame, scale: float) -> None:
    own = part.sort_values("value")
    value, lo, hi = (own[c].to_numpy(float) * scale for c in ("value", "lo", "hi"))
    y = np.arange(len(own))
    axis.axvline(0, color="#2b2f36", linewidth=0.9)
    for i, verdict in enumerate(own["verdict"].astype(str)):
        colour = COLOURS.get(verdict, "#8a8f98")
        axis.plot([lo[i], hi[i]], [y[i], y[i]], color=colour, linewidth=2.2)
        axis.plot([value[i]], [y[i]], "o", color=colour, markersize=4)
    axis.set_yticks(y, [style.policy_label(str(b)) for b in own["baseline"]], fontsize=7.5)
    axis.margins(y=0.03)
