"""One look for every figure: fonts, a fixed colour and mark for each policy, panels, and the caption none lacks."""

import textwrap
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from rgpu.errors import InputError
from rgpu.results.derive import CEILINGS, kinds_of
from rgpu.results.provenance import write_atomic

RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same everywhere
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#7a7f87",
    "axes.labelcolor": "#2b2f36",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e6ea",
    "grid.linewidth": 0.8,
    "xtick.color": "#555b65",
    "ytick.color": "#555b65",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.fonttype": "path",
    "svg.hashsalt": "rgpu",
}
# colour, marker, line style: blues recency, greens frequency, purples and reds forecasts, greys ignorance, black bounds
POLICIES: dict[str, tuple[str, str, Any]] = {
    "belady_bypass": ("#000000", "", (0, (1, 1.2))),
    "belady": ("#000000", "", "-"),
    "lru": ("#0b62c4", "o", "-"),
    "fifo": ("#5aa9e6", "s", "--"),
    "lfu": ("#1b8a5a", "^", "-"),
    "static_hot": ("#8fb339", "v", "--"),
    "router_lag": ("#8e44ad", "D", "-"),
    "rotary": ("#d62f2f", "*", "-"),
    "rotary_paper": ("#ad1457", "X", "-"),
    "rotary_hybrid": ("#5c6bc0", "p", "-."),
    "linear_residency": ("#00838f", "h", "-"),
    "ring": ("#f08a24", "P", "--"),
    "random": ("#8a8f98", "x", "--"),
    "on_demand": ("#b9bec6", "", (0, (5, 2))),
}
_SPARE = ("#c2185b", "#00838f", "#6d4c41", "#5c6bc0", "#9e9d24", "#ad1457")
_MARKS = ("h", "p", "<", ">", "8", "X")
PREDICTORS: dict[str, tuple[str, str, Any]] = {
    "popularity": ("#8a8f98", "x", "--"),
    "previous_token": ("#f08a24", "s", "--"),
    "gate_lookahead": ("#0b62c4", "o", "-"),
    "linear": ("#d62f2f", "*", "-"),
    "low_rank": ("#f06292", "P", "-"),
    "mlp": ("#8e44ad", "D", "-"),
    "group_mlp": ("#5c6bc0", "p", "-"),
    "history_gru": ("#00695c", "^", "-."),
    "history_transformer": ("#00acc1", "v", "-."),
    "ensemble": ("#000000", "X", "-."),
    "online_head": ("#6d4c41", "h", "-."),
    "coactivation": ("#1b8a5a", "<", "-."),
    "markov": ("#8fb339", ">", "-."),
    "ngram": ("#ad1457", "d", ":"),
    "token_id": ("#c9a227", "H", ":"),
    "popularity_domain": ("#90a4ae", "+", "--"),
    "popularity_prefix": ("#37474f", "1", "--"),
    "similar_sequences": ("#bf7b4f", "2", "--"),
}
LABELS = {"belady": "Belady (forced)", "belady_bypass": "Belady (bypass)"}
SERIES = ("#0b62c4", "#d62f2f", "#1b8a5a", "#f08a24", "#8e44ad", "#00838f")
RESETS = {"none": "warm pool", "sequence": "cold: emptied per sequence", "batch": "cold: emptied per batch"}
SCOPES = {"layer": "slots per layer", "global": "one global pool"}


ENDINGS = ("svg", "png")


class MissingRows(InputError):
    """The rows a figure reads are not in the table; it is skipped, never drawn empty."""


def paint(draw: Callable[[pd.DataFrame, Figure], None], table: pd.DataFrame) -> Figure:
    """A figure in the house style, drawn from the rows; raises `MissingRows` where they are absent."""
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(9.0, 4.8), layout="constrained")
        draw(table, figure)
    return figure


def panels(
    figure: Figure, count: int, *, columns: int = 2, width: float = 4.3, height: float = 3.9, **share: Any
) -> list[Axes]:
    """`count` axes in rows of at most `columns`; the figure is sized to them, with room for legend and caption."""
    across = min(count, columns)
    down = -(-count // across)
    figure.set_size_inches(max(7.6, across * width + 1.9), down * height + 0.9)
    axes = figure.subplots(down, across, squeeze=False, **share)
    for spare in axes.ravel()[count:]:
        spare.remove()
    return list(axes.ravel()[:count])


def tall(entries: int, height: float) -> float:
    """Inches of a panel beside a legend of so many entries."""
    return max(height, 0.235 * entries)


def select(
    table: pd.DataFrame, experiment: str, metrics: str | Sequence[str], *, per_sequence: bool = False
) -> pd.DataFrame:
    """Rows of an experiment and metric(s): totals, or `per_sequence` those of single sequences; none: `MissingRows`."""
    wanted = [metrics] if isinstance(metrics, str) else list(metrics)
    found = table[(table["experiment"] == experiment) & table["metric"].isin(wanted) & table["value"].notna()]
    found = found[found["sequence"].notna()] if per_sequence else found[found["sequence"].isna()]
    if found.empty:
        names = " or ".join(wanted)
        raise MissingRows(
            f"got no rows of experiment '{experiment}', metric {names}; expected some; see docs/results.md"
        )
    return found


def policy_style(name: str) -> dict[str, Any]:
    """Colour, marker and line style of a policy or predictor: fixed for the known, derived from the name for others."""
    known = POLICIES.get(name) or PREDICTORS.get(name)
    if known is None:
        pick = zlib.crc32(name.encode())
        known = (_SPARE[pick % len(_SPARE)], _MARKS[pick // 7 % len(_MARKS)], (0, (3, 1, 1, 1)))
    colour, marker, line = known
    size = {"*": 9, "x": 6, "P": 6}.get(marker, 5)
    return {"color": colour, "marker": marker or None, "linestyle": line, "markersize": size}


def policy_order(names: Iterable[Any]) -> list[str]:
    """Known policies (or predictors) in their fixed order, then the others by name."""
    known = [*POLICIES, *PREDICTORS]
    return sorted(set(names), key=lambda n: (known.index(n) if n in known else len(known), n))


def policy_label(name: str) -> str:
    return LABELS.get(name, name)


def policy_kinds(table: pd.DataFrame) -> dict[str, str]:
    """`kind` of each policy, as `rgpu.results.derive.kinds_of` has it."""
    own = table[table["policy"].notna()]
    return kinds_of(own["policy"], own["kind"])


def marked_label(name: str, kind: str) -> str:
    """The label with what must be known to read it beside demand policies: † not bounded by Belady's hits, or its kind."""
    if kind == "demand" or name in LABELS:
        return policy_label(name)
    return f"{policy_label(name)} ({kind})" if kind in CEILINGS else f"{policy_label(name)} †"


def groups(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Rows by scope and reset, with a readable title for each panel."""
    for (scope, reset), part in table.groupby(["scope", "reset"], dropna=False):
        yield f"{SCOPES.get(str(scope), str(scope))}, {RESETS.get(str(reset), str(reset))}", part


def nearest_share(table: pd.DataFrame, share: float = 0.25) -> float:
    """The capacity share in the rows that is closest to `share`."""
    shares = np.sort(table["capacity_share"].dropna().unique().astype(float))
    if not len(shares):
        raise MissingRows(
            "got rows without capacity_share; expected the share of experts that fit; see docs/results.md"
        )
    return float(shares[np.argmin(np.abs(shares - share))])


def line(axis: Axes, x: Any, part: pd.DataFrame, *, band: bool = True, scale: float = 1.0, **style: Any) -> None:
    """Values over x, with the interval of the rows as a band."""
    x_T, y_T = np.asarray(x, float), part["value"].to_numpy(float) * scale
    axis.plot(x_T, y_T, markeredgewidth=1.0, **style)
    lo_T, hi_T = part["lo"].to_numpy(float) * scale, part["hi"].to_numpy(float) * scale
    if band and np.isfinite(lo_T).any():
        axis.fill_between(x_T, lo_T, hi_T, color=style.get("color"), alpha=0.16, linewidth=0)


def percent(axis: Any) -> None:
    """Percent labels on an x or y axis whose data are shares."""
    axis.set_major_formatter(PercentFormatter(1.0, decimals=None))


def legend_right(figure: Figure, *, title: str | None = None) -> None:
    """One legend for all panels, at the right, each label once."""
    handles: dict[str, Any] = {}
    for each in figure.axes:
        for handle, text in zip(*each.get_legend_handles_labels(), strict=True):
            handles.setdefault(text, handle)
    box = figure.legend(
        handles.values(), handles.keys(), loc="outside right center", title=title, handlelength=2.6, labelspacing=0.6
    )
    box.get_title().set_fontsize(9)


def label(table: pd.DataFrame) -> str:
    """What the numbers are: measured, simulated or synthetic, and how they were got."""
    made_up, modelled = table["synthetic"].fillna(False).astype(bool), table["simulated"].fillna(False).astype(bool)
    words = []
    if made_up.any():
        words.append("SYNTHETIC" if made_up.all() else "PARTLY SYNTHETIC")
    if modelled.any():
        words.append("simulated" if modelled.all() else "partly simulated")
    if not words:
        words.append("measured")
    methods = [] if made_up.all() else sorted(table["method"].dropna().unique())
    how = {
        "replay": "decisions replayed on recorded routing",
        "live": "live run",
        "counted": "counted in recorded routing",
    }
    trained = {"trained": "predictors scored on recorded routing"}
    return "; ".join([", ".join(words), *({**how, **trained}.get(m, m) for m in methods)])


def caption(table: pd.DataFrame, note: str = "") -> str:
    """The text under a figure: source, tokens, sequences where known, label, and a note."""
    lines = []
    for source, part in table.groupby("source"):
        tokens = part["trace_tokens"].max()
        count = "tokens unknown" if pd.isna(tokens) else f"{int(tokens):,} tokens"
        lines.append(f"Source: {source}; {count}. {label(part).capitalize()}.")
    return "\n".join([*lines, note] if note else lines)


def footer(figure: Figure, table: pd.DataFrame, note: str = "") -> None:
    """Print the caption inside the picture, wrapped to its width."""
    room = int(figure.get_figwidth() * 14.5)
    text = "\n".join(_wrapped(caption(table, note), room))
    figure.supxlabel(text, x=0.01, ha="left", fontsize=8, color="#555b65", linespacing=1.35)
    marks = table["synthetic"].fillna(False).astype(bool)
    if marks.any():
        figure.text(0.995, 0.995, "SYNTHETIC", ha="right", va="top", fontsize=9, color="#c62828", weight="bold")


def save(figure: Figure, folder: str | Path, name: str, endings: Sequence[str] = ENDINGS) -> list[Path]:
    """Write `<name>.svg` and `<name>.png` (or one of them) into `folder`, atomically.

    No date inside: equal data give equal files.
    """
    paths = []
    with matplotlib.rc_context(RC):
        figure.draw_without_rendering()
    figure.set_layout_engine("none")  # laid out once, for both files
    for ending in endings:
        buffer = BytesIO()
        with matplotlib.rc_context(RC):
            metadata = {"Date": None} if ending == "svg" else {"Software": None}
            figure.savefig(buffer, format=ending, dpi=150, metadata=metadata)
        paths.append(Path(folder) / f"{name}.{ending}")
        write_atomic(paths[-1], buffer.getvalue())
    return paths


def _wrapped(text: str, room: int) -> Iterator[str]:
    for paragraph in text.splitlines():
        yield from textwrap.wrap(paragraph, room) or [""]
