"""Draw figures from any results parquet: svg and png, one image a figure and trace."""

import importlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
from omegaconf import DictConfig
from tqdm import tqdm

from rgpu.errors import InputError
from rgpu.experiments.command import command
from rgpu.experiments.figures import style
from rgpu.results.derive import complete
from rgpu.results.provenance import write_atomic
from rgpu.results.rows import read

INDEX = "figures.json"  # beside the images: what the report needs to show them


def figure_modules() -> list[ModuleType]:
    """Every figure (a module of experiments/figures with `draw`), in reading order."""
    names = sorted(p.stem for p in Path(style.__file__).parent.glob("*.py") if p.stem != "style")
    modules = [importlib.import_module(f"rgpu.experiments.figures.{name}") for name in names]
    return sorted(modules, key=lambda m: (m.ORDER, m.NAME))


def choose(names: Sequence[str] | None) -> list[ModuleType]:
    """The figures named, or all. An unknown name is an `InputError` that lists them."""
    modules = figure_modules()
    known = [m.NAME for m in modules]
    if unknown := [n for n in names or () if n not in known]:
        raise InputError(f"figures: got '{unknown[0]}', expected some of {', '.join(known)}; leave it out for all")
    return [m for m in modules if not names or m.NAME in names]


def render(
    table: pd.DataFrame, folder: str | Path, names: Sequence[str] | None = None, endings: Sequence[str] = style.ENDINGS
) -> dict[str, Any]:
    """Draw each figure once for each trace into `folder`, as files with these endings, with an index beside them.

    -> `{"figures": [{name, title, guide, trace, caption, files}], "skipped": [{name, title, reason}]}`, files relative
    to `folder`. A figure whose rows are absent is listed as skipped, never drawn empty.
    """
    folder, parts = Path(folder), list(complete(table).groupby("trace"))
    drawn: list[dict[str, Any]] = []
    skipped: list[dict[str, Any]] = []
    for module in tqdm(choose(names), unit="figure", disable=None):
        about = {"name": module.NAME, "title": module.TITLE, "guide": module.GUIDE}
        reasons = []
        for trace, rows in parts:
            try:
                figure = style.paint(module.draw, rows)
            except style.MissingRows as error:
                reasons.append(str(error))
                continue
            files = style.save(figure, folder, f"{module.NAME}-{_slug(str(trace))}", endings)
            caption = figure.get_supxlabel().replace("\n", " ")
            drawn.append({**about, "trace": str(trace), "caption": caption, "files": [f.name for f in files]})
        if len(reasons) == len(parts):
            skipped.append({**about, "reason": reasons[0] if reasons else "got an empty table"})
    index = {"figures": drawn, "skipped": skipped}
    write_atomic(folder / INDEX, (json.dumps(index, indent=2, ensure_ascii=False) + "\n").encode())
    return index


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.") or "trace"


@command("plot")
def run(cfg: DictConfig) -> dict[str, Any]:
    """Draw the figures named (default: all whose rows exist); JSON: files drawn, and why others were skipped."""
    out = Path(cfg.out)
    index = render(read(cfg.rows), out, list(cfg.figures) if cfg.figures else None)
    files = {f"{f['name']}-{f['trace']}": [str(out / name) for name in f["files"]] for f in index["figures"]}
    if not files:
        raise InputError(f"no figure to draw: got rows for none; {index['skipped'][0]['reason']}")
    return {"figures": files, "skipped": {s["name"]: s["reason"] for s in index["skipped"]}}


if __name__ == "__main__":
    run.main()
