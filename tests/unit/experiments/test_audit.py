"""`rgpu audit` and the log that `rgpu replay` writes."""

import json
from pathlib import Path
from typing import Any

import pytest

from rgpu.experiments.audit import run as audit
from rgpu.experiments.replay import run as replay
from rgpu.traces.storage import save_trace
from tests.support import routed_trace


def ran(
    command: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
) -> tuple[int, Any, str]:
    monkeypatch.setattr("sys.argv", [command.name, *words])
    code = 0
    try:
        command.main()
    except SystemExit as end:
        code = int(end.code or 0)
    out, err = capsys.readouterr()
    return code, json.loads(out.splitlines()[-1]) if out else None, err


def test_a_replay_is_written_and_audited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = save_trace(routed_trace(4, tokens=60, sequences=3, sizes=(10, 10)), tmp_path / "t.safetensors")
    log = tmp_path / "lru.safetensors"
    _, made, _ = ran(replay, monkeypatch, capsys, f"trace.path={trace}", f"log={log}", "pool.slots=4")
    words = (f"log={log}", "policy=lru", "flow_bound=true", "link.gb_per_s=1", "link.latency_us=10")
    code, found, _ = ran(audit, monkeypatch, capsys, *words)
    assert code == 0 and found["legal"] and found["agrees"] and found["divergence"] is None
    assert (found["hits"], found["demand_loads"], found["bytes_loaded"]) == (
        made["hits"], made["loads"], made["bytes_loaded"])  # fmt: skip
    assert found["bounds"]["fewest_bytes"] == pytest.approx(10 * found["bounds"]["fewest_loads"])
    assert found["bounds"]["fewest_loads"] < found["demand_loads"]
    cost = found["regret"]
    assert cost["extra_bytes"] == 10 * cost["extra_loads"] > 0 and cost["stall_s"] == pytest.approx(
        cost["extra_loads"] * (1e-5 + 10 / 1e9)
    )
    _, other, _ = ran(audit, monkeypatch, capsys, f"log={log}", "policy=fifo", "regret=false")
    assert not other["agrees"] and "fifo evicts expert" in other["divergence"] and "regret" not in other


def test_kit_and_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, found, _ = ran(audit, monkeypatch, capsys, f"export={tmp_path}")
    kit = json.loads(Path(found["kit"]).read_text())
    assert code == 0 and found["cases"] == len(kit["cases"]) > 400
    answers = {c["name"]: {"lru": c["expected"]["lru"]} for c in kit["cases"][:9]}
    answers["three_layers"]["lru"]["hits"] += 1
    (tmp_path / "answers.json").write_text(json.dumps(answers))
    _, checked, _ = ran(audit, monkeypatch, capsys, f"results={tmp_path / 'answers.json'}")
    assert not checked["conforms"] and checked["first"] == ["three_layers lru: got hits 13, expected 12"]
    assert checked["checked"] == 27


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ((), "got nothing"),
        (("log=a.safetensors", "export=b"), "got log and export"),
        (("log=none.safetensors",), "no such file"),
        (("results=none.json",), "cannot read"),
    ],
)
def test_mistakes_are_one_line(
    words: tuple[str, ...], match: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = ran(audit, monkeypatch, capsys, *words)
    assert (code, out) == (2, None) and match in err and err.count("\n") == 1
