"""Live time per token over LRU's, a line an arm, beside the simulated ratio of the same decisions; a panel a link and pool."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rgpu.experiments.figures import style

NAME = "prefetch_live"
TITLE = "Prefetching live in the engine, beside the simulator"
ORDER = 85
GUIDE = (
    "Time per token of each predictor and planner over that of LRU without prefetch in the same rounds; left of the line is "
    "faster. Filled: measured, without waits for other processes and (diamonds) with them; lines: 95 % intervals. Stars "
    "were told apart from LRU by both. LRU is the mean of two runs, `lru again` the second over the first. Rings are the "
    "simulator's ratio for the same decisions. A plus evicts by the same forecast. Dotted: every expert resident (measured). "
    "Dashed: no schedule is faster (simulated)."
)


def draw(table: pd.DataFrame, figure: Figure) -> None:
    rows = style.select(table, "prefetch_live", ["tpot_ratio", "wall_ratio"])
    plain = (rows["predictor"] == "none") & (rows["policy"] == "lru")
    arms = rows[rows["predictor"].notna() & ~plain]
    arms = arms.assign(arm=[_name(*each) for each in zip(arms["predictor"], arms["case"], arms["policy"], strict=True)])
    names = list(dict.fromkeys(arms["arm"]))
    place = {name: len(names) - i for i, name in enumerate(names)}
    cells = list(dict.fromkeys(zip(rows["machine"].astype(str), rows["capacity_share"].astype(float), strict=True)))
    columns = len({share for _, share in cells})
    axes = style.panels(figure, len(cells), columns=columns, width=4.6, height=1.1 + 0.24 * len(names), sharey=True)
    for axis, (machine, share) in zip(axes, cells, strict=True):
        here = (rows["machine"] == machine) & np.isclose(rows["capacity_share"].astype(float), share)
        own = arms[here.reindex(arms.index)]
        for _, arm in own.iterrows():
            y, colour = place[str(arm["arm"])], style.policy_style(str(arm["predictor"]))["color"]
            if arm["simulated"]:
                axis.plot([arm["value"]], [y], "o", color="#1f2430", fillstyle="none", markersize=8, label="simulated")
                continue
            if arm["metric"] == "wall_ratio":
                axis.hlines(y - 0.25, arm["lo"], arm["hi"], color=colour, linewidth=1, alpha=0.6)
                axis.plot([arm["value"]], [y - 0.25], "D", color=colour, markersize=3.5, alpha=0.6, label="with waits")
                continue
            axis.hlines(y, arm["lo"], arm["hi"], color=colour, linewidth=2)
            mark, size = ("*", 11) if arm["verdict"] in ("better", "worse") else ("o", 6)
            axis.plot([arm["value"]], [y], mark, color=colour, markersize=size, label="measured")
        axis.axvline(1.0, color="#1f2430", linewidth=1)
        for case, look, text in (("resident", ":", "every expert resident"), ("bound", "--", "no schedule is faster")):
            for value in rows[here & (rows["case"] == case) & (rows["metric"] == "tpot_ratio")]["value"]:
                axis.axvline(float(value), color="#8a8f98", linestyle=look, linewidth=1.2, label=text)
        axis.set_yticks(list(place.values()), list(place), fontsize=8)
        axis.set(xlabel="time per token, LRU = 1", title=f"{machine}, {share:.0%} of the experts")
    style.legend_right(figure)
    text = (
        "Bars: 95 % cluster bootstrap over texts. Star: told apart from LRU without and with waits for other processes. A name "
        "that ends in +: the same forecast also evicts. Emulated links: memory of this machine, slowed down to the stated rate."
    )
    style.footer(figure, rows, text)


def _name(predictor: str, planner: str, policy: str) -> str:
    if predictor == "none":
        return str(policy)
    plus = " +" if policy == "joint_forecast" else ""
    return f"{predictor}, evict only" if planner == "none" else f"{predictor}, {planner}{plus}"
