"""Hit rate over the size of a global pool in token cycles: LRU's cliff."""

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from rgpu.experiments.figures import style
from rgpu.experiments.suites.published import marks

NAME = "field_token_cycle"
TITLE = "LRU below one token cycle in a global pool"
ORDER = 304
GUIDE = (
    "A token cycle is what one token routes to: MoE layers times top-k experts. Below it a global LRU pool evicts "
    "exactly what it needs next and hits nothing; Belady does, and so does a pool a layer. The dotted line is where "
    "the zero must end."
)
LOOKS: dict[str, dict[str, Any]] = {
    "lru, global": {"color": "#0b62c4", "marker": "o", "linestyle": "-"},
    "belady, global": {"color": "#000000", "marker": "", "linestyle": "-"},
    "lru, a pool a layer": {"color": "#1b8a5a", "marker": "^", "linestyle": "--"},
}


def draw(table: pd.DataFrame, figure: Figure) -> None:
    own, said = marks.select(table, NAME, "hit_rate")
    (axis,) = style.panels(figure, 1, width=6.4, height=4.2)
    for case, look in LOOKS.items():
        part = own[own["case"] == case].sort_values("x")
        if len(part):
            style.line(axis, part["x"], part, label=case, **look)
    edges = table[(table["experiment"] == NAME) & (table["metric"] == "zero_edge")]["value"]
    for edge in edges[:1]:
        axis.axvline(float(edge), color="#8a8f98", linestyle=":", label="(layers - 1) x top-k")
    if len(said):
        marks.mark(axis, said["x"], said["value"], label="published (LRU)")
    axis.set(xlabel="pool size in token cycles", ylabel="hit rate", xscale="log", ylim=(-0.02, 1))
    axis.xaxis.set_major_formatter("{x:g}")
    style.percent(axis.yaxis)
    style.legend_right(figure)
    marks.footer(figure, own, said, "Cold per sequence, one request. Bands: 95 % cluster bootstrap over sequences.")
