"""Gap to Belady with the passes as recorded and permuted."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rgpu.experiments.figures import style
from rgpu.experiments.suites.published import marks

NAME = "field_pass_order"
TITLE = "The same passes in another order"
ORDER = 303
GUIDE = (
    "Left: misses over assignments of every policy. Right: the part of the best causal policy's misses that Belady "
    "avoids. What changes from one bar to the next is the order of passes alone; the events, and so the unions over "
    "capacity, are the same."
)
CASES = (("as recorded", "#0b62c4"), ("passes permuted", "#f08a24"))


def draw(table: pd.DataFrame, figure: Figure) -> None:
    own, said = marks.select(table, NAME, ["effective_miss", "gap"])
    left, right = style.panels(figure, 2, width=4.4)
    miss = own[own["metric"] == "effective_miss"]
    policies = style.policy_order(miss["policy"].dropna().unique())
    for i, (case, colour) in enumerate(CASES):
        part = miss[miss["case"] == case].drop_duplicates("policy").set_index("policy").reindex(policies)
        left.bar(
            np.arange(len(policies)) + (i - 0.5) * 0.4, part["value"].to_numpy(float), 0.38, color=colour, label=case
        )
        gap = own[(own["metric"] == "gap") & (own["case"] == case)]
        height = gap["value"].to_numpy(float)[:1]
        spread = np.stack([height - gap["lo"].to_numpy(float)[:1], gap["hi"].to_numpy(float)[:1] - height])
        right.bar(
            [i], height, 0.6, color=colour, yerr=np.nan_to_num(np.maximum(spread, 0)), error_kw={"ecolor": "#555b65"}
        )
        found = said[said["case"] == case]
        if len(found):
            marks.mark(right, [i] * len(found), found["value"], marker="D")
    left.set_xticks(np.arange(len(policies)), [style.policy_label(p) for p in policies], rotation=30, ha="right")
    right.set_xticks(range(len(CASES)), [case for case, _ in CASES])
    left.set(ylabel="misses over assignments")
    right.set(ylabel="gap to Belady")
    for axis in (left, right):
        style.percent(axis.yaxis)
    style.legend_right(figure)
    marks.footer(figure, own, said, "Warm, continuous batching, random orders of the sequences.")
