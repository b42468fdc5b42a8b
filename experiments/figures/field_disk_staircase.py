"""Hit rate and seconds per token over the size of a RAM cache above a disk."""

import pandas as pd
from matplotlib.figure import Figure

from rgpu.experiments.figures import style
from rgpu.experiments.suites.published import marks

NAME = "field_disk_staircase"
TITLE = "Capacity staircase with a disk tier"
ORDER = 306
GUIDE = (
    "Left: hits of one RAM cache over a disk; LRU stays flat until a token cycle fits and jumps then, Belady climbs "
    "all the way. Right: the seconds per token that follow, without a GPU, and with a GPU pool whose misses look in "
    "RAM first."
)


def draw(table: pd.DataFrame, figure: Figure) -> None:
    own, said = marks.select(table, NAME, ["hit_rate", "tpot"])
    left, right = style.panels(figure, 2, width=4.6)
    for case, line in (("RAM over disk", "-"), ("GPU pool over RAM over disk", ":")):
        for policy in ("lru", "belady"):
            part = own[(own["case"] == case) & (own["policy"] == policy)].sort_values("x")
            look = style.policy_style(policy) | {"linestyle": line}
            hits, speed = part[part["metric"] == "hit_rate"], part[part["metric"] == "tpot"]
            if case == "RAM over disk" and len(hits):
                style.line(left, hits["x"], hits, label=f"{style.policy_label(policy)}", **look)
            if len(speed):
                style.line(right, speed["x"], speed, label=f"{style.policy_label(policy)}, {case}", **look)
    for policy, marker in (("lru", "o"), ("belady", "s")):
        found = said[(said["metric"] == "hit_rate") & (said["policy"] == policy)]
        if len(found):
            marks.mark(
                left, found["x"], found["value"], marker=marker, label=f"published, {style.policy_label(policy)}"
            )
    left.set(xlabel="cache size in token cycles", ylabel="hit rate", xscale="log", ylim=(-0.02, 1))
    right.set(xlabel="cache size in token cycles", ylabel="seconds per token", xscale="log", yscale="log")
    for axis in (left, right):
        axis.set_xticks([0.25, 0.5, 1, 2, 4, 8], ["1/4", "1/2", "1", "2", "4", "8"])
        axis.xaxis.set_minor_formatter("")
    style.percent(left.yaxis)
    style.legend_right(figure)
    note = "Hits cold per sequence; RAM under a GPU pool keeps its content, one order of the sequences. Times are simulated."
    marks.footer(figure, own, said, note)
