"""A training's learning curve: rows beside the predictor as json, and their picture."""

import json
from itertools import cycle
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rgpu.experiments.figures import style


def write_curve(curve: list[dict[str, Any]], name: str, out: Path) -> list[Path]:
    """`<out>.curve.json`, `.svg` and `.png`; nothing where nothing was descended."""
    if not curve:
        return []
    data = out.with_name(out.name + ".curve.json")
    data.write_text(json.dumps({"predictor": name, "epochs": curve}, indent=1) + "\n")
    figure = style.paint(draw, pd.DataFrame(curve).assign(predictor=name))
    return [data, *style.save(figure, out.parent, data.name.removesuffix(".json"))]


def draw(table: pd.DataFrame, figure: Figure) -> None:
    """Held-out recall at width K and training loss by epoch; epoch 0 is before any step."""
    recall, loss = style.panels(figure, 2)
    members = [("", table)] if "member" not in table else table.groupby("member")  # an ensemble's have one each
    for (name, rows), colour in zip(members, cycle(style.SERIES), strict=False):
        best = style.SERIES[3] if not name else colour
        recall.plot(rows["epoch"], rows["recall"], color=colour, marker="o", label=name or "this epoch")
        recall.plot(
            rows["epoch"], rows["best_recall"], color=best, linestyle="--", label=None if name else "best so far"
        )
        trained = rows[rows["loss"].notna()]
        loss.plot(trained["epoch"], trained["loss"], color=colour, marker="o")
    recall.set(title=f"{table['predictor'].iloc[0]}: held-out documents", ylabel="recall at width k")
    style.percent(recall.yaxis)
    recall.legend()
    loss.set(title="Training loss", ylabel="loss a row")
    for axis in (recall, loss):
        axis.set_xlabel("epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
