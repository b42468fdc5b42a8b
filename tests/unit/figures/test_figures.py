"""Every figure draws from rows, says what it shows, and refuses to be drawn empty."""

import io
import json
import re
from importlib import resources
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from PIL import Image

from rgpu.errors import InputError
from rgpu.experiments.figures import style
from rgpu.experiments.plot import INDEX, choose, figure_modules, render
from rgpu.experiments.plot import run as plot
from rgpu.experiments.report import build_report
from rgpu.results.derive import KINDS, complete
from rgpu.results.provenance import manifest
from rgpu.results.rows import append, frame
from tests.result_rows import CONTEXT, everything

FIGURES = figure_modules()


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return complete(frame(pa.concat_tables(everything())))


def pixels(figure: Figure) -> np.ndarray:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=60)
    return np.asarray(Image.open(buffer).convert("RGB"))


def texts(figure: Figure) -> str:
    return " ".join([figure.get_supxlabel(), *(t.get_text() for t in figure.texts)])


@pytest.mark.parametrize("module", FIGURES, ids=lambda m: m.NAME)
def test_a_figure_draws_and_is_labelled(module: ModuleType, table: pd.DataFrame) -> None:
    figure = style.paint(module.draw, table)
    said = texts(figure).replace("\n", " ")
    assert "Synthetic" in said
    assert "SYNTHETIC" in said
    assert "1,234 tokens" in said
    assert "made-up numbers of the tests" in said
    image = pixels(figure)
    assert (image.reshape(-1, 3).std(0) > 8).all(), "blank picture"
    assert any(axis.has_data() or axis.images for axis in figure.axes)
    assert Path(str(module.__file__)).stem == module.NAME
    assert module.TITLE
    assert len(re.findall(r"[.;:] ", module.GUIDE)) >= 1


@pytest.mark.parametrize("module", FIGURES, ids=lambda m: m.NAME)
def test_a_figure_without_rows_is_refused(module: ModuleType, table: pd.DataFrame) -> None:
    with pytest.raises(style.MissingRows, match="docs/results.md"):
        style.paint(module.draw, table[table["experiment"] == "nothing"])


def test_the_label_tells_measured_from_made_up() -> None:
    made_up = frame(CONTEXT.rows("hit_rate", "share", 0.5))
    real = frame(CONTEXT.at(synthetic=False).rows("hit_rate", "share", 0.5))
    modelled = frame(CONTEXT.at(synthetic=False, simulated=True, method="replay").rows("hit_rate", "share", 0.5))
    assert style.label(made_up) == "SYNTHETIC"
    assert style.label(real) == "measured; decisions replayed on recorded routing"
    assert style.label(modelled).startswith("simulated")
    assert style.label(pd.concat([made_up, real])).startswith("PARTLY SYNTHETIC")
    assert "SYNTHETIC" not in style.caption(real)


def test_policies_keep_their_look() -> None:
    looks = [str(style.policy_style(p)) for p in style.POLICIES]
    assert len(set(looks)) == len(looks)
    there = {Path(file.name).stem for file in (resources.files("rgpu.conf") / "policy").iterdir()}
    assert {*KINDS} <= set(style.POLICIES) <= there  # a look of its own is only kept for policies that exist
    assert style.marked_label("belady", "clairvoyant") == "Belady (forced)"
    assert style.marked_label("mine", "clairvoyant") == "mine (clairvoyant)"
    assert (style.marked_label("lru", "demand"), style.marked_label("ring", "proactive")) == ("lru", "ring †")
    assert style.policy_style("mine") == style.policy_style("mine")
    assert style.policy_order(["mine", "rotary", "lru"]) == ["lru", "rotary", "mine"]


def test_saving_is_whole_and_repeatable(tmp_path: Path, table: pd.DataFrame) -> None:
    draw = FIGURES[0].draw
    first = [p.read_bytes() for p in style.save(style.paint(draw, table), tmp_path / "a", "x")]
    again = [p.read_bytes() for p in style.save(style.paint(draw, table), tmp_path / "b", "x")]
    assert first == again
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["x.png", "x.svg"]


def test_render_skips_with_a_reason(tmp_path: Path) -> None:
    rows = frame(pa.concat_tables([t for t in everything() if t["experiment"][0].as_py() == "residency"]))
    index = render(rows, tmp_path, ["residency", "reuse_lag"])
    assert [f["name"] for f in index["figures"]] == ["residency"]
    assert [s["name"] for s in index["skipped"]] == ["reuse_lag"]
    assert "no rows of experiment 'reuse'" in index["skipped"][0]["reason"]
    assert json.loads((tmp_path / INDEX).read_text()) == index


def test_an_unknown_figure_is_named() -> None:
    with pytest.raises(InputError, match=r"got 'pie'.*hit_rate_capacity"):
        choose(["pie"])


def test_plot_command(tmp_path: Path) -> None:
    append(tmp_path / "rows.parquet", everything())
    cfg = OmegaConf.create(
        {"rows": str(tmp_path / "rows.parquet"), "out": str(tmp_path), "figures": ["popularity_skew"]}
    )
    found = plot(cfg)
    assert [Path(f).suffix for f in found["figures"]["popularity_skew-made-up"]] == [".svg", ".png"]
    assert all(Path(f).is_file() for f in found["figures"]["popularity_skew-made-up"])


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("report")
    append(folder / "rows.parquet", everything())
    render(frame(pa.concat_tables(everything())), folder, ["hit_rate_capacity", "residency"])
    checks = [
        {"name": "replay equality", "passed": True, "detail": "<9 events>", "seconds": 0.5},
        {"name": "output equality", "passed": False, "detail": "logits differ"},
        {"name": "on a GPU", "passed": None, "detail": "no GPU"},
    ]
    path = build_report(
        folder / "rows.parquet", folder, manifest({"trace": "/a/b/t.npz"}), checks, folder / "report.html"
    )
    return path.read_text(encoding="utf-8")


def test_the_report_is_self_contained(report: str) -> None:
    assert not re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?(?:https?:)?//""", report)
    assert "<script" not in report
    assert "<link" not in report
    assert set(re.findall(r'src="([^"]{11})', report)) == {"data:image/"}
    assert "/a/b" not in report


def test_the_report_says_what_failed_and_what_is_made_up(report: str) -> None:
    assert "Failed checks: output equality" in report
    assert "&lt;9 events&gt;" in report
    assert "not run" in report
    assert "SYNTHETIC" in report
    assert report.count("<figure>") == 2
    assert report.count("<figcaption>") == 2


def test_the_report_shows_the_numbers_of_the_rows(report: str) -> None:
    rows = frame(pa.concat_tables(everything()))
    at = rows[(rows["metric"] == "hit_rate") & (rows["experiment"] == "capacity_sweep") & rows["sequence"].isna()]
    row = at[(at["policy"] == "lru") & (at["slots"] == 2) & (at["reset"] == "sequence")].iloc[0]
    assert f"{100 * row['value']:.1f} % [{100 * row['lo']:.1f}, {100 * row['hi']:.1f}]" in report
    assert "cannot tell" in report
