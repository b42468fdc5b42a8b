"""Share of the gap between LRU and the offline optimum that each policy closes: in hits, and in loads."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rgpu.experiments.figures import style

NAME = "lru_belady_gap"
TITLE = "Share of the gap from LRU to Belady that each policy closes"
ORDER = 30
GUIDE = (
    "0 is LRU, 1 is the offline optimum, below 0 is worse than LRU. Hits are compared with forced Belady, only "
    "for policies that always admit and load on demand (the only ones it bounds); total loads are compared with "
    "Belady with bypass, for every policy."
)
FLOOR = -1.5  # a policy that stays below is named in the caption instead


def draw(table: pd.DataFrame, figure: Figure) -> None:
    rows = style.select(table, "capacity_sweep", ["gap_closed", "load_gap_closed"])
    parts = list(style.groups(rows))
    metrics = [m for m in ("gap_closed", "load_gap_closed") if m in set(rows["metric"])]
    kinds = style.policy_kinds(rows)
    hidden: dict[str, float] = {}
    axes = style.panels(figure, len(parts) * len(metrics), columns=len(metrics), height=3.6)
    for i, (title, part) in enumerate(parts):
        for j, metric in enumerate(metrics):
            axis = axes[i * len(metrics) + j]
            what = {"gap_closed": "hits", "load_gap_closed": "loads"}[metric]
            _panel(axis, part[part["metric"] == metric], kinds, hidden)
            axis.set_title(f"{what}: {title}")
            axis.set_ylabel(f"share of the {what} gap closed")
    style.legend_right(figure)
    note = "Bands: 95 % paired cluster bootstrap over sequences. † Loads ahead or does not keep every miss."
    if hidden:
        note += " Off the scale, at best: " + ", ".join(f"{p} {v:.1f}" for p, v in hidden.items()) + "."
    style.footer(figure, rows, note)


def _panel(axis: Axes, part: pd.DataFrame, kinds: dict[str, str], hidden: dict[str, float]) -> None:
    axis.axhline(0, color=style.POLICIES["lru"][0], linewidth=1.4, label="lru")
    axis.axhline(1, color="black", linestyle=(0, (1, 1.2)), linewidth=1.6, label="offline optimum")
    for policy in style.policy_order(part["policy"].unique()):
        own = part[part["policy"] == policy].sort_values("capacity_share")
        name = style.marked_label(policy, kinds[policy])
        look = style.policy_style(policy)
        best = float(own["value"].max())
        if best < FLOOR:
            hidden[policy] = max(best, hidden.get(policy, best))
            continue
        style.line(axis, own["capacity_share"], own, label=name, **look)
    low = float(part["lo"].fillna(part["value"]).min())
    axis.set(xlabel="capacity: share of all experts resident", ylim=(max(FLOOR, min(-0.15, low * 1.1)), 1.08))
    style.percent(axis.xaxis)
