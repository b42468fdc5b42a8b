"""Recall of predictors trained on one side and tested on another."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rgpu.experiments.figures import style
from rgpu.experiments.suites.published import marks

NAME = "predictor_transfer"
TITLE = "Predictors: trained on one thing, tested on another"
ORDER = 405
GUIDE = (
    "Recall one layer ahead, k named. First column of each panel: trained and tested on other documents of one kind, mean over "
    "kinds. The others: points of recall lost (red) or won (blue) by having been trained on another kind (before the arrow) "
    "than the one tested; * where the difference is told apart from half a point. Gate look-ahead is not trained."
)
OWN, WORST = "own kind", 10.0  # points at which the colour is full
LEGEND = (
    "Own kind: recall one layer ahead, percent. Beside it: points won by training on the side before the arrow; star: told "
    "from half a point. Intervals and other horizons are in the rows and the report."
)


def draw(table: pd.DataFrame, figure: Figure) -> None:
    own, said = marks.select(table, NAME, ("recall", "recall_difference"))
    near = own[own["horizon"] == 1]
    rates, gaps = (near[near["metric"] == metric] for metric in ("recall", "recall_difference"))
    if rates.empty:
        raise style.MissingRows("got no recall one layer ahead; expected some; see docs/results.md")
    groups = list(dict.fromkeys(rates["case"].astype(str)))
    names = style.policy_order(rates["predictor"].dropna().unique())
    pairs = {g: list(_pairs(gaps[gaps["case"] == g])) for g in groups}
    widths = [1 + len(pairs[g]) for g in groups]
    figure.set_size_inches(max(7.6, 0.62 * sum(widths) + 3.4), 0.24 * len(names) + 2.6)
    axes = figure.subplots(1, len(groups), squeeze=False, gridspec_kw={"width_ratios": widths})[0]
    for axis, group in zip(axes, groups, strict=True):
        _panel(axis, names, pairs[group], rates[rates["case"] == group], gaps[gaps["case"] == group])
        axis.set_title(group, fontsize=9)
    axes[0].set_yticks(range(len(names)), [n.replace("_", " ") for n in names], fontsize=7.5)
    text = "; ".join(f"{r.about} {100 * r.value:.1f} %" for r in _published(said[said["metric"] == "recall"]))
    note = f"Published, 3 layers ahead: {text}. " if text else ""
    marks.footer(figure, own, said, note + LEGEND)


def _pairs(gaps: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """(trained, tested), those of one test side by side."""
    for tested in dict.fromkeys(gaps["domain"].astype(str)):
        for trained in dict.fromkeys(gaps[gaps["domain"] == tested]["baseline"].astype(str)):
            yield trained, tested


def _panel(axis: Axes, names: list[str], pairs: list[tuple[str, str]], rates: pd.DataFrame, gaps: pd.DataFrame) -> None:
    lost = np.full((len(names), 1 + len(pairs)), np.nan)
    kept = rates[rates["baseline"].astype(str) == rates["domain"].astype(str)]
    for i, name in enumerate(names):
        same = kept[kept["predictor"] == name]["value"].astype(float)
        if len(same):
            axis.text(0, i, f"{100 * same.mean():.1f}", ha="center", va="center", fontsize=7.5, color="#2b2f36")
        for row in gaps[gaps["predictor"] == name].itertuples():
            j = 1 + pairs.index((str(row.baseline), str(row.domain)))
            lost[i, j] = 100 * float(row.value)  # type: ignore[arg-type]
            star = "*" if row.verdict in ("better", "worse") else ""
            colour = "white" if abs(lost[i, j]) > 0.7 * WORST else "#2b2f36"
            axis.text(j, i, f"{lost[i, j]:+.1f}{star}", ha="center", va="center", fontsize=7, color=colour)
    axis.imshow(lost, vmin=-WORST, vmax=WORST, cmap="RdBu", aspect="auto")
    labels = [OWN, *(f"{trained} \u2192 {tested}" for trained, tested in pairs)]
    axis.set_xticks(range(len(labels)), labels, fontsize=6.5, rotation=55, ha="right", rotation_mode="anchor")
    axis.set_yticks([])
    axis.grid(visible=False)


def _published(said: pd.DataFrame) -> list[pd.Series]:
    found = []
    for _, row in said.iterrows():
        about = str(row["source"]).split(": ")[-1]
        found.append(pd.Series({"about": about, "value": float(row["value"])}))
    return found
