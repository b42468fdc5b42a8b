"""`rgpu reproduce suite=field` on a tiny trace: every figure computed, judged, drawn and reported; a killed run continues."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from rgpu.errors import InputError
from rgpu.experiments.reproduce import SUITES, suite_named
from rgpu.experiments.suites import field
from rgpu.experiments.suites.published.record import NOT_TESTABLE, STATUSES
from rgpu.results.rows import read
from rgpu.traces.storage import save_trace
from tests.support import routed_trace


def config(folder: Path, **more: Any) -> DictConfig:
    base = {"traces": str(folder / "traces"), "shared": str(folder / "shared"), "out": str(folder / "out"), "quick": True,
            "seed": 0, "workers": 2, "suite": "field"}  # fmt: skip
    return OmegaConf.create({**base, **more})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("field")
    trace = routed_trace(1, tokens=16 * 30, layers=3, experts=12, top_k=3, sequences=16, sizes=(1000, 1000, 1000))
    trace.hidden = None
    trace.header.model = "reference"  # whose bytes beside the experts are known
    for s, meta in enumerate(trace.header.sequences):
        meta["domain"] = ("prose", "code")[s % 2]
    (path / "traces").mkdir()
    save_trace(trace, path / "traces" / "reference.safetensors")
    return path


@pytest.fixture(scope="module")
def document(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(field.run(config(folder)), default=float))
    return found


def test_every_figure_has_a_record(document: dict[str, Any]) -> None:
    assert [f["id"] for f in document["figures"]] == list(field.FIGURES)
    for figure in document["figures"]:
        assert {"paper", "same", "differs", "status", "numbers", "files", "published"} <= set(figure)
        assert figure["status"] in STATUSES
        assert figure["status"] != NOT_TESTABLE, figure
        assert figure["by_trace"]["reference"] == figure["numbers"]["reference"]["status"]
        assert [Path(f).suffix for f in figure["files"]] == [".svg", ".png"]
        assert all(Path(f).is_file() for f in figure["files"])


def test_what_must_hold_on_any_trace_holds_here(document: dict[str, Any]) -> None:
    criteria = {
        f["id"]: {c["text"]: c["holds"] for c in f["numbers"]["reference"]["criteria"]} for f in document["figures"]
    }
    assert criteria["miss_gap"]["nothing misses less than Belady with bypass"]
    assert criteria["granularity"]["a static profile does not move"]
    zero = next(holds for text, holds in criteria["token_cycle"].items() if text.startswith("no hit of LRU in"))
    assert zero
    assert criteria["disk_staircase"]["with room for every expert both are equal"]
    assert criteria["disk_staircase"]["below a token cycle LRU is flat"]


def test_what_is_absent_is_said(document: dict[str, Any]) -> None:
    said = " ".join(document["limits"])
    assert "gpt-oss-20b" in said and "calibrated synthetic" in said and "Quick form" in said


def test_the_report_is_self_contained_and_names_its_sources(document: dict[str, Any], folder: Path) -> None:
    page = Path(document["report"]).read_text(encoding="utf-8")
    assert not re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?(?:https?:)?//""", page)
    assert "Zhang 2026" in page and "kimi-k3-in-c" in page
    assert json.loads((folder / "out" / "report.json").read_text())["statuses"] == document["statuses"]


def test_published_values_are_rows_of_their_own(document: dict[str, Any]) -> None:
    rows = read(document["rows"])
    said = rows[rows["method"] == "published"]
    assert len(said) and not said["simulated"].any()
    assert not said["source"].isna().any()
    times = rows[rows["metric"].isin(["tpot", "tokens_per_s"]) & (rows["method"] != "published")]
    assert times["simulated"].all() and not times["machine"].isna().any()


def test_a_killed_run_continues(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = field.figures()[3], field.figures()[6]  # two quick ones
    monkeypatch.setattr(field, "figures", lambda: [first, second])
    calls: list[str] = []
    real = first.rows
    monkeypatch.setattr(first, "rows", lambda *args: calls.append("first") or real(*args))

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(second, "rows", dies)
    with pytest.raises(KeyboardInterrupt):
        field.run(config(folder, out=str(tmp_path / "out")))
    assert not (tmp_path / "out" / "rows.parquet").exists()
    monkeypatch.undo()
    monkeypatch.setattr(field, "figures", lambda: [first, second])
    monkeypatch.setattr(first, "rows", lambda *_: pytest.fail("computed twice"))
    assert field.run(config(folder, out=str(tmp_path / "out")))["row_count"] > 0
    assert not list((tmp_path / "out").glob(".parts-*"))
    assert calls == ["first"]


def test_a_missing_trace_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="reference.safetensors"):
        field.run(config(tmp_path))


def test_suites_by_name() -> None:
    run, out = suite_named("field")
    assert run is field.run and out == "results/field"
    assert set(SUITES) == {"study", "claims", "field", "predictors", "validation"}
    with pytest.raises(InputError, match="suite: got 'pie'"):
        suite_named("pie")
