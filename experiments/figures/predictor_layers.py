"""Recall of predictors by layer, before and after widening, and the cosine of router inputs by distance."""

import pandas as pd
from matplotlib.figure import Figure

from rgpu.experiments.figures import style
from rgpu.experiments.suites.published import marks

NAME = "predictor_layers"
TITLE = "Predictors: recall by layer, widening, and how far a hidden state turns"
ORDER = 401
GUIDE = (
    "Left: recall one layer ahead by the layer that is forecast. Middle: gate look-ahead with k and with 2 k experts named. "
    "Right: cosine between router inputs 1 to 3 layers apart, and top-1 of gate look-ahead over layers."
)


def draw(table: pd.DataFrame, figure: Figure) -> None:
    own, said = marks.select(table, NAME, ["recall", "top1", "hidden_cosine"])
    rates = own[(own["metric"] == "recall") & own["layer"].notna()]
    first, second, third = style.panels(
        figure, 3, columns=3, width=4.0, height=style.tall(own["predictor"].nunique() + 9, 4.2)
    )
    for name in style.policy_order(rates["predictor"].dropna().unique()):
        part = rates[(rates["predictor"] == name) & (rates["case"] == "width k")].sort_values("layer")
        look = style.policy_style(str(name))
        style.line(first, part["layer"], part, label=str(name).replace("_", " "), **look)
    gate = rates[rates["predictor"] == "gate_lookahead"]
    for i, case in enumerate(("width k", "width 2 k")):
        part = gate[gate["case"] == case].sort_values("layer")
        if len(part):
            style.line(
                second, part["layer"], part, label=f"gate look-ahead, {case}", color=style.SERIES[i], marker="os"[i]
            )
        found = said[(said["metric"] == "recall") & (said["case"] == case)]
        for value in found["value"]:
            marks.line(second, value, "published, k named, mean over layers")
    for value in said[(said["metric"] == "recall") & (said["case"] == "wider by confidence")]["value"]:
        marks.line(second, value, "published, wider set of unstated size", linestyle=":")
    cosine = own[own["metric"] == "hidden_cosine"]
    for i, (distance, part) in enumerate(cosine.groupby("horizon")):
        part = part.sort_values("layer")
        style.line(third, part["layer"], part, label=f"cosine, {distance} apart", color=style.SERIES[i], linestyle="--")
    top = own[(own["metric"] == "top1") & (own["predictor"] == "gate_lookahead") & (own["case"] == "width k")]
    for i, (distance, part) in enumerate(top.groupby("horizon")):
        part = part.sort_values("layer")
        if i < 3:
            style.line(third, part["layer"], part, label=f"top-1, {distance} ahead", color=style.SERIES[i], marker="o")
    tops = said[said["metric"] == "top1"]
    marks.mark(
        third, [0.1 * float(h) for h in tops["horizon"]], tops["value"], marker="D", label="published top-1, +1 to +3"
    )
    for axis in (first, second):
        axis.set(xlabel="MoE layer forecast", ylim=(0, 1.02))
        style.percent(axis.yaxis)
    first.set(ylabel="recall one layer ahead")
    third.set(xlabel="MoE layer", ylabel="cosine, top-1", ylim=(0, 1.02))
    style.legend_right(figure)
    marks.footer(figure, own, said, "Held-out documents; bands: 95 % cluster bootstrap over sequences.")
