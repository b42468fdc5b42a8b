"""The break-even atlas: the recall from which prefetching pays, over the link and the compute time of a layer."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rgpu.experiments.figures import style

NAME = "prefetch_break_even"
TITLE = "The recall from which prefetching pays"
ORDER = 85
GUIDE = (
    "Colour: the recall that a forecast of the next layer needs before prefetching saves half a percent of what the "
    "same policy with the same forecast takes without loading ahead; grey: even a perfect "
    "one does not, for want of time to load in (below) or of stalls to save (above). Letters name what serves misses fastest "
    "without prefetch: fetch, cpu, split or zero copy. Forecasts are sure of what they name. Red: the time that the worst "
    "of the recalls loses, by forecasts that are sure and by ones that say their recall, whose loads stop below one half. The "
    "star is a model on a machine whose "
    "link, time per token and recall were published; its budget was not, so it is in every panel. That model routes to 8 of "
    "128 experts, the map is of 4 of 32: the star shows where its link and compute time lie, not what recall it needs."
)
LETTERS = "fcsz"
# Qwen3-30B-A3B on an RTX 4090: 2.85 MB an expert at 25 GB/s and 10 us a copy; 1/196 s a token over 48 layers, less 8 experts
# at 950 GB/s; recall 0.886 of gate look-ahead on that model (BigMoeOnEdge)
MARK_COPY_S, MARK_COMPUTE_S, MARK = 124e-6, 82e-6, "Qwen3-30B (top-8 of 128),\nRTX 4090: look-ahead 0.886"


def draw(table: pd.DataFrame, figure: Figure) -> None:
    rows = style.select(table, "prefetch_break_even", ["recall_needed", "fastest_handler", "copy", "worst_saved"])
    near = rows[rows["lag"] == rows["lag"].min()]
    sure = near[near["case"] == "sure"]
    panels = list(sure[sure["metric"] == "recall_needed"].groupby(["policy", "capacity_share"]))
    panels.sort(key=lambda p: (p[0][0] != "lru", p[0][1]))
    lost = near[(near["metric"] == "worst_saved") & (near["policy"] == "lru")]
    losses = sorted(lost[lost["capacity_share"] == lost["capacity_share"].min()].groupby("case"), reverse=True)
    copy_of = near[near["metric"] == "copy"].groupby("machine")["value"].first()
    links = sorted(copy_of.index.astype(str), key=float)
    times = np.sort(near["x"].dropna().astype(float).unique())
    across = len({share for (_, share), _ in panels})
    axes = style.panels(figure, len(panels) + len(losses), columns=across, width=3.7, height=3.3)
    handlers = sure[sure["metric"] == "fastest_handler"]
    image = None
    for axis, ((policy, share), part) in zip(axes, panels, strict=False):
        grid = part.pivot_table(index="x", columns="machine", values="value").reindex(index=times, columns=links)
        needed = grid.to_numpy(float)
        shown = np.ma.masked_where(needed > 1, needed)
        axis.set_facecolor("#d5d8dd")
        image = axis.imshow(shown, cmap="viridis_r", vmin=0, vmax=1, origin="lower", aspect="auto")
        if min(needed.shape) > 1 and (needed > 0.8).any() and (needed <= 0.8).any():
            lines = axis.contour(np.minimum(needed, 1.2), levels=[0.5, 0.8], colors="white", linewidths=1.2)
            axis.clabel(lines, fmt="%.1f", fontsize=8)
        own = handlers[(handlers["policy"] == policy) & (handlers["capacity_share"] == share)]
        for _, cell in own.iterrows():
            j, i = links.index(str(cell["machine"])), int(np.searchsorted(times, float(cell["x"])))
            ink = "white" if 0.5 < needed[i, j] <= 1 else "#2b2f36"
            axis.text(j, i, LETTERS[int(cell["value"])], ha="center", va="center", fontsize=8, color=ink)
        at = np.interp(-np.log(MARK_COPY_S), -np.log(copy_of[links].to_numpy(float)), range(len(links)))
        up = np.interp(np.log(MARK_COMPUTE_S), np.log(times), range(len(times)))
        axis.plot([at], [up], "*", color="#d62f2f", markersize=11, markeredgecolor="white", label=MARK)
        axis.set(title=f"{policy}, {float(share):.0%} of experts")
    most = max([1.0, *(-100 * part["value"].astype(float).min() for _, part in losses)])
    for axis, (case, part) in zip(axes[len(panels) :], losses, strict=True):
        grid = part.pivot_table(index="x", columns="machine", values="value").reindex(index=times, columns=links)
        percent = 100 * np.maximum(-grid.to_numpy(float), 0)
        axis.imshow(percent, cmap="Reds", vmin=0, vmax=most, origin="lower", aspect="auto")
        for (i, j), value in np.ndenumerate(percent):
            ink = "white" if value > most / 2 else "#2b2f36"
            axis.text(j, i, f"{value:.0f}", ha="center", va="center", fontsize=8, color=ink)
        axis.set(title=f"lru, {float(part['capacity_share'].iloc[0]):.0%}: most lost, %, {case}")
    for axis in axes:
        axis.set_xticks(range(len(links)), [f"{n}\n{1e6 * float(copy_of[n]):.0f}" for n in links], fontsize=8)
        axis.set_yticks(range(len(times)), [f"{1e6 * t:.0f}" for t in times], fontsize=8)
        axis.set(xlabel="link, GB/s; below: us to copy an expert", ylabel="compute a layer, us")
        axis.grid(False)
    if image is not None:
        figure.colorbar(image, ax=axes[: len(panels)], shrink=0.7, label="recall needed")
    style.legend_right(figure)
    style.footer(
        figure,
        near,
        "Experts of gpt-oss-20b's size, top-4 of 32; to beat: the same policy and forecast without prefetch. Simulated. "
        "Letters: the fastest handler without it (c cpu, s split, z zero copy, f fetch); grey: a perfect one does not pay.",
    )
