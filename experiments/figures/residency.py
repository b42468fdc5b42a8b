"""Who sits in which slot as tokens pass: the picture of the rotation."""

import colorsys

import numpy as np
import pandas as pd
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rgpu.experiments.figures import style

NAME = "residency"
TITLE = "Slot residency over time"
ORDER = 100
GUIDE = (
    "Each row is a slot of one layer's pool, each colour an expert, time runs to the right: a change of colour "
    "is a load. The strip below counts loads per token; diagonal stripes are a blind rotation, long bars are "
    "experts that stay."
)
_EMPTY = (0.925, 0.933, 0.945)


def draw(table: pd.DataFrame, figure: Figure) -> None:
    rows = style.select(table, "residency", "expert")
    layer = int(rows["layer"].dropna().astype(int).min())
    rows = rows[rows["layer"] == layer]
    policies = [p for p in style.POLICIES if p in set(rows["policy"])]
    policies += sorted(set(rows["policy"]) - set(policies))
    slots = int(rows["slot"].max()) + 1
    experts = int(rows["value"].max()) + 1
    figure.set_size_inches(9.6, len(policies) * (0.17 * min(slots, 24) + 1.25) + 0.9)
    heights = [h for _ in policies for h in (0.17 * min(slots, 24) + 0.3, 0.45)]
    axes = figure.subplots(2 * len(policies), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0]
    colours = ListedColormap(np.vstack([_EMPTY, _colours(experts)]))
    first, last = int(rows["offset"].min()), int(rows["offset"].max())
    for i, policy in enumerate(policies):
        own = rows[rows["policy"] == policy]
        grid_ST = np.full((slots, last - first + 1), -1.0)
        grid_ST[own["slot"].to_numpy(int), own["offset"].to_numpy(int) - first] = own["value"].to_numpy(float)
        main, strip = axes[2 * i], axes[2 * i + 1]
        extent = (first - 0.5, last + 0.5, slots - 0.5, -0.5)
        main.imshow(
            grid_ST + 1, cmap=colours, vmin=0, vmax=experts, aspect="auto", interpolation="nearest", extent=extent
        )
        loads_T = ((grid_ST[:, 1:] != grid_ST[:, :-1]) & (grid_ST[:, 1:] >= 0)).sum(0)
        strip.stairs(
            loads_T, np.arange(first + 1, last + 2) - 0.5, fill=True, color=style.policy_style(policy)["color"]
        )
        strip.set(ylabel="loads", ylim=(0, max(1, int(loads_T.max()))))
        strip.yaxis.set_major_locator(MaxNLocator(2, integer=True))
        mean = float(loads_T.mean()) if len(loads_T) else 0.0
        main.set_title(f"{style.policy_label(policy)}: {mean:.2f} loads per token into slots it keeps")
        main.set_ylabel("slot")
        main.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        for axis in (main, strip):
            axis.grid(visible=False)
    axes[-1].set_xlabel(f"token (MoE layer {layer}, {slots} slots)")
    style.footer(
        figure,
        rows,
        "One colour an expert, the same in every panel; grey: empty or staging. Loads: slots whose expert changed.",
    )


def _colours(count: int) -> np.ndarray:
    """[count, 3] distinct colours: hues a golden section apart, in three lightnesses."""
    return np.array([colorsys.hls_to_rgb(i * 0.61803 % 1, (0.42, 0.58, 0.74)[i % 3], 0.62) for i in range(count)])
