"""Matrix of profiles against texts, and the second half of a stream against the profile of its first."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rgpu.experiments.figures import style
from rgpu.experiments.suites.published import marks

NAME = "field_hot_transfer"
TITLE = "Hot sets between domains, and between the halves of a stream"
ORDER = 307
GUIDE = (
    "Left: hit rate of a fixed set profiled on one domain (row) and scored on another (column), text always disjoint; "
    "the last row is LRU with as many slots. Right: the second half of every stream, with the profile of its own "
    "first half and with LRU."
)
HALVES = "second half of a stream"


def draw(table: pd.DataFrame, figure: Figure) -> None:
    own, said = marks.select(table, NAME, "hit_rate")
    left, right = style.panels(figure, 2, width=5.2, height=4.4)
    matrix = own[own["domain"].notna()]
    texts = list(dict.fromkeys(matrix["domain"].astype(str)))
    static = matrix[matrix["policy"] == "static_hot"]
    profiles = list(dict.fromkeys(static["case"].astype(str)))
    names = [*profiles, "LRU"]
    grid = np.full((len(names), max(1, len(texts))), np.nan)
    cells: Any = matrix.itertuples()
    for row in cells:
        name = "LRU" if row.policy == "lru" else str(row.case)
        grid[names.index(name), texts.index(str(row.domain))] = float(row.value)
    if texts:
        left.imshow(grid, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for (i, j), value in np.ndenumerate(grid):
            if np.isfinite(value):
                left.text(
                    j, i, f"{100 * value:.0f}", ha="center", va="center", color="white" if value > 0.55 else "#1f2430"
                )
        left.set_xticks(range(len(texts)), [t[:14] for t in texts], rotation=30, ha="right")
        left.set_yticks(range(len(names)), [n[:16] for n in names])
        left.set(title="hit rate, %: profile (row) on text (column)")
    left.grid(False)
    late = own[own["case"] == HALVES].drop_duplicates("policy")
    spread = np.stack([late["value"] - late["lo"], late["hi"] - late["value"]]).astype(float) if len(late) else None
    bars: dict[str, Any] = {"yerr": spread, "error_kw": {"ecolor": "#555b65"}, "label": "second half of the streams"}
    right.bar(range(len(late)), late["value"].to_numpy(float), 0.5, color="#0b62c4", **bars)
    ticks = [{"static_hot": "its first half's profile", "lru": "LRU"}.get(str(p), str(p)) for p in late["policy"]]
    found = said[said["policy"].notna()]
    for i, policy in enumerate(late["policy"].astype(str)):
        part = found[found["policy"] == policy]
        if len(part):
            marks.mark(right, [i] * len(part), part["value"], marker="D")
    right.set_xticks(range(len(late)), ticks)
    right.set(ylabel="hit rate", ylim=(0, 1), title="the second half of a stream")
    style.percent(right.yaxis)
    style.legend_right(figure)
    share = ", ".join(f"{100 * float(s):.0f} %" for s in own["capacity_share"].dropna().unique()[:1])
    marks.footer(
        figure, own, said, f"{share} of a layer's experts, one slot of the fixed set is staging; cold per sequence."
    )
