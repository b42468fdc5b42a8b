"""Tokens per second over the memory budget and over the hit rate, by miss handler."""

import pandas as pd
from matplotlib.figure import Figure

from rgpu.experiments.figures import style
from rgpu.experiments.suites.published import marks

NAME = "field_budget_handlers"
TITLE = "Speed over the memory budget, by miss handler"
ORDER = 310
GUIDE = (
    "Above: the more experts fit, the less it matters how misses are served. Below: the same over the hit rate "
    "reached, with published engines beside; they are other models on other machines, so compare how steeply they "
    "rise."
)
LOOKS = {"fetch": ("#0b62c4", "o"), "cpu": ("#1b8a5a", "^"), "split": ("#d62f2f", "D"), "zero_copy": ("#8a8f98", "x")}


def draw(table: pd.DataFrame, figure: Figure) -> None:
    own, said = marks.select(table, NAME, "tokens_per_s")
    machines = list(dict.fromkeys(own["machine"].dropna().astype(str)))
    axes = style.panels(figure, 2 * len(machines), columns=len(machines), width=4.6)
    for column, machine in enumerate(machines):
        above, below = axes[column], axes[len(machines) + column]
        for miss, (colour, marker) in LOOKS.items():
            part = own[(own["machine"] == machine) & (own["miss"] == miss)].sort_values("capacity_share")
            if part.empty:
                continue
            style.line(above, part["capacity_share"], part, label=miss, color=colour, marker=marker)
            style.line(below, part["x"], part, band=False, color=colour, marker=marker)
        if len(said):
            marks.mark(below, said["x"], said["value"], label="published (fetch)")
        above.set(xlabel="share of experts resident", ylabel="tokens per second", title=machine, ylim=(0, None))
        below.set(xlabel="hit rate", ylabel="tokens per second", yscale="log")
        style.percent(above.xaxis)
        style.percent(below.xaxis)
    style.legend_right(figure)
    marks.footer(figure, own, said, "LRU, a pool a layer, one request, cold per sequence. Times are simulated.")
