"""Recall of the next layer against the time per token that prefetching saves: a line a planner, a panel a machine."""

import pandas as pd
from matplotlib.figure import Figure

from rgpu.experiments.figures import style

NAME = "prefetch_recall"
TITLE = "Recall against time saved"
ORDER = 82
GUIDE = (
    "Each mark is a predictor, each line a planner with its eviction policy. If recall decided speed, all lines would rise "
    "and lie above zero; where a line stays below it, better forecasts only fill the link faster."
)
SHOWN = (("top_k", "lru"), ("threshold", "lru"), ("budgeted", "lru"), ("expected_value", "lru"), ("top_k", "joint_forecast"),
         ("expected_value", "joint_forecast"))  # fmt: skip


def draw(table: pd.DataFrame, figure: Figure) -> None:
    rows = style.select(table, "prefetch_time", ["tpot_saved", "tpot"])
    rows = rows[rows["capacity_share"] == style.nearest_share(rows)]
    saved = rows[(rows["metric"] == "tpot_saved") & rows["x"].notna()]
    if saved.empty:
        raise style.MissingRows("got no 'tpot_saved' rows with a recall as x; expected some; see docs/results.md")
    machines = list(dict.fromkeys(saved["machine"].astype(str)))
    for axis, machine in zip(style.panels(figure, len(machines), columns=3, width=3.6), machines, strict=True):
        base = rows[(rows["metric"] == "tpot") & (rows["machine"] == machine) & (rows["case"] == "none")]
        whole = float(base.loc[base["policy"] == "lru", "value"].iloc[0])
        for i, (planner, policy) in enumerate(SHOWN):
            part = saved[(saved["machine"] == machine) & (saved["case"] == planner) & (saved["policy"] == policy)]
            part = part.sort_values("x")
            if part.empty:
                continue
            colour = style.SERIES[i % len(style.SERIES)]
            style.line(axis, part["x"], part, scale=1 / whole, label=_label(planner, policy), color=colour, marker="o")
        axis.axhline(0, color="#555b65", linewidth=1)
        axis.set(xlabel="recall of the next layer's experts", ylabel="time per token saved", title=machine)
        style.percent(axis.xaxis)
        style.percent(axis.yaxis)
    style.legend_right(figure)
    style.footer(
        figure,
        saved,
        "Each mark a predictor, 100 % a perfect forecast; against LRU without prefetch. Times are simulated.",
    )


def _label(planner: str, policy: str) -> str:
    return f"{planner} + {policy}" if policy != "lru" else planner
