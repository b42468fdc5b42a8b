"""Hit rate around a change of topic, by token offset: A to B, and back to A."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rgpu.experiments.figures import style
from rgpu.results.statistics import CONFIDENCE, SAMPLES, bootstrap_sums

NAME = "topic_switch"
TITLE = "Hit rate through a topic switch"
ORDER = 80
WINDOW = 15  # tokens, centred; a window never mixes sides of a switch
GUIDE = (
    "The topic changes at offset 0; a dip that recovers is what the pool has to relearn, and the return panel "
    "shows whether experts of the first topic survived. Curves average a centred window that does not reach "
    "across the switch."
)
CASES = {"switch": "A → B", "leave": "A → B → A: leaving A", "return": "A → B → A: back to A"}
SHOWN = (
    "lru",
    "lfu",
    "static_hot",
    "router_lag",
    "rotary",
    "belady",
)  # at most these and the user's own: lines must be told apart


def draw(table: pd.DataFrame, figure: Figure) -> None:
    try:
        rows = style.select(table, "topic_switch", "hit_rate", per_sequence=True)
    except style.MissingRows:
        rows = style.select(table, "topic_switch", "hit_rate")
    share = style.nearest_share(rows)
    rows = rows[np.isclose(rows["capacity_share"].astype(float), share)]
    rows = rows[rows["policy"].isin(SHOWN) | ~rows["policy"].isin(list(style.POLICIES))]
    cases = [c for c in CASES if c in set(rows["case"])]
    if not cases:
        raise style.MissingRows(f"got 'topic_switch' rows without a case of {', '.join(CASES)}; see docs/results.md")
    axes = style.panels(figure, len(cases), columns=3, width=3.6, height=3.7, sharey=True)
    for axis, case in zip(axes, cases, strict=True):
        part = rows[rows["case"] == case]
        for policy in style.policy_order(part["policy"].unique()):
            _curve(axis, part[part["policy"] == policy], policy)
        axis.axvline(0, color="#2b2f36", linewidth=1, linestyle=":")
        count = part["sequence"].nunique()
        axis.set(title=CASES[case] + (f" ({count} sequences)" if count else ""), xlabel="tokens from the switch")
        style.percent(axis.yaxis)
    axes[0].set_ylabel("hit rate")
    style.legend_right(figure)
    note = f"{100 * share:.0f} % of the experts resident. Centred window of {WINDOW} tokens, cut at the switch. "
    style.footer(figure, rows, note + "Bands: 95 % cluster bootstrap over sequences, where there are several.")


def _curve(axis: Axes, own: pd.DataFrame, policy: str) -> None:
    """One policy: windowed numerators over windowed denominators, resampled by sequence."""
    offsets = np.arange(int(own["offset"].min()), int(own["offset"].max()) + 1)
    clusters = {s: i for i, s in enumerate(own["sequence"].fillna(-1).unique())}
    sums_XSO = np.zeros((2, len(clusters), len(offsets)))
    place = (own["sequence"].fillna(-1).map(clusters).to_numpy(int), own["offset"].to_numpy(int) - offsets[0])
    np.add.at(sums_XSO[0], place, own["numerator"].to_numpy(float))
    np.add.at(sums_XSO[1], place, own["denominator"].to_numpy(float))
    sums_XSO = sums_XSO @ _window(offsets)
    total_XO = sums_XSO.sum(1)
    seen = total_XO[1] > 0
    look = {**style.policy_style(policy), "marker": None}
    rate_O = np.where(seen, total_XO[0] / np.maximum(total_XO[1], 1), np.nan)
    for name, side in ((style.policy_label(policy), offsets < 0), (None, offsets >= 0)):
        axis.plot(offsets[side], rate_O[side], label=name, **look)
    if len(clusters) < 2:
        return
    flat = sums_XSO.transpose(0, 2, 1).reshape(2 * len(offsets), 1, len(clusters))
    draws_XOB = bootstrap_sums(flat, samples=SAMPLES // 4).reshape(2, len(offsets), -1)
    with np.errstate(invalid="ignore", divide="ignore"):
        draws_OB = draws_XOB[0] / draws_XOB[1]
    ends = np.full((2, len(offsets)), np.nan)
    whole = seen & np.isfinite(draws_OB).all(1)
    ends[:, whole] = np.quantile(draws_OB[whole], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=1)
    for side in (offsets < 0, offsets >= 0):
        lo_O, hi_O = ends[:, side]
        axis.fill_between(offsets[side], lo_O, hi_O, color=look["color"], alpha=0.13, linewidth=0)


def _window(offsets: np.ndarray) -> np.ndarray:
    """[O, O] bool: offset o counts towards the smoothed value at p, both on one side of the switch."""
    near = np.abs(offsets[:, None] - offsets[None, :]) <= WINDOW // 2
    return (near & ((offsets[:, None] < 0) == (offsets[None, :] < 0))).astype(float)
