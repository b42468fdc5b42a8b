"""The sweep: same counts as single replays, one parquet, and a killed one that continues."""

import json
from pathlib import Path
from typing import Any

import pytest

from rgpu.experiments import replay
from rgpu.experiments.study import points
from rgpu.experiments.sweep import run
from rgpu.results.rows import read
from rgpu.traces.storage import save_trace
from tests.support import routed_trace


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return save_trace(routed_trace(4, tokens=60, sequences=3, sizes=(10, 10)), tmp_path / "t.safetensors")


def sweep(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, object]:
    monkeypatch.setattr("sys.argv", ["sweep", *words])
    run.main()
    found: dict[str, object] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


def test_grid_becomes_rows(
    trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rows.parquet"
    words = (f"trace.path={trace}", "grid.policy=[lru,belady]", "grid.slots=[2,4]", f"out={out}", "replay.reset=none")
    made = sweep(monkeypatch, capsys, *words)
    rows = read(out)
    assert made["row_count"] == len(rows) and made["replays"] == 4
    whole = rows[(rows["experiment"] == "capacity_sweep") & rows["sequence"].isna()]
    hit = whole[whole["metric"] == "hit_rate"].set_index(["policy", "slots"])["value"]
    assert made["orders"] == 20 and set(rows["order"].dropna()) == set(range(20))
    assert (hit["belady"] >= hit["lru"]).all()
    assert list(tmp_path.glob(".rows-parts-*")) == []


def test_a_killed_sweep_continues_and_loses_nothing(
    trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rows.parquet"
    words = (f"trace.path={trace}", "grid.policy=[lru]", "grid.slots=[2,3,4]", f"out={out}", "workers=1")
    real = points.replay
    done: list[int] = []

    def dies(*args: object, **named: object) -> object:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(1)
        return real(*args, **named)

    monkeypatch.setattr(points, "replay", dies)
    with pytest.raises(SystemExit) as stop:
        sweep(monkeypatch, capsys, *words)
    assert stop.value.code == 130 and not out.exists()
    count: list[int] = []
    monkeypatch.setattr(points, "replay", lambda *a, **k: count.append(1) or real(*a, **k))
    assert sweep(monkeypatch, capsys, *words)["replays"] == 3
    assert len(count) == 1
    assert sorted(set(read(out)["slots"])) == [2, 3, 4]


def test_a_policy_that_knows_the_future_is_shown_and_judged_against_nobody(
    trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rows.parquet"
    words = (
        f"trace.path={trace}",
        "grid.policy=[lru,fifo,size_aware_farthest]",
        "grid.slots=[4]",
        "replay.reset=sequence",
    )
    sweep(monkeypatch, capsys, *words, f"out={out}")
    rows = read(out)
    assert set(rows.loc[rows["policy"] == "size_aware_farthest", "kind"]) == {"clairvoyant"}
    judged = rows[rows["verdict"].notna()]
    assert {*judged["policy"], *judged["baseline"]} == {"lru", "fifo"}


def test_warm_orders_continue_after_an_interrupt(
    trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, again = tmp_path / "rows.parquet", tmp_path / "again.parquet"
    words = (f"trace.path={trace}", "grid.policy=[lru,fifo,belady,belady_bypass]", "grid.slots=[2,4]", "replay.reset=none",
             "orders=5", "workers=1")  # fmt: skip
    real, calls = points.replay, [0]

    def dies(*args: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] == 20:  # in the third order
            raise KeyboardInterrupt
        return real(*args, **named)

    monkeypatch.setattr(points, "replay", dies)
    with pytest.raises(SystemExit):
        sweep(monkeypatch, capsys, *words, f"out={out}")
    calls[0] = 100
    assert sweep(monkeypatch, capsys, *words, f"out={out}")["orders"] == 5
    assert calls[0] - 100 == 3 * 8
    sweep(monkeypatch, capsys, *words, f"out={again}")
    drop = ["date", "versions", "commit"]
    first, second = (read(p)[read(p)["metric"] != "accesses_per_s"].drop(columns=drop) for p in (out, again))
    assert first.equals(second)
    rows = first[first["experiment"] == "capacity_sweep"]
    one = rows[(rows["metric"] == "loads_per_token") & (rows["policy"] == "lru") & (rows["slots"] == 2)]
    assert len(one) == 1 + 5 * 3 and one["lo"].notna().sum() == 1
    assert {"pair_difference", "gap_decomposition"} <= set(first["experiment"])


def test_an_allocator_in_a_grid_splits_the_same_budget(
    trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rows.parquet"
    words = (f"trace.path={trace}", "grid.slots=[2,4]", f"out={out}", "workers=1")
    sweep(monkeypatch, capsys, *words, "grid.policy=[lru,lru@marginal,static_hot@entropy]")
    rows = read(out)
    whole = rows[(rows["metric"] == "loads_per_token") & rows["sequence"].isna() & rows["domain"].isna()]
    loads = whole[whole["experiment"] == "capacity_sweep"].set_index(["policy", "slots"])["numerator"]
    assert set(loads.index.get_level_values(0)) == {"lru", "lru@marginal", "static_hot@entropy"}
    monkeypatch.setattr("sys.argv", ["replay", f"trace.path={trace}", "policy=lru", "allocator=marginal", "pool.slots=4",
                                     "replay.reset=sequence"])  # fmt: skip
    replay.run.main()
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["loads"] == loads["lru@marginal", 4]

    sweep(monkeypatch, capsys, *words, "grid.policy=[lru,lru@marginal,belady_bypass@marginal]", "grid.hardware=[rtx4090]",
          "replay.reset=none", "trace.expert_bytes=1000000")  # fmt: skip
    rows = read(out)
    above = rows[rows["metric"] == "loads_above_bypass"].set_index(["policy", "slots"])["value"]
    assert above["belady_bypass@marginal", 2] == 0 < above["lru@marginal", 2]  # against the best of the same pools

    for words_, line in (
        (("grid.policy=[lru@best]",), "no allocator=best"),
        (("grid.policy=[lru@marginal]", "grid.scope=[global]"), "pool a layer"),
    ):
        with pytest.raises(SystemExit) as stop:
            sweep(monkeypatch, capsys, *words, *words_)
        assert stop.value.code == 2 and line in capsys.readouterr().err
