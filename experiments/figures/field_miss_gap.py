"""Miss by policy over capacity, and the gap of the best causal policy to Belady with admission's share of it."""

import pandas as pd
from matplotlib.figure import Figure

from rgpu.experiments.figures import style
from rgpu.experiments.suites.published import marks

NAME = "field_miss_gap"
TITLE = "Miss by policy against Belady, and what the gap is made of"
ORDER = 301
GUIDE = (
    "Left: loads over assignments before a pass is de-duplicated; lower is better, black lines are clairvoyant. "
    "Right: the part of the best causal policy's loads that Belady avoids, and how much of it is owed to bypassing "
    "admission; the rest is the choice of victims."
)


def draw(table: pd.DataFrame, figure: Figure) -> None:
    own, said = marks.select(table, NAME, ["effective_miss", "gap", "admission_share"])
    batches = sorted(int(b) for b in own["batch"].dropna().unique())
    axes = style.panels(figure, 2 * len(batches), width=4.6)
    for row, batch in enumerate(batches):
        left, right = axes[2 * row : 2 * row + 2]
        here, there = (
            own[own["batch"] == batch],
            said[said["batch"] == max(batch, 2)] if batch > 1 else said[said["batch"] == 1],
        )
        miss = here[here["metric"] == "effective_miss"]
        for policy in style.policy_order(miss["policy"].dropna().unique()):
            part = miss[miss["policy"] == policy].sort_values("capacity_share")
            style.line(
                left, part["capacity_share"], part, label=style.policy_label(policy), **style.policy_style(policy)
            )
        marks_of(left, said if batch > 1 else there, "effective_miss")
        for metric, colour, name in (
            ("gap", "#1f2430", "gap to Belady"),
            ("admission_share", "#8e44ad", "admission's share of it"),
        ):
            part = here[here["metric"] == metric].sort_values("capacity_share")
            style.line(right, part["capacity_share"], part, label=name, color=colour, marker="o")
            marks_of(right, said if batch > 1 else there, metric, color=colour)
        title = f"{batch} request{'s' if batch > 1 else ''} a pass"
        left.set(
            xlabel="share of a layer's experts resident", ylabel="loads over assignments", title=title, ylim=(0, None)
        )
        right.set(xlabel="share of a layer's experts resident", ylabel="share", title=title, ylim=(0, 1))
        for axis in (left.xaxis, left.yaxis, right.xaxis, right.yaxis):
            style.percent(axis)
    style.legend_right(figure)
    resets = sorted(set(own["reset"].dropna().astype(str)))
    marks.footer(figure, own, said, f"Resets: {', '.join(style.RESETS.get(r, r) for r in resets)}. Bands: 95 %.")


def marks_of(axis: object, said: pd.DataFrame, metric: str, **look: str) -> None:
    """Published values of one metric; other batches than the panel's are told apart by the sources underneath."""
    part = said[(said["metric"] == metric) & said["capacity_share"].notna()]
    if len(part):
        marks.mark(axis, part["capacity_share"], part["value"], label=f"published, {metric.replace('_', ' ')}", **look)  # type: ignore[arg-type]
