"""Inflation of misses when events are replayed one access at a time, by policy and order."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rgpu.experiments.figures import style
from rgpu.experiments.suites.published import marks

NAME = "field_granularity"
TITLE = "Bias of replaying one access at a time"
ORDER = 302
GUIDE = (
    "Left: misses over assignments when a pass is one event (dark) and when its experts are taken one after another. "
    "Right: the inflation that this makes; recency suffers, frequency and fixed sets hardly: the bias cannot be "
    "calibrated away."
)
LOOKS = {
    "event-atomic": "#1f2430",
    "ascending": "#0b62c4",
    "rank": "#1b8a5a",
    "reverse": "#f08a24",
    "random": "#8a8f98",
}


def draw(table: pd.DataFrame, figure: Figure) -> None:
    own, said = marks.select(table, NAME, ["effective_miss", "inflation"])
    left, right = style.panels(figure, 2, width=5.0, height=4.2)
    policies = style.policy_order(own["policy"].dropna().unique())
    for axis, metric in ((left, "effective_miss"), (right, "inflation")):
        part = own[own["metric"] == metric]
        cases = [c for c in LOOKS if c in set(part["case"])]
        for i, case in enumerate(cases):
            bars = part[part["case"] == case].drop_duplicates("policy").set_index("policy").reindex(policies)
            x = np.arange(len(policies)) + (i - (len(cases) - 1) / 2) * 0.8 / len(cases)
            height = bars["value"].to_numpy(float)
            spread = np.stack([height - bars["lo"].to_numpy(float), bars["hi"].to_numpy(float) - height])
            axis.bar(x, height, 0.75 / len(cases), color=LOOKS[case], label=case, yerr=np.nan_to_num(np.maximum(spread, 0)),
                     error_kw={"ecolor": "#555b65", "elinewidth": 0.8})  # fmt: skip
        axis.set_xticks(np.arange(len(policies)), [style.policy_label(p) for p in policies], rotation=30, ha="right")
        style.percent(axis.yaxis)
    found = said[said["metric"] == "inflation"]
    place = {policy: i for i, policy in enumerate(policies)}
    found = found[found["policy"].isin(place)]
    if len(found):
        marks.mark(
            right, [place[str(p)] for p in found["policy"]], found["value"], marker="D", label="published, ascending"
        )
    left.set(ylabel="misses over assignments")
    right.set(ylabel="inflation of misses")
    style.legend_right(figure)
    batch = ", ".join(str(int(b)) for b in own["batch"].dropna().unique())
    marks.footer(
        figure, own, said, f"{batch} requests a pass, warm, random orders of the sequences; bars: 95 % over orders."
    )
