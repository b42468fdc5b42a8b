"""Bytes of expert weights moved for each token, against capacity: the comparison that holds for every policy."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rgpu.experiments.figures import style

NAME = "bytes_per_token"
TITLE = "Bytes moved per token against capacity"
ORDER = 20
GUIDE = (
    "Every load counts here, on demand, ahead of time and to fill the pool, so policies of all kinds compare "
    "fairly. No lossless schedule moves less than the dotted line (Belady with bypass); on_demand reloads every "
    "access."
)


def draw(table: pd.DataFrame, figure: Figure) -> None:
    rows = style.select(table, "capacity_sweep", "bytes_per_token")
    rows = rows[rows["domain"].isna()]
    parts = list(style.groups(rows))
    scale, unit = _unit(float(rows["value"].median()))
    spread = rows.loc[rows["value"] > 0, "value"]
    log = float(spread.max()) > 200 * float(spread.min())
    axes = style.panels(figure, len(parts), sharey=True)
    for axis, (title, part) in zip(axes, parts, strict=True):
        for policy in style.policy_order(part["policy"].unique()):
            own = part[part["policy"] == policy].sort_values("capacity_share")
            if log:
                own = own[own["value"] > 0]
            look = style.policy_style(policy)
            style.line(axis, own["capacity_share"], own, scale=scale, label=style.policy_label(policy), **look)
        axis.set(title=title, xlabel="capacity: share of all experts resident")
        style.percent(axis.xaxis)
        if log:
            axis.set_yscale("log")
        else:
            axis.set_ylim(bottom=0)
    axes[0].set_ylabel(f"{unit} moved per token" + (" (log)" if log else ""))
    style.legend_right(figure)
    style.footer(
        figure, rows, "Bands: 95 % cluster bootstrap over sequences. All loads: on demand, ahead and initial fill."
    )


def _unit(typical: float) -> tuple[float, str]:
    steps = [(1.0, "bytes"), (1 / 2**10, "KiB"), (1 / 2**20, "MiB"), (1 / 2**30, "GiB")]
    return steps[min(3, max(0, int(np.log2(max(typical, 1)) // 10)))]
