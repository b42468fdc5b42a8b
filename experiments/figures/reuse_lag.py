"""How many of a token's experts were used shortly before, against what popularity alone would give."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rgpu.experiments.figures import style

NAME = "reuse_lag"
TITLE = "Reuse of experts between tokens"
ORDER = 50
GUIDE = (
    "Solid: the share of a token's experts that the token `lag` positions earlier used in the same layer; "
    "dashed: the same if tokens drew independently from each layer's popularity. The distance between the two "
    "is what a cache can use beyond popularity; a slow decay means topic, a fast one means neighbours."
)
MEASURED, INDEPENDENT = "#0b62c4", "#8a8f98"


def draw(table: pd.DataFrame, figure: Figure) -> None:
    rows = style.select(table, "reuse", ["reuse", "reuse_independent"])
    rows = rows[rows["domain"].isna() & rows["layer"].notna()]
    if rows.empty:
        raise style.MissingRows("got 'reuse' rows without a layer; expected one a layer and lag; see docs/results.md")
    left, right = style.panels(figure, 2, width=4.4, sharey=True)
    for metric, colour, line, name in (
        ("reuse", MEASURED, "-", "measured"),
        ("reuse_independent", INDEPENDENT, "--", "independent draws"),
    ):
        own = rows[rows["metric"] == metric]
        if own.empty:
            continue
        by_lag = own.groupby("lag")["value"].agg(["mean", "min", "max"])
        lags = by_lag.index.to_numpy(float)
        mark: dict[str, Any] = {"color": colour, "linestyle": line, "marker": "o" if line == "-" else None}
        left.plot(lags, by_lag["mean"], label=name, **mark)
        left.fill_between(lags, by_lag["min"], by_lag["max"], color=colour, alpha=0.14, linewidth=0)
        nearest = own[own["lag"] == int(rows["lag"].min())].sort_values("layer")
        style.line(right, nearest["layer"], nearest, **mark)
    lags_seen = np.sort(rows["lag"].dropna().astype(int).unique())
    if len(lags_seen) > 1 and lags_seen[-1] >= 16:
        left.set_xscale("log", base=2)
        left.xaxis.set_major_formatter("{x:g}")
    left.set(xlabel="lag (tokens)", ylabel="share of experts used again", ylim=(0, None))
    left.set_title("by lag: mean over layers, band from least to most")
    right.set(xlabel="MoE layer")
    right.set_title(f"by layer, at lag {int(lags_seen[0])}")
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    style.percent(left.yaxis)
    style.legend_right(figure)
    style.footer(figure, rows, "Reuse never crosses a sequence boundary.")
