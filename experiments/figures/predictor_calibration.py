"""Reliability of the chances that predictors give, and their expected calibration error."""

import pandas as pd
from matplotlib.figure import Figure

from rgpu.experiments.figures import style
from rgpu.experiments.suites.published import marks

NAME = "predictor_calibration"
TITLE = "Predictors: is a chance of 0.7 one?"
ORDER = 403
GUIDE = (
    "Share that was routed against the chance given, in ten equal bins, one layer and one token ahead; on the diagonal "
    "chances are frequencies. Right: expected calibration error, mean distance from the diagonal over all pairs."
)


def draw(table: pd.DataFrame, figure: Figure) -> None:
    own, said = marks.select(table, NAME, ["routed", "ece"])
    axes = style.panels(figure, 3, columns=3, width=4.0, height=style.tall(own["predictor"].nunique() + 2, 4.0))
    rates, error = own[own["metric"] == "routed"], own[own["metric"] == "ece"]
    names = style.policy_order(rates["predictor"].dropna().unique())
    for axis, (case, title) in zip(axes, (("layer", "one layer ahead"), ("token", "next token")), strict=False):
        for name in names:
            part = rates[(rates["predictor"] == name) & (rates["case"] == case)].sort_values("x")
            style.line(axis, part["x"], part, label=str(name).replace("_", " "), **style.policy_style(str(name)))
        axis.plot([0, 1], [0, 1], color="#8a8f98", linestyle=":")
        axis.set(title=title, xlabel="chance given", ylabel="share routed", xlim=(0, 1), ylim=(0, 1))
    for i, name in enumerate(names):
        look = style.policy_style(str(name))
        for case, marker in (("layer", "o"), ("token", "s")):
            part = error[(error["predictor"] == name) & (error["case"] == case)]
            axes[2].plot(
                marks.numbers(part["value"]), [-i] * len(part), marker=marker, color=look["color"], linestyle=""
            )
            axes[2].hlines([-i] * len(part), marks.numbers(part["lo"]), marks.numbers(part["hi"]), color=look["color"])
    axes[2].set_yticks([-i for i in range(len(names))], [str(n).replace("_", " ") for n in names], fontsize=8)
    axes[2].set(xlabel="calibration error (square: next token)", xlim=(0, None))
    style.legend_right(figure)
    marks.footer(figure, own, said, "Bands and bars: 95 % cluster bootstrap over sequences.")
