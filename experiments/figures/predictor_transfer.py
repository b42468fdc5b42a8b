"""Recall of predictors trained on one side and tested on another."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rgpu.experiments.figures import style
from rgpu.experiments.suites.published import marks

NAME = "predictor_transfer"
TITLE = "Predictors: trained on one thing, tested on another"
ORDER = 405
GUIDE = (
    "Recall one layer ahead, k named. Rows: what trained a predictor, columns: what it is tested on; the diagonal trains "
    "and tests on different documents of one kind. Gate look-ahead is not trained, so its rows are alike."
)


def draw(table: pd.DataFrame, figure: Figure) -> None:
    own, said = marks.select(table, NAME, "recall")
    rates = own[own["horizon"] == 1]
    if rates.empty:
        raise style.MissingRows("got no recall one layer ahead; expected some; see docs/results.md")
    groups = list(dict.fromkeys(rates["case"].astype(str)))
    names = style.policy_order(rates["predictor"].dropna().unique())
    axes = style.panels(figure, len(groups) * len(names), columns=len(names), width=2.7, height=2.3)
    for at, axis in enumerate(axes):
        group, name = groups[at // len(names)], names[at % len(names)]
        part = rates[(rates["case"] == group) & (rates["predictor"] == name)]
        kinds = list(dict.fromkeys(rates[rates["case"] == group]["domain"].astype(str)))
        grid = np.full((len(kinds), len(kinds)), np.nan)
        for row in part.itertuples():
            if str(row.baseline) in kinds and str(row.domain) in kinds:
                grid[kinds.index(str(row.baseline)), kinds.index(str(row.domain))] = row.value
        axis.imshow(grid, vmin=0.3, vmax=1, cmap="Blues", aspect="auto")
        for i, j in np.argwhere(np.isfinite(grid)):
            axis.text(j, i, f"{100 * grid[i, j]:.1f}", ha="center", va="center", fontsize=8,
                      color="white" if grid[i, j] > 0.75 else "#2b2f36")  # fmt: skip
        axis.set_xticks(range(len(kinds)), kinds, fontsize=6.5, rotation=20)
        axis.set_yticks(range(len(kinds)), kinds if at % len(names) == 0 else [""] * len(kinds), fontsize=6.5)
        axis.grid(visible=False)
        axis.set_title(f"{str(name).replace('_', ' ')}: {group}", fontsize=8)
    text = "; ".join(f"{r.about} {100 * r.value:.1f} %" for r in _published(said))
    note = f"Published, 3 layers ahead: {text}. " if text else ""
    marks.footer(figure, own, said, note + "Intervals and paired differences are in the rows and the report.")


def _published(said: pd.DataFrame) -> list[pd.Series]:
    found = []
    for _, row in said.iterrows():
        about = str(row["source"]).split(": ")[-1]
        found.append(pd.Series({"about": about, "value": float(row["value"])}))
    return found
