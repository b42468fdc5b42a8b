"""Hit rate of every layer under every policy at one capacity."""

import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from rgpu.experiments.figures import style

NAME = "layer_heatmap"
TITLE = "Hit rate per layer"
ORDER = 90
GUIDE = (
    "Each cell is one layer under one policy at the capacity stated; light is good. Layers that are dark in "
    "every row have routing that no policy can hold at this size, so the budget may be better spent unevenly."
)


def draw(table: pd.DataFrame, figure: Figure) -> None:
    rows = style.select(table, "layer_hits", "hit_rate")
    share = style.nearest_share(rows)
    rows = rows[np.isclose(rows["capacity_share"].astype(float), share) & rows["layer"].notna()]
    parts = list(style.groups(rows))
    policies = style.policy_order(rows["policy"].unique())
    layers = sorted(rows["layer"].astype(int).unique())
    width = max(6.0, 0.42 * len(layers) + 1.5)
    axes = style.panels(figure, len(parts), columns=1, width=width, height=0.34 * len(policies) + 1.0)
    for axis, (title, part) in zip(axes, parts, strict=True):
        grid = part.pivot_table(index="policy", columns="layer", values="value").reindex(index=policies, columns=layers)
        cells = grid.to_numpy(float)
        axis.imshow(np.ma.masked_invalid(cells), cmap="cividis", vmin=0, vmax=1, aspect="auto")
        for y, x in np.argwhere(np.isfinite(cells)):
            colour = "white" if cells[y, x] < 0.5 else "black"
            text = f"{100 * cells[y, x]:.0f}"
            axis.text(x, y, text, ha="center", va="center", fontsize=8 if len(layers) <= 16 else 6.5, color=colour)
        axis.set_xticks(range(len(layers)), layers)
        axis.set_yticks(range(len(policies)), [style.policy_label(p) for p in policies])
        axis.set(title=f"{title}, {100 * share:.0f} % of the experts resident (cells in %)", xlabel="MoE layer")
        axis.grid(visible=False)
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
    scale = ScalarMappable(Normalize(0, 1), "cividis")
    bar = figure.colorbar(scale, ax=axes, label="hit rate", pad=0.015, fraction=0.04)
    style.percent(bar.ax.yaxis)
    style.footer(figure, rows)
