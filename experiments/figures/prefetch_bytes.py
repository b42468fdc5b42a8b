"""What becomes of prefetched bytes: useful, late, wasted, cancelled, pending, and those that did harm, by planner."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rgpu.experiments.figures import style

NAME = "prefetch_bytes"
TITLE = "What becomes of prefetched bytes"
ORDER = 84
GUIDE = (
    "Bytes submitted ahead of demand in a forward pass (a generated token is one, a prompt is one). Useful ones had landed "
    "before use; of late ones the rest was waited for; the diamond counts those whose evicted expert was then missed, "
    "whatever else became of them."
)
ENDS = {"useful": "#1b8a5a", "late": "#f08a24", "wasted": "#d62f2f", "cancelled": "#b9bec6", "pending": "#5aa9e6"}


def draw(table: pd.DataFrame, figure: Figure) -> None:
    metrics = [f"bytes_{name}" for name in (*ENDS, "harmful")]
    rows = style.select(table, "prefetch_time", metrics)
    rows = rows[rows["capacity_share"] == style.nearest_share(rows)]
    machine = str(rows["machine"].iloc[rows["machine"].astype(str).eq("rtx4090").to_numpy().argmax()])
    rows = rows[rows["machine"] == machine]
    rows = rows.assign(arm=rows["case"].astype(str) + np.where(rows["policy"] == "lru", "", " +"))
    names = style.policy_order(rows["predictor"].astype(str))
    axes = style.panels(figure, len(names), columns=3, width=3.4, height=3.4, sharey=True)
    for axis, name in zip(axes, names, strict=True):
        own = rows[rows["predictor"] == name].pivot_table(index="arm", columns="metric", values="value", sort=False)
        own = own.reindex(columns=metrics).fillna(0.0) / 1e6
        bottom = np.zeros(len(own))
        for end, colour in ENDS.items():
            axis.bar(range(len(own)), own[f"bytes_{end}"], 0.7, bottom=bottom, color=colour, label=end)
            bottom += own[f"bytes_{end}"].to_numpy(float)
        axis.plot(range(len(own)), own["bytes_harmful"], "D", color="#000000", markersize=4, label="harmful")
        axis.set_xticks(range(len(own)), own.index, rotation=40, ha="right", fontsize=8)
        axis.set(title=name, ylabel="MB a pass" if axis in axes[::3] else "")
    style.legend_right(figure)
    style.footer(figure, rows, f"{machine}; a plus evicts by the same forecast. Times are simulated.")
