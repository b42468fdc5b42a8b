"""Hit rate against capacity, by policy, between Belady's ceiling and the floor of knowing nothing."""

import pandas as pd
from matplotlib.figure import Figure

from rgpu.experiments.figures import style

NAME = "hit_rate_capacity"
TITLE = "Hit rate against capacity"
ORDER = 10
GUIDE = (
    "The black line is the best any policy that always admits and loads only on a miss can do; the dotted "
    "diagonal is what N of E slots give without any knowledge. Policies marked † load ahead or serve misses "
    "without keeping them, so Belady's line does not bound them and bytes moved must be read beside their hits."
)


def draw(table: pd.DataFrame, figure: Figure) -> None:
    rows = style.select(table, "capacity_sweep", "hit_rate")
    rows = rows[rows["domain"].isna() & (rows["policy"] != "belady_bypass")]
    parts = list(style.groups(rows))
    kinds = style.policy_kinds(rows)
    axes = style.panels(figure, len(parts), sharey=True)
    for axis, (title, part) in zip(axes, parts, strict=True):
        shares = sorted(part["capacity_share"].dropna().unique())
        axis.plot(shares, shares, color="#8a8f98", linestyle=(0, (1, 2)), linewidth=1.4, label="N/E: no knowledge")
        for policy in style.policy_order(part["policy"].unique()):
            own = part[part["policy"] == policy].sort_values("capacity_share")
            name = style.marked_label(policy, kinds[policy])
            style.line(axis, own["capacity_share"], own, label=name, **style.policy_style(policy))
        axis.set(title=title, xlabel="capacity: share of all experts resident", ylim=(0, 1.02))
        style.percent(axis.xaxis)
        style.percent(axis.yaxis)
    axes[0].set_ylabel("hit rate (cumulative)")
    style.legend_right(figure)
    style.footer(
        figure,
        rows,
        "Bands: 95 % cluster bootstrap over sequences. † Not bounded by Belady's hit rate; keeps one slot fewer (staging).",
    )
