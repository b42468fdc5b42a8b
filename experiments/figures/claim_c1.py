"""C1: hit rate over capacity, and hit rate against bytes moved as the step limit grows."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rgpu.experiments.figures import style

NAME = "claim_c1"
TITLE = "C1: rotary residency against LRU at equal capacity and at equal moved bytes"
ORDER = 201
GUIDE = (
    "Left: higher is better, the dotted line is no skill. Right: up and to the left is better; a curve is one policy "
    "with a growing limit on what an event may move (rotary: slots a step; LRU: inserts an event)."
)


def draw(table: pd.DataFrame, figure: Figure) -> None:
    rows = style.select(table, NAME, ["hit_rate", "loads_per_token"])
    time = table[(table["experiment"] == NAME) & (table["metric"] == "tpot") & table["value"].notna()]
    left, right, *below = style.panels(figure, 2 if time.empty else 3, height=4.4)
    curve = rows[(rows["case"] == "capacity") & (rows["metric"] == "hit_rate")]
    for policy in style.policy_order(curve["policy"].unique()):
        own = curve[curve["policy"] == policy].sort_values("capacity_share")
        style.line(left, own["capacity_share"], own, label=style.policy_label(policy), **style.policy_style(policy))
    shares = sorted(curve["capacity_share"].unique())
    kept = [1 - 1 / curve.loc[curve["capacity_share"] == share, "slots"].iloc[0] for share in shares]  # one slot stages
    left.plot(shares, np.multiply(shares, kept), color="#8a8f98", linestyle=":", label="no skill")
    left.set(xlabel="capacity: share of all experts resident", ylabel="hit rate")
    style.percent(left.xaxis)
    style.percent(left.yaxis)
    dials = rows[rows["case"].astype(str).str.startswith("dial:")].copy()
    dials["case"] = dials["case"].astype(str)
    wide = dials.pivot_table(index=["policy", "case"], columns="metric", values="value", observed=True).reset_index()
    for policy in style.policy_order(wide["policy"].unique()):
        own = wide[wide["policy"] == policy].sort_values("loads_per_token")
        right.plot(own["loads_per_token"], own["hit_rate"], **style.policy_style(policy))
        for _, point in own.iterrows():
            limit = str(point["case"]).removeprefix("dial:").replace("step None", "no limit").replace("step ", "")
            right.annotate(limit, (point["loads_per_token"], point["hit_rate"]),
                           fontsize=7, xytext=(3, 3), textcoords="offset points")  # fmt: skip
    right.set(xlabel="loads per token", ylabel="hit rate", title="one capacity, growing limit")
    style.percent(right.yaxis)
    for axis in below:
        _bars(axis, time)
    style.legend_right(figure)
    said = "" if time.empty else "Seconds per token are simulated. "
    style.footer(
        figure, pd.concat([rows, time]), said + "Cold per sequence. Bands: 95 % cluster bootstrap over sequences."
    )


def _bars(axis: Axes, time: pd.DataFrame) -> None:
    """Simulated seconds per token over LRU's, one group a machine and miss handler."""
    cases = list(dict.fromkeys(time["case"]))
    policies = style.policy_order(time["policy"].unique())
    for i, policy in enumerate(policies):
        for c, case in enumerate(cases):
            own = time[(time["case"] == case) & (time["policy"] == policy)]["value"]
            lru = time[(time["case"] == case) & (time["policy"] == "lru")]["value"]
            if len(own) and len(lru):
                x = c + 0.8 * (i / max(1, len(policies) - 1) - 0.5)
                look = {**style.policy_style(policy), "linestyle": "none"}
                look["marker"] = look["marker"] or "_"
                axis.plot(x, float(own.iloc[0]) / float(lru.iloc[0]), **look)
    axis.axhline(1, color=style.POLICIES["lru"][0], linewidth=1)
    axis.set(xticks=range(len(cases)), ylabel="time per token / LRU's", title="simulated, at one capacity")
    axis.set_xticklabels(cases, fontsize=7, rotation=15)
