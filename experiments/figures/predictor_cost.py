"""What a forecast costs against what it finds."""

import pandas as pd
from matplotlib.figure import Figure

from rgpu.experiments.figures import style
from rgpu.experiments.suites.published import marks

NAME = "predictor_cost"
TITLE = "Predictors: cost of a forecast against its recall"
ORDER = 406
GUIDE = (
    "Recall one layer ahead, k named, over microseconds an event (observe and predict, one thread here; bars: fastest "
    "and slowest tenth) and over bytes of fitted state. Up and left is better; the line joins what nothing beats in both."
)
PANELS = (("us", "microseconds an event"), ("state_bytes", "bytes of fitted state"))


def draw(table: pd.DataFrame, figure: Figure) -> None:
    own, said = marks.select(table, NAME, ["recall", "us", "state_bytes"])
    gain = {str(r["predictor"]): r for _, r in own[own["metric"] == "recall"].iterrows()}
    axes = style.panels(figure, 2, width=4.4, height=style.tall(own["predictor"].nunique() + 2, 4.0))
    for axis, (metric, label) in zip(axes, PANELS, strict=True):
        cost = {str(r["predictor"]): r for _, r in own[own["metric"] == metric].iterrows() if float(r["value"]) > 0}
        names = [n for n in style.policy_order(gain) if n in cost]
        for name in names:
            look, x, y = style.policy_style(name), float(cost[name]["value"]), gain[name]
            axis.plot(
                [x],
                [float(y["value"])],
                label=name.replace("_", " "),
                **{**look, "linestyle": "", "marker": look["marker"] or "o"},
            )
            axis.vlines([x], [float(y["lo"])], [float(y["hi"])], color=look["color"], linewidth=1.2)
            if metric == "us":
                axis.hlines(
                    [float(y["value"])],
                    [float(cost[name]["lo"])],
                    [float(cost[name]["hi"])],
                    color=look["color"],
                    linewidth=0.8,
                )
        front: list[str] = []
        for name in sorted(names, key=lambda n: (float(cost[n]["value"]), -float(gain[n]["value"]))):
            if not front or float(gain[name]["value"]) > float(gain[front[-1]]["value"]):
                front.append(name)
        spent = [float(cost[n]["value"]) for n in front]
        axis.plot(spent, [float(gain[n]["value"]) for n in front], color="#c5c9d0", linewidth=1, zorder=0)
        axis.set(xscale="log", xlabel=label, ylabel="recall one layer ahead", ylim=(0, 1.02))
        style.percent(axis.yaxis)
    style.legend_right(figure)
    marks.footer(figure, own, said, "Times depend on the machine and on what else it does; recall does not.")
