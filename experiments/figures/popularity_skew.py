"""How unevenly experts are used: sorted popularity by layer, against uniform use."""

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rgpu.experiments.figures import style

NAME = "popularity_skew"
TITLE = "Expert popularity by layer"
ORDER = 40
GUIDE = (
    "Left, each line is one layer with its experts sorted from most to least used; a flat line at 1 would be "
    "uniform use. Right, the share of assignments that the most popular quarter of the experts takes: what a "
    "perfect static choice of a quarter could serve."
)


def draw(table: pd.DataFrame, figure: Figure) -> None:
    rows = style.select(table, "popularity", "assignment_share")
    rows = rows[rows["domain"].isna()]
    layers = sorted(rows["layer"].dropna().astype(int).unique())
    curves = {n: np.sort(rows.loc[rows["layer"] == n, "value"].to_numpy(float))[::-1] for n in layers}
    left, right = style.panels(figure, 2, width=4.6)
    colours = matplotlib.colormaps["viridis"]
    scale = Normalize(layers[0], max(layers[-1], layers[0] + 1))
    for number, curve in curves.items():
        left.plot(np.arange(1, len(curve) + 1), curve * len(curve), color=colours(scale(number)), linewidth=1.2)
    left.axhline(1, color="black", linestyle="--", linewidth=1.2)
    left.set(xlabel="experts of a layer, most used first", ylabel="use relative to uniform", ylim=(0, None))
    left.set_title("sorted popularity (dashed: uniform)")
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.colorbar(
        ScalarMappable(scale, colours), ax=left, label="MoE layer", pad=0.02, ticks=MaxNLocator(integer=True)
    )
    quarter = [float(c[: max(1, len(c) // 4)].sum()) for c in curves.values()]
    even = float(np.mean([max(1, len(c) // 4) / len(c) for c in curves.values()]))
    right.bar(layers, quarter, color=[colours(scale(n)) for n in layers], width=0.8)
    right.axhline(even, color="black", linestyle="--", linewidth=1.2)
    right.set(xlabel="MoE layer", ylabel="share of assignments", ylim=(0, 1))
    right.set_title("taken by the top quarter of the experts (dashed: uniform)")
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    right.grid(visible=False, axis="x")
    style.percent(right.yaxis)
    style.footer(figure, rows)
