"""Predictor recall against how far ahead it looks: MoE layers of this pass, and the next token."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rgpu.experiments.figures import style

NAME = "recall_horizon"
TITLE = "Predictor recall against horizon"
ORDER = 70
GUIDE = (
    "Recall at the width stated when predicting 1 to 4 MoE layers ahead in the same pass, and one token ahead "
    "in the same layer. Time to load grows with the horizon and recall falls with it: the two must be traded."
)


def draw(table: pd.DataFrame, figure: Figure) -> None:
    rows = style.select(table, "prediction", "recall")
    rows = rows[
        rows["layer"].isna() & rows["domain"].isna() & rows["case"].isin(["layer", "token"]) & rows["width"].notna()
    ]
    if rows.empty:
        raise style.MissingRows("got no 'prediction' recall rows over all layers with a case; see docs/results.md")
    width = int(rows["width"].min())  # rows hold k and more; the smallest is the router's own k
    rows = rows[rows["width"] == width]
    horizons = sorted(rows.loc[rows["case"] == "layer", "horizon"].dropna().astype(int).unique())
    token_at = (horizons[-1] if horizons else 0) + 1.2
    (axis,) = style.panels(figure, 1, width=6.4, height=3.8)
    names = style.policy_order(rows["predictor"].unique())
    for i, predictor in enumerate(names):
        own = rows[rows["predictor"] == predictor]
        look = style.policy_style(predictor)
        layers = own[own["case"] == "layer"].sort_values("horizon")
        if len(layers):
            style.line(axis, layers["horizon"], layers, label=predictor.replace("_", " "), **look)
        for _, token in own[own["case"] == "token"].head(1).iterrows():
            x, y = token_at + 0.08 * (i - (len(names) - 1) / 2), float(token["value"])
            text = None if len(layers) else predictor.replace("_", " ")
            axis.plot([x], [y], label=text, **{**look, "linestyle": "", "marker": look["marker"] or "o"})
            if np.isfinite(token["lo"]):
                axis.vlines(x, token["lo"], token["hi"], color=look["color"], linewidth=1.4)
    axis.axvline(token_at - 0.55, color="#c5c9d0", linewidth=1)
    has_token = bool((rows["case"] == "token").any())
    ticks = [*horizons, token_at] if has_token else horizons
    axis.set_xticks(ticks, [*(str(h) for h in horizons), "next\ntoken"][: len(ticks)])
    axis.set(xlabel="MoE layers ahead in the same pass", ylabel=f"recall at width {width}", ylim=(0, 1.02))
    style.percent(axis.yaxis)
    style.legend_right(figure)
    style.footer(figure, rows, "Held-out sequences; bands and bars: 95 % cluster bootstrap over sequences.")
