"""Recall of every predictor against MoE layers ahead, and against experts named, with published values beside."""

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from rgpu.experiments.figures import style
from rgpu.experiments.suites.published import marks

NAME = "predictor_recall"
TITLE = "Predictors: recall against horizon and width"
ORDER = 400
GUIDE = (
    "Left: share of the routed experts among the k named, by MoE layers ahead; at the right edge the same layer "
    "of the next token. Right: the same one layer ahead as more experts are named. Published values come from other models."
)


def draw(table: pd.DataFrame, figure: Figure) -> None:
    own, said = marks.select(table, NAME, ["recall", "recall_chance", "recall_wide"])
    rates = own[own["metric"] == "recall"]
    if rates.empty:
        raise style.MissingRows("got no recall of a predictor; expected some; see docs/results.md")
    top_k = int(rates["width"].min())
    left, right = style.panels(figure, 2, width=4.6, height=style.tall(rates["predictor"].nunique() + 7, 4.4))
    narrow, ahead = rates[rates["width"] == top_k], rates[(rates["case"] == "layer") & (rates["horizon"] == 1)]
    edge = float(narrow["horizon"].max()) + 1 if narrow["horizon"].notna().any() else 1.0
    names = style.policy_order(rates["predictor"].unique())
    for i, name in enumerate(names):
        look, text = style.policy_style(str(name)), str(name).replace("_", " ")
        layers = narrow[(narrow["predictor"] == name) & (narrow["case"] == "layer")].sort_values("horizon")
        style.line(left, layers["horizon"], layers, label=text, **look)
        token = narrow[(narrow["predictor"] == name) & (narrow["case"] == "token")]
        place = edge + 0.5 * (i / max(1, len(names) - 1) - 0.5)
        left.plot([place] * len(token), marks.numbers(token["value"]), **{**look, "linestyle": ""})
        part = ahead[ahead["predictor"] == name].sort_values("width")
        style.line(right, part["width"], part, label=text, **look)
    groups: Any = said[said["metric"] == "recall"].groupby("predictor", observed=True)
    for i, (kind, part) in enumerate(groups):
        shift = 0.06 * (i - 1)
        x = part["horizon"].astype(float) + shift
        marks.mark(left, x, part["value"], marker="osDv^"[i % 5], label=f"published, {str(kind).replace('_', ' ')}")
    wide = said[said["metric"] == "recall_wide"]
    marks.mark(right, [2 * top_k] * len(wide), wide["value"], marker="o", label="published, 2 k named")
    chance = own[own["metric"] == "recall_chance"].sort_values("width")
    right.plot(
        marks.numbers(chance["width"]),
        marks.numbers(chance["value"]),
        color="#8a8f98",
        linestyle=":",
        label="at random",
    )
    ticks = [*range(1, int(edge)), edge]
    left.set_xticks(ticks, [*(str(t) for t in ticks[:-1]), "next\ntoken"])
    left.set(xlabel="MoE layers ahead", ylabel=f"recall, {top_k} named", ylim=(0, 1.02))
    right.set(
        xlabel="experts named, one layer ahead", ylim=(0, 1.02), xticks=sorted(int(w) for w in rates["width"].unique())
    )
    for axis in (left, right):
        style.percent(axis.yaxis)
    style.legend_right(figure)
    marks.footer(figure, own, said, "Held-out documents; bands: 95 % cluster bootstrap over sequences.")
