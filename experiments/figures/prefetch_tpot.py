"""Time per token saved by predictor and planner: a table in colour, a panel a machine."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rgpu.experiments.figures import style

NAME = "prefetch_tpot"
TITLE = "Time per token by predictor and planner"
ORDER = 83
GUIDE = (
    "Change of the time per token against LRU without prefetch, in percent: blue is faster, red slower. Columns with a plus "
    "evict by the same forecast; 'none +' only evicts by it. Bold: the difference is beyond half a percent, "
    "Holm-corrected over the panel."
)


def draw(table: pd.DataFrame, figure: Figure) -> None:
    rows = style.select(table, "prefetch_time", ["tpot_saved", "tpot"])
    rows = rows[rows["capacity_share"] == style.nearest_share(rows)]
    saved = rows[rows["metric"] == "tpot_saved"]
    if saved.empty:
        raise style.MissingRows("got no 'tpot_saved' rows; expected some; see docs/results.md")
    column = [
        f"{case}{'' if policy == 'lru' else ' +'}" for case, policy in zip(saved["case"], saved["policy"], strict=True)
    ]
    saved = saved.assign(column=column)
    columns = sorted(dict.fromkeys(column), key=lambda c: c.endswith("+"))
    names = style.policy_order(saved["predictor"].astype(str))
    machines = list(dict.fromkeys(saved["machine"].astype(str)))
    axes = style.panels(
        figure, len(machines), columns=1, width=max(6.4, 0.72 * len(columns)), height=0.9 + 0.36 * len(names)
    )
    for axis, machine in zip(axes, machines, strict=True):
        base = rows[(rows["metric"] == "tpot") & (rows["machine"] == machine) & (rows["case"] == "none")]
        whole = float(base.loc[base["policy"] == "lru", "value"].iloc[0])
        change = np.full((len(names), len(columns)), np.nan)
        for _, cell in saved[saved["machine"] == machine].iterrows():
            i, j = names.index(str(cell["predictor"])), columns.index(str(cell["column"]))
            change[i, j] = -100 * float(cell["value"]) / whole
            clear = str(cell["verdict"]) in ("better", "worse")
            look: dict[str, Any] = {
                "weight": "bold" if clear else "normal",
                "color": "white" if abs(change[i, j]) > 22 else "#2b2f36",
            }
            axis.text(j, i, f"{change[i, j]:+.0f}", ha="center", va="center", fontsize=8, **look)
        axis.imshow(np.clip(change, -30, 30), cmap="RdBu_r", vmin=-30, vmax=30, aspect="auto", alpha=0.75)
        axis.set_xticks(range(len(columns)), columns, rotation=30, ha="right", fontsize=8)
        axis.set_yticks(range(len(names)), names, fontsize=8)
        axis.set_title(f"{machine}, {1e3 * whole:.2f} ms without prefetch")
        axis.grid(False)
    style.footer(figure, saved, "Percent; LRU without a plus. Times are simulated, and predicting takes none.")
