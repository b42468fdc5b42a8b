"""Accuracy over all experts and exact match against recall, for every predictor."""

import pandas as pd
from matplotlib.figure import Figure

from rgpu.experiments.figures import style
from rgpu.experiments.suites.published import marks

NAME = "predictor_accuracy"
TITLE = "Predictors: the accuracy that is none"
ORDER = 402
GUIDE = (
    "The same forecasts, one layer ahead, k named, scored two ways over their recall. Accuracy over all experts starts at the "
    "dotted line, which naming nothing reaches; exact match asks for all k at once. "
    "Dashed: an accuracy published without the recall that it goes with."
)
PANELS = (("accuracy", "accuracy over all experts"), ("exact_match", "exact match"))


def draw(table: pd.DataFrame, figure: Figure) -> None:
    own, said = marks.select(table, NAME, ["accuracy", "exact_match", "accuracy_of_none"])
    axes = style.panels(figure, 2, width=4.4, height=style.tall(own["predictor"].nunique() + 4, 4.2))
    for axis, (metric, label) in zip(axes, PANELS, strict=True):
        rates = own[own["metric"] == metric]
        for name in style.policy_order(rates["predictor"].dropna().unique()):
            part, look = rates[rates["predictor"] == name], style.policy_style(str(name))
            x, y = marks.numbers(part["x"]), marks.numbers(part["value"])
            axis.plot(
                x, y, label=str(name).replace("_", " "), **{**look, "linestyle": "", "marker": look["marker"] or "o"}
            )
            axis.vlines(x, marks.numbers(part["lo"]), marks.numbers(part["hi"]), color=look["color"], linewidth=1.2)
        found = said[said["metric"] == metric]
        placed = found["x"].notna()
        marks.mark(axis, found[placed]["x"], found[placed]["value"], label="published")
        for value in found[~placed]["value"]:
            marks.line(axis, value, "published without its recall")
        axis.plot([0, 1], [0, 1], color="#c5c9d0", linewidth=1)
        axis.set(xlabel="recall, k named", ylabel=label, xlim=(0, 1.02), ylim=(0, 1.02))
        style.percent(axis.xaxis)
        style.percent(axis.yaxis)
    for value in own[own["metric"] == "accuracy_of_none"]["value"]:
        axes[0].axhline(float(value), color="#8a8f98", linestyle=":", label="naming none")
    style.legend_right(figure)
    marks.footer(figure, own, said, "Bars: 95 % cluster bootstrap over sequences.")
