"""Hit rate against tokens per second, policies as points, a panel a machine and miss handler."""

import pandas as pd
from matplotlib.figure import Figure

from rgpu.experiments.figures import style
from rgpu.experiments.suites.published import marks

NAME = "field_hit_speed"
TITLE = "Hit rate against speed at equal bytes"
ORDER = 305
GUIDE = (
    "Each point is a policy with the same bytes. If hits decided speed, points would rise from left to right; where "
    "one lies to the right of another and below it, the two disagree. Published points are of another machine: "
    "compare directions only."
)


def draw(table: pd.DataFrame, figure: Figure) -> None:
    own, said = marks.select(table, NAME, ["hit_rate", "tokens_per_s"])
    hits = own[own["metric"] == "hit_rate"].drop_duplicates("policy").set_index("policy")["value"]
    speeds = own[own["metric"] == "tokens_per_s"]
    if speeds.empty:
        raise style.MissingRows("got no rows of speed; expected 'tokens_per_s' of field_hit_speed; see docs/results.md")
    cells = [cell for cell in speeds.groupby(["machine", "miss"], observed=True) if len(cell[1])]
    axes = style.panels(figure, len(cells) + (1 if len(said) else 0), width=4.6)
    for axis, ((machine, miss), part) in zip(axes, cells, strict=False):
        for policy in style.policy_order(part["policy"].dropna().unique()):
            point = part[part["policy"] == policy].iloc[0]
            look = style.policy_style(policy) | {"linestyle": "none"}
            look["marker"] = look["marker"] or "s"
            axis.plot([float(hits[policy])], [float(point["value"])], label=style.policy_label(policy), **look)
        axis.set(xlabel="hit rate", ylabel="tokens per second", title=f"{machine}, misses: {miss}")
        style.percent(axis.xaxis)
    if len(said):
        found = said[said["metric"] == "tokens_per_s"]
        marks.mark(axes[-1], found["x"], found["value"])
        for _, point in found.iterrows():
            axes[-1].annotate(str(point["policy"]), (float(point["x"]), float(point["value"])), fontsize=8)
        axes[-1].set(xlabel="hit rate", ylabel="tokens per second", title="published, on a phone")
        style.percent(axes[-1].xaxis)
    style.legend_right(figure)
    marks.footer(figure, own, said, "Simulated times; cold per sequence.")
