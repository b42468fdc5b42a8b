"""How the claims' figures are drawn: arms as dots with intervals, one panel a metric."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rgpu.experiments.figures import style

WORDS = {
    "hit_rate": "hit rate",
    "loads_per_token": "loads per token",
    "surge": "miss rate after the switch minus before",
    "miss_after_return": "miss rate after the return",
    "return_excess": "the same, minus the settled rate",
    "window_variance": "variance of the hit rate over windows",
}
SHARES = ("hit_rate", "surge", "miss_after_return", "return_excess")


def dots(
    table: pd.DataFrame, figure: Figure, experiment: str, metrics: list[str], note: str,
    marks: Mapping[str, tuple[float, str]] | None = None,
) -> None:  # fmt: skip
    """`marks`: by metric, a published value and its name, drawn as a line of its own."""
    rows = style.select(table, experiment, metrics)
    shown = [m for m in metrics if m in set(rows["metric"])]
    arms = list(dict.fromkeys(rows["policy"]))
    axes = style.panels(figure, len(shown), columns=2, height=1.3 + 0.3 * len(arms), sharey=True)
    for axis, metric in zip(axes, shown, strict=True):
        part = rows[rows["metric"] == metric].drop_duplicates("policy", keep="last").set_index("policy").reindex(arms)
        y = np.arange(len(arms))[::-1]
        x = part["value"].to_numpy(float)
        bars = np.stack([x - part["lo"].to_numpy(float), part["hi"].to_numpy(float) - x])
        axis.errorbar(
            x, y, xerr=np.nan_to_num(np.maximum(bars, 0)), fmt="o", color="#0b62c4", ecolor="#7a9cc6", capsize=3
        )
        axis.set(yticks=y, yticklabels=arms, xlabel=WORDS[metric], ylim=(-0.6, len(arms) - 0.4))
        if metric in SHARES:
            style.percent(axis.xaxis)
        if metric == "hit_rate" and rows["capacity_share"].notna().any():
            first = rows[rows["capacity_share"].notna()].iloc[0]  # one of a layer's slots stages
            floor = float(first["capacity_share"] * (1 - 1 / first["slots"]))
            axis.axvline(floor, color="#8a8f98", linestyle=":", label="no skill: share of experts kept")
        if marks and metric in marks:
            value, name = marks[metric]
            axis.axvline(value, color="#d62f2f", linestyle="--", label=name)
    if any(axis.get_legend_handles_labels()[0] for axis in axes):
        style.legend_right(figure)
    slots = ", ".join(str(int(s)) for s in sorted(rows["slots"].dropna().unique()))
    style.footer(figure, rows, f"{slots} slots a layer, cold per sequence. Bars: 95 % cluster bootstrap. {note}")
