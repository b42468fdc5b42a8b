"""The figure of the clock held against a GPU: simulated over measured, a panel a model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from rgpu.experiments.figures import style

LOOKS = {  # by policy and handler
    ("lru", "fetch"): ("LRU, misses fetched", "#0b62c4", "o"),
    ("lru", "zero_copy"): ("LRU, misses read over the link", "#1b8a5a", "^"),
    ("on_demand", "fetch"): ("on demand", "#8a8f98", "s"),
}


def draw(points: Sequence[Mapping[str, Any]], judged: Mapping[str, Any], folder: Path, name: str) -> list[Path]:
    """Writes `<name>.svg` and `<name>.png`. Hollow: a row that was calibrated on; bars: 20th to 80th percentile of passes."""
    models = list(dict.fromkeys(p["model"] for p in points))
    with matplotlib.rc_context(style.RC):
        figure = Figure(layout="constrained")
        for axis, model in zip(style.panels(figure, len(models), columns=3, width=3.6), models, strict=True):
            ends: list[float] = []
            for p in (p for p in points if p["model"] == model):
                words, colour, marker = LOOKS[p["policy"], p["handler"]]
                words += "" if p["role"] == "validation" else ", calibrated on"
                x, y = float(p["measured_ms"]), float(p["predicted_ms"])
                axis.plot(
                    [x],
                    [y],
                    marker,
                    color=colour,
                    label=words,
                    fillstyle="full" if p["role"] == "validation" else "none",
                )
                axis.hlines(
                    y, float(p["measured_ms_p20"]), float(p["measured_ms_p80"]), color=colour, alpha=0.35, linewidth=1
                )
                ends += [x, y]
            span = np.array([min(ends) * 0.88, max(ends) * 1.14])
            axis.plot(span, span, color="#1f2430", linewidth=1.0)
            axis.fill_between(span, span * 0.9, span * 1.1, color="#8a8f98", alpha=0.15, linewidth=0)
            axis.set(xscale="log", yscale="log", xlim=tuple(span), ylim=tuple(span), title=model)
            axis.set(xlabel="measured, ms per pass", ylabel="simulated, ms per pass")
            ticks = [t for t in (5, 7, 10, 15, 20, 30, 50, 70) if span[0] <= t <= span[1]]
            for of in (axis.xaxis, axis.yaxis):
                of.set_ticks(ticks, [str(t) for t in ticks])
                of.set_ticks([], minor=True)
        style.legend_right(figure)
        figure.supxlabel(_caption(judged), x=0.01, ha="left", fontsize=8, color="#555b65")
    return style.save(figure, folder, name)


def _caption(judged: Mapping[str, Any]) -> str:
    return (
        "Decode on one NVIDIA H200: weights random at true size, routing forced, one run a point; calibrated on rows of the "
        "same process.\n"
        f"Target {judged['verdict'].replace('between repeats', 'of passes')}: median error {judged['median_error']:.1%} over "
        f"{judged['configurations']} rows, at most {judged['target']:.1%} asked for. Grey band: 10 %. Bars: 20th to 80th "
        "percentile of passes."
    )
