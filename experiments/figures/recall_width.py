"""Predictor recall against how many experts it may name, for the next MoE layer and for the next token."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rgpu.experiments.figures import style

NAME = "recall_width"
TITLE = "Predictor recall against width"
ORDER = 60
GUIDE = (
    "Share of the routed experts that a predictor named, when it may name `width` of them (mean over layers, "
    "held-out sequences). The dotted line names experts at random; a prefetcher that loads `width` experts pays "
    "for all of them, so recall at a small width is what matters."
)


def draw(table: pd.DataFrame, figure: Figure) -> None:
    rows = style.select(table, "prediction", "recall")
    rows = rows[rows["layer"].isna() & rows["domain"].isna() & rows["width"].notna()]
    ahead = rows[rows["case"] == "layer"]
    arms = [
        ("next MoE layer", ahead[ahead["horizon"] == ahead["horizon"].min()]),
        ("same layer, next token", rows[rows["case"] == "token"]),
    ]
    arms = [(title, part) for title, part in arms if len(part)]
    if not arms:
        raise style.MissingRows("got no 'prediction' recall rows over all layers with a width; see docs/results.md")
    axes = style.panels(figure, len(arms), sharey=True)
    for axis, (title, part) in zip(axes, arms, strict=True):
        for predictor in style.policy_order(part["predictor"].unique()):
            own = part[part["predictor"] == predictor].sort_values("width")
            name = predictor.replace("_", " ")
            style.line(axis, own["width"], own, label=name, **style.policy_style(predictor))
        _chance(axis, table)
        axis.set(title=title, xlabel="width: experts named", ylim=(0, 1.02))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        style.percent(axis.yaxis)
    axes[0].set_ylabel("recall of routed experts")
    style.legend_right(figure)
    style.footer(figure, rows, "Held-out sequences; bands: 95 % cluster bootstrap over sequences.")


def _chance(axis: Axes, table: pd.DataFrame) -> None:
    """Recall of naming experts at random, where the rows say it."""
    try:
        chance = style.select(table, "prediction", "recall_chance").drop_duplicates("width").sort_values("width")
    except style.MissingRows:
        return
    axis.plot(chance["width"].astype(float), chance["value"], color="#8a8f98", linestyle=(0, (1, 2)), label="at random")
