"""The figure of the kernel benchmark: time over rows, a panel for each model and format, drawn from the CSV alone."""

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from rgpu.experiments.benching.table import read_rows
from rgpu.experiments.figures import style

OURS = "#d62f2f"
COLOURS = ("#0b62c4", "#1b8a5a", "#f08a24", "#8e44ad", "#00838f", "#6d4c41")


def draw(csv: Path, folder: Path, name: str) -> list[Path]:
    """Writes `<name>.svg` and `<name>.png` from the rows of `csv`."""
    rows = read_rows(csv)
    panels = sorted({(row["model"], row["format"]) for row in rows})
    providers = list(dict.fromkeys(row["provider"] for row in rows))
    with matplotlib.rc_context(style.RC):
        figure = Figure(layout="constrained")
        axes = style.panels(figure, len(panels), columns=4, width=2.6, height=2.5)
        for axis, (model, fmt) in zip(axes, panels, strict=True):
            here = [row for row in rows if (row["model"], row["format"]) == (model, fmt)]
            for provider in providers:
                _line(axis, [row for row in here if row["provider"] == provider], provider, providers)
            ticks = sorted({int(row["rows"]) for row in rows})
            axis.set(xscale="log", yscale="log", title=f"{model}, {fmt}", xlabel="tokens in a call", ylabel="ms a call")
            axis.set_xticks(ticks, [str(tick) for tick in ticks])
            axis.minorticks_off()
            axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        style.legend_right(figure, title="provider")
        figure.supxlabel(_caption(rows), x=0.01, ha="left", fontsize=8, color="#555b65")
    return style.save(figure, folder, name)


def _line(axis: Any, rows: list[dict[str, str]], provider: str, providers: list[str]) -> None:
    if not rows:
        return
    x = [int(row["rows"]) for row in rows]
    low, middle, high = ([1e-3 * float(row[key]) for row in rows] for key in ("us_p20", "us_p50", "us_p80"))
    ours = provider.startswith("rgpu")
    others = [name for name in providers if not name.startswith("rgpu")]
    colour = OURS if ours else COLOURS[others.index(provider) % len(COLOURS)]
    dashes = "--" if ours and provider != next(p for p in providers if p.startswith("rgpu")) else "-"
    axis.plot(x, middle, dashes, color=colour, marker="o", label=provider, zorder=3 if ours else 2)
    axis.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)


def _caption(rows: list[dict[str, str]]) -> str:
    first = rows[0]
    clock = {"thread": "CPU time of one thread", "wall": "wall clock"}.get(first["timing"], "device time")
    names, commits = (sorted({row[key] for row in rows}) for key in ("device", "commit"))
    return (
        f"Measured on {', '.join(names)}; {first['threads']} thread(s), {clock}; median, band p20 to p80.\n"
        "One layer's routed experts, random weights, other experts in every call; "
        f"{first['date'][:10]}, commit {', '.join(commits)}."
    )
