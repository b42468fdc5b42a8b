"""Recall of predictors around a change of topic."""

import pandas as pd
from matplotlib.figure import Figure

from rgpu.experiments.figures import style
from rgpu.experiments.suites.published import marks

NAME = "predictor_switches"
TITLE = "Predictors: recall around a topic switch"
ORDER = 407
GUIDE = (
    "Recall, k named, by tokens from a switch of topic: the 40 tokens before it, then ever longer spans. What remembers "
    "the sequence has to forget; what reads hidden states does not notice."
)


def draw(table: pd.DataFrame, figure: Figure) -> None:
    own, said = marks.select(table, NAME, "recall")
    axes = style.panels(figure, 2, width=4.4, height=style.tall(own["predictor"].nunique() + 2, 4.0))
    cells = list(dict.fromkeys(own.sort_values("offset")["domain"].astype(str)))
    for axis, (case, title) in zip(axes, (("layer", "one layer ahead"), ("token", "next token")), strict=True):
        rates = own[own["case"] == case]
        for name in style.policy_order(rates["predictor"].dropna().unique()):
            part = rates[rates["predictor"] == name].sort_values("offset")
            x = [cells.index(str(c)) for c in part["domain"]]
            style.line(axis, x, part, label=str(name).replace("_", " "), **style.policy_style(str(name)))
        axis.axvline(0.5, color="#c5c9d0", linewidth=1)
        axis.set_xticks(range(len(cells)), cells, fontsize=8, rotation=30)
        axis.set(title=title, xlabel="tokens from the switch", ylabel="recall", ylim=(0, 1.02))
        style.percent(axis.yaxis)
    style.legend_right(figure)
    marks.footer(figure, own, said, "Bands: 95 % cluster bootstrap over sequences.")
