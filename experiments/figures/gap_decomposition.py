"""Where each policy's loads come from, over the capacity axis: cold, capacity, admission, victim choice."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rgpu.experiments.figures import style

NAME = "gap_decomposition"
TITLE = "Where the loads come from"
ORDER = 32
GUIDE = (
    "The height is what a policy loads per token. Cold and capacity are out of every policy's reach; admission is what "
    "keeping every miss costs even a clairvoyant; victim is the policy's own doing. For policies that load ahead or do "
    "not keep every miss the last two cannot be told apart."
)
PARTS = {
    "cold": ("cold: first use", "#5b6470"),
    "capacity": ("capacity: best schedule of any kind", "#a9b1bc"),
    "admission": ("admission: every miss is kept", "#f0b45c"),
    "victim": ("victim choice", "#d6604d"),
    "undivided": ("above the best schedule, undivided", "#8e6bbf"),
}
MOST = 12  # panels; the policies that load least


def draw(table: pd.DataFrame, figure: Figure) -> None:
    rows = style.select(table, "gap_decomposition", "loads_per_token")
    chosen = []
    grouped = list(style.groups(rows))
    for title, part in grouped:
        totals = part.groupby("policy", observed=True)["value"].sum().sort_values()
        chosen += [(title, str(p), part[part["policy"] == p]) for p in totals.index[:MOST]]
    shown = style.policy_order({p for _, p, _ in chosen})
    chosen.sort(key=lambda c: (c[0], shown.index(c[1])))
    axes = style.panels(figure, len(chosen), columns=4, width=2.7, height=2.5, sharex=True, sharey=True)
    for axis, (title, policy, part) in zip(axes, chosen, strict=True):
        _panel(axis, part)
        where = "\n" + title.replace(", ", "\n") if len(grouped) > 1 else ""
        axis.set_title(style.policy_label(policy) + where, fontsize=8.5)
    for axis in axes[-4:]:
        axis.set_xlabel("share resident")
    for axis in axes[::4]:
        axis.set_ylabel("loads per token")
    style.legend_right(figure)
    left = len(set(rows["policy"].dropna())) - len(shown)
    note = "Capacities in slots, staging included. The parts add up to the loads; a part below zero, possible where an event"
    note += " is larger than the pool, is drawn as none."
    note += f" All panels: {grouped[0][0]}." if len(grouped) == 1 else ""
    style.footer(figure, rows, note + (f" {left} policies with more loads are not drawn." if left else ""))


def _panel(axis: Axes, part: pd.DataFrame) -> None:
    grid = part.pivot_table(index="capacity_share", columns="case", values="value", observed=True).sort_index()
    names = [n for n in PARTS if n in grid.columns]
    x = grid.index.to_numpy(float)
    heights = np.vstack([np.maximum(grid[n].to_numpy(float), 0.0) for n in names])
    axis.stackplot(x, heights, labels=[PARTS[n][0] for n in names], colors=[PARTS[n][1] for n in names], linewidth=0)
    axis.plot(x, heights.sum(0), color="#2b2f36", linewidth=1.0)
    style.percent(axis.xaxis)
    if len(x) > 1:
        axis.set_xlim(x[0], x[-1])
