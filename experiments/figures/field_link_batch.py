"""Time per token over link bandwidth, and the union of experts over requests a pass."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rgpu.experiments.figures import style
from rgpu.experiments.suites.published import marks

NAME = "field_link_batch"
TITLE = "Sensitivity to the link and to the batch"
ORDER = 309
GUIDE = (
    "Left: distinct experts of a layer in one pass, over what independent uniform routing would give; the lower, the "
    "more requests share. Right: time per token of a sequence over the link's bandwidth; where a curve is flat the "
    "link no longer matters."
)


def draw(table: pd.DataFrame, figure: Figure) -> None:
    own, said = marks.select(table, NAME, ["union_over_uniform", "tpot"])
    left, right = style.panels(figure, 2, width=4.6)
    union = own[own["metric"] == "union_over_uniform"].sort_values("batch")
    left.plot(
        union["batch"].astype(float),
        union["value"].astype(float),
        marker="o",
        color="#0b62c4",
        label="union over uniform",
    )
    found = said[said["metric"] == "union_over_uniform"]
    if len(found):
        marks.mark(left, found["batch"], found["value"])
    left.set(xlabel="requests a pass", ylabel="union over that of uniform routing", xscale="log")
    left.set_xticks([1, 2, 4, 8, 16], ["1", "2", "4", "8", "16"])
    left.minorticks_off()
    tpot = own[own["metric"] == "tpot"]
    shades = np.linspace(0.25, 0.95, max(1, tpot["batch"].nunique()))
    for shade, (batch, part) in zip(shades, tpot.groupby("batch"), strict=False):
        part = part.sort_values("x")
        colour = (0.05, 0.75 - 0.6 * shade, 0.35 + 0.5 * shade)
        style.line(right, part["x"], part, band=False, label=f"{batch} a pass", color=colour, marker=".")
    right.set(xlabel="link, GB/s", ylabel="seconds per token", xscale="log", yscale="log")
    style.percent(left.yaxis)
    style.legend_right(figure)
    note = (
        "Batches: recorded batch-1 sequences run side by side in common passes, one random order. Right: LRU, a quarter of the "
        "experts, simulated."
    )
    marks.footer(figure, own, said, note)
