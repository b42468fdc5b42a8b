"""Predicted against measured time per output token, a panel a batch; the line is agreement, the band 10 %."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rgpu.experiments.figures import style

NAME = "validation_tpot"
TITLE = "Simulated against measured time per output token"
ORDER = 400
GUIDE = (
    "Each point is one configuration of the engine, run live and replayed on the virtual clock with a profile that was "
    "calibrated on other configurations. On the line the simulation is exact, above it too slow. The grey band is 10 %."
)
HANDLERS = {"fetch": ("full", "copied"), "cpu": ("none", "computed where they are")}


def draw(table: pd.DataFrame, figure: Figure) -> None:
    times = style.select(table, "validation", "tpot_s")
    batches = sorted(int(b) for b in times["batch"].dropna().unique())
    for axis, batch in zip(style.panels(figure, len(batches), width=4.6), batches, strict=True):
        part = times[times["batch"] == batch]
        ends: list[float] = []
        for (policy, miss, _), point in part.groupby(["policy", "miss", "slots"], observed=True):
            live, clock = (point[point["case"] == case].iloc[0] for case in ("measured", "predicted"))
            x, y = 1e3 * float(live["value"]), 1e3 * float(clock["value"])
            fill, how = HANDLERS.get(str(miss), ("full", str(miss)))
            look = style.policy_style(str(policy)) | {"linestyle": "none", "fillstyle": fill}
            look["marker"] = look["marker"] or "s"
            axis.plot([x], [y], label=f"{style.policy_label(str(policy))}, misses {how}", **look)
            axis.hlines(
                y, 1e3 * float(live["lo"]), 1e3 * float(live["hi"]), color=look["color"], alpha=0.35, linewidth=1
            )
            ends += [x, y]
        span = np.array([min(ends) * 0.94, max(ends) * 1.06])
        axis.plot(span, span, color="#1f2430", linewidth=1.0)
        axis.fill_between(span, span * 0.9, span * 1.1, color="#8a8f98", alpha=0.15, linewidth=0)
        axis.set(
            xlabel="measured, ms per token", ylabel="simulated, ms per token", xlim=tuple(span), ylim=tuple(span),
            title=f"{batch} sequence{'s' * (batch > 1)} a pass",
        )  # fmt: skip
    style.legend_right(figure)
    style.footer(figure, times, note(table))


def note(table: pd.DataFrame) -> str:
    """Where it was measured, and the verdict as it is."""
    whole = style.select(table, "validation", "median_error").iloc[0]
    spread = float(style.select(table, "validation", "median_spread").iloc[0]["value"])
    machine = "" if pd.isna(whole["hardware"]) else f"Measured on {whole['hardware']}, CPU only. "
    return (
        f"{machine}Target {whole['verdict']}: median error {float(whole['value']):.1%} over {int(whole['count'])} "
        f"configurations, at most {float(whole['hi']):.1%} asked for; spread between repeats {spread:.1%}. "
        "Grey band: 10 %. Horizontal lines: fastest to slowest repeat."
    )
