"""Recall of the next token's experts by what it is forecast from."""

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from rgpu.experiments.figures import style
from rgpu.experiments.suites.published import marks

NAME = "predictor_next_token"
TITLE = "Predictors: what tells the next token's experts"
ORDER = 404
GUIDE = (
    "Recall over all layers of the next token, forecast after this one, by source: one ridge regression on each, a table for "
    "the token's number, which is known only once it is sampled. Circles: k named, squares: 11/8 of k."
)
CASES = (
    "popularity",
    "previous token",
    "routed ids",
    "hidden state",
    "hidden states of all layers",
    "ids and hidden states",
    "the next token's number",
)


def draw(table: pd.DataFrame, figure: Figure) -> None:
    own, said = marks.select(table, NAME, ["recall", "recall_wide"])
    (axis,) = style.panels(figure, 1, width=6.2, height=4.0)
    cases = [c for c in CASES if c in set(own["case"])]
    for metric, marker, colour, label in (
        ("recall", "o", style.SERIES[0], "k named"),
        ("recall_wide", "s", style.SERIES[2], "11/8 of k named"),
    ):
        for i, case in enumerate(cases):
            part = own[(own["metric"] == metric) & (own["case"] == case)]
            look: dict[str, Any] = {"marker": marker, "color": colour, "linestyle": "", "label": label}
            axis.plot(marks.numbers(part["value"]), [-i] * len(part), **look)
            axis.hlines([-i] * len(part), marks.numbers(part["lo"]), marks.numbers(part["hi"]), color=colour)
            found = said[(said["metric"] == metric) & (said["case"] == case)]
            marks.mark(axis, found["value"], [-i] * len(found), marker=marker, label=f"published, {label}")
    axis.set_yticks([-i for i in range(len(cases))], cases)
    axis.set(xlabel="recall of the next token's experts, all layers", xlim=(0, 1.02))
    style.percent(axis.xaxis)
    style.legend_right(figure)
    marks.footer(figure, own, said, "Held-out documents; bars: 95 % cluster bootstrap over sequences.")
