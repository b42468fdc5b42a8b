"""Recall at growing width of popularity, previous token and token number."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rgpu.experiments.figures import style
from rgpu.experiments.suites.published import marks

NAME = "field_plain_predictors"
TITLE = "Predictors without training: popularity, previous token, token number"
ORDER = 308
GUIDE = (
    "Share of a token's experts among those named, same layer, before the token runs; the first width is top-k. "
    "Anything that learns has to beat all three; the dotted line names experts at random."
)
NAMES = {"popularity": "popularity", "previous_token": "previous token", "token_id": "token number"}


def draw(table: pd.DataFrame, figure: Figure) -> None:
    own, said = marks.select(table, NAME, ["recall", "recall_chance"])
    (axis,) = style.panels(figure, 1, width=6.4, height=4.2)
    rates = own[own["metric"] == "recall"]
    widths = sorted(int(w) for w in rates["width"].dropna().unique())
    for i, name in enumerate(n for n in NAMES if n in set(rates["predictor"])):
        part = rates[rates["predictor"] == name].sort_values("width")
        look = (
            style.policy_style(name)
            if name in style.PREDICTORS
            else {"color": "#1b8a5a", "marker": "^", "linestyle": "-"}
        )
        style.line(axis, part["width"], part, label=NAMES[name], **look)
        found = said[said["predictor"] == name]
        if len(found):
            x = np.full(len(found), widths[0]) * (1 + 0.02 * (i - 1))
            marks.mark(
                axis,
                x,
                found["value"],
                marker="osD"[i],
                label=f"published, {NAMES[name]} (width k)",
                color=look["color"],
            )
    chance = (
        own[own["metric"] == "recall_chance"].sort_values("width") if "recall_chance" in set(own["metric"]) else own[:0]
    )
    if chance["width"].notna().any():
        axis.plot(
            chance["width"].astype(float),
            chance["value"].astype(float),
            color="#8a8f98",
            linestyle=":",
            label="at random",
        )
    axis.set(xlabel="experts named", ylabel="recall", ylim=(0, 1), xticks=widths)
    style.percent(axis.yaxis)
    style.legend_right(figure)
    marks.footer(figure, own, said, "Scored on text that the tables did not see.")
