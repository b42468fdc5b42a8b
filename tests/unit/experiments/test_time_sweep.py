"""Simulated time through the commands: `rgpu replay hardware=...`, a grid of machines, and a machine measured here."""

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rgpu.errors import InputError
from rgpu.experiments.bench import run as bench
from rgpu.experiments.benching import link, roofline
from rgpu.experiments.benching.transfers import MIB
from rgpu.experiments.replay import run as replay_command
from rgpu.experiments.study import time_points
from rgpu.experiments.sweep import run as sweep_command
from rgpu.hardware import profile_of
from rgpu.kernels.shapes import ModelShape
from rgpu.replay.timing.cost import experts_only
from rgpu.replay.timing.facts import pass_facts
from rgpu.results.provenance import config_hash
from rgpu.results.rows import read
from rgpu.traces.storage import load_trace, save_trace
from tests.support import routed_trace
from tests.unit.test_hardware import entries


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return save_trace(routed_trace(4, tokens=60, sequences=3, sizes=(9000, 9000)), tmp_path / "t.safetensors")


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command; gives (exit code, its document, stderr)."""

    def run_it(command: Any, *words: str) -> tuple[int, dict[str, Any], str]:
        monkeypatch.setattr("sys.argv", ["rgpu", *words])
        code = 0
        try:
            command.main()
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capsys.readouterr()
        return code, json.loads(out.splitlines()[-1]) if out else {}, err

    return run_it


GRID = ("grid.policy=[lru,on_demand,ring]", "grid.slots=[3,4]", "grid.hardware=[rtx4090,laptop_nvme]",
        "grid.miss=[fetch,cpu,split,zero_copy]", "replay.reset=none", "workers=2")  # fmt: skip


def test_a_grid_gives_what_single_replays_give(trace: Path, tmp_path: Path, call: Any) -> None:
    out = tmp_path / "rows.parquet"
    code, made, _ = call(sweep_command, f"trace.path={trace}", f"out={out}", *GRID)
    assert code == 0 and made["timings"] == 6 * 5  # a machine without a GPU can only fetch
    rows = read(out)
    assert set(rows["experiment"]) == {"time_sweep"} and not list(tmp_path.glob(".rows-parts-*"))
    timed = rows[rows["simulated"]]
    assert set(timed["metric"]) >= {
        "tpot_s", "tpot_compute_s", "tpot_exposed_s", "tpot_cpu_s", "tpot_sync_s", "tpot_p50_s", "tpot_p95_s", "tpot_p99_s",
        "link_busy_share", "bytes_demand", "tokens_per_s", "bound_share", "seconds",
    }  # fmt: skip
    cells = timed.set_index(["policy", "slots", "machine", "miss", "metric"])["value"]
    for policy, machine, miss in (
        ("lru", "rtx4090", "cpu"),
        ("ring", "rtx4090", "fetch"),
        ("on_demand", "laptop_nvme", "fetch"),
    ):
        words = (f"trace.path={trace}", f"policy={policy}", f"hardware={machine}", f"miss={miss}", "pool.slots=4")
        code, one, _ = call(replay_command, *words)
        assert code == 0 and one["time"]["simulated"] is True
        for metric in ("tpot_s", "tpot_p95_s", "link_busy_share", "bytes_demand", "seconds"):
            assert cells[policy, 4, machine, miss, metric] == one["time"][metric]
        assert cells[policy, 4, machine, miss, "bound_share"] == pytest.approx(one["time"]["bound_share"])
        assert cells[policy, 4, machine, miss, "handler_bound_share"] == pytest.approx(
            one["time"]["handler_bound_share"]
        )
        counted = rows[~rows["simulated"] & (rows["policy"] == policy) & (rows["slots"] == 4)].set_index("metric")
        bounds = one["bounds"]
        assert (
            counted.loc["belady_hit_rate", "numerator"]
            == bounds["belady_hits"]
            == one["hits"] + bounds["hits_below_belady"]
        )
        above = counted.loc["loads_above_bypass", "numerator"]
        assert above == bounds["loads_above_bypass"] == one["loads"] - bounds["bypass_loads"] >= 0
    shares = timed[timed["metric"] == "bound_share"]["value"]
    assert (shares > 0).all() and (shares <= 1 + 1e-9).all()
    parts = sum(cells["ring", 3, "rtx4090", "split", f"tpot_{p}_s"] for p in ("compute", "exposed", "cpu", "sync"))
    assert parts == pytest.approx(cells["ring", 3, "rtx4090", "split", "tpot_s"], rel=1e-12)


def test_a_killed_grid_continues(trace: Path, tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    out, real = tmp_path / "rows.parquet", time_points.timed_rows
    done: list[int] = []

    def dies(*args: Any) -> Any:
        if len(done) == 4:
            raise KeyboardInterrupt
        done.append(1)
        return real(*args)

    words = (f"trace.path={trace}", f"out={out}", *GRID, "workers=1")
    monkeypatch.setattr(time_points, "timed_rows", dies)
    code, _, err = call(sweep_command, *words)
    assert code == 130 and not out.exists() and "continue" in err
    again: list[int] = []
    monkeypatch.setattr(time_points, "timed_rows", lambda *a: again.append(1) or real(*a))
    code, made, _ = call(sweep_command, *words)
    assert code == 0 and len(again) == 2 and made["timings"] == 30


def test_without_hardware_nothing_changes(trace: Path, call: Any) -> None:
    _, plain, _ = call(replay_command, f"trace.path={trace}")
    _, timed, _ = call(replay_command, f"trace.path={trace}", "hardware=rtx4090")
    assert "time" not in plain
    assert {k: v for k, v in timed.items() if k not in ("time", "accesses_per_s")} == {
        k: v for k, v in plain.items() if k != "accesses_per_s"
    }
    assert timed["time"]["cost"] == "experts only" and timed["time"]["fits_vram"] is True


def test_disk_speculation_and_a_timeline(trace: Path, tmp_path: Path, call: Any) -> None:
    base = (f"trace.path={trace}", "hardware=rtx4090", "policy=ring")
    _, plain, _ = call(replay_command, *base)
    _, disk, _ = call(replay_command, *base, "ram.bytes=30000")
    assert disk["time"]["bytes_disk"] > 0 and disk["time"]["tpot_s"] > plain["time"]["tpot_s"]
    path = tmp_path / "line.json"
    _, wide, _ = call(replay_command, *base, "speculative.width=4", f"timeline={path}")
    assert wide["time"]["tpot_s"] < plain["time"]["tpot_s"]
    assert len(json.loads(path.read_text())["traceEvents"]) == wide["time"]["timeline_events"]


@pytest.mark.parametrize(
    ("command", "words", "line"),
    [
        (replay_command, ["hardware=rtx4091"], "rgpu replay: no hardware=rtx4091; did you mean rtx4090?"),
        (replay_command, ["hardware=rtx4090", "miss=guess"], "rgpu replay: miss: got 'guess'; expected one of fetch"),
        (replay_command, ["hardware=laptop_nvme", "miss=split"], "rgpu replay: miss=split: got machine laptop_nvme"),
        (replay_command, ["timeline=x.json"], "rgpu replay: timeline, ram: got no hardware; expected hardware=NAME"),
        (replay_command, ["hardware_file=no.yaml"], "rgpu replay: hardware: cannot read no.yaml"),
        (
            replay_command,
            ["hardware=rtx4090", "hardware.sync_us.value=inf"],
            "rgpu replay: hardware rtx4090: got sync_us=inf",
        ),
        (replay_command, ["hardware=rtx4090", "hardware.link_gb_per_s.value=1e-12"], "rgpu replay: timing: got up to"),
        *(
            (
                replay_command,
                ["hardware=rtx4090", "timeline=x.json", f"timeline_passes={p}"],
                f"rgpu replay: timeline_passes: {e}",
            )
            for p, e in (
                ("[5]", "got [5]; expected the first pass"),
                ("[a,b]", "got ['a', 'b']; expected"),
                ("[8,2]", "got [8, 2]; "),
                ("[-5,2]", "got [-5, 2]; "),
                ("[1.5,2]", "got [1.5, 2]; "),
                ("[2,2]", "got [2, 2]; "),
            )
        ),
        (replay_command, ["hardware=rtx4090", "speculative.width=2", "seed=-1"], "rgpu replay: seed: got -1; expected"),
        (
            sweep_command,
            ["grid.hardware=[h200]", "grid.miss=[]"],
            "rgpu sweep: grid.miss: got []; expected some of fetch",
        ),
        (sweep_command, ["grid.hardware=[h200]", "orders=5"], "rgpu sweep: orders: got 5 with grid.hardware"),
        (sweep_command, ["grid.hardware=[rtx4091]"], "rgpu sweep: no hardware=rtx4091; did you mean rtx4090?"),
        (sweep_command, ["grid.hardware=[rtx4090]", "grid.miss=[guess]"], "rgpu sweep: grid.miss: got 'guess'"),
        (
            sweep_command,
            ["grid.hardware=[laptop_nvme]", "grid.miss=[cpu]"],
            "rgpu sweep: grid.miss: got cpu for machines",
        ),
        (sweep_command, ["grid.hardware=[h200,h200]"], "rgpu sweep: grid.hardware: got profiles of one name"),
    ],
)
def test_mistakes_are_one_line(
    trace: Path, call: Any, command: Any, words: list[str], line: str, tmp_path: Path
) -> None:
    code, found, err = call(
        command, f"trace.path={trace}", *words, *([f"out={tmp_path}/r.parquet"] if "grid" in words[0] else [])
    )
    assert (code, found) == (2, {}) and err.startswith(line) and err.count("\n") == 1


@pytest.mark.parametrize("content", [b"name: [1\n", bytes(range(256)), b"- 1\n", b"5\n", b""])
def test_a_profile_that_cannot_be_read(trace: Path, tmp_path: Path, call: Any, content: bytes) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    code, found, err = call(replay_command, f"trace.path={trace}", f"hardware_file={path}")
    assert (code, found) == (2, {}) and err.startswith("rgpu replay: hardware: ") and err.count("\n") == 1


def test_numbers_of_a_profile_can_be_set(trace: Path, call: Any) -> None:
    code, found, err = call(
        replay_command, f"trace.path={trace}", "hardware=rtx4090", "hardware.link_gb_per_s.value=25.5"
    )
    assert code == 0 and found["time"]["seconds"] > 0, err


def test_the_seed_draws_the_accepted_drafts(trace: Path, call: Any) -> None:
    words = (f"trace.path={trace}", "hardware=rtx4090", "speculative.width=4", "speculative.acceptance=0.5")
    took = [call(replay_command, *words, f"seed={seed}")[1]["time"]["seconds"] for seed in (0, 1, 1)]
    assert took[0] != took[1] == took[2]


def test_a_grid_is_not_continued_with_other_numbers(trace: Path) -> None:
    shape = load_trace(trace).shape
    cost = experts_only(2, shape.expert_bytes)
    facts = pass_facts(load_trace(trace))
    profile = profile_of(entries("rtx4090"))
    clocks = time_points.Clocks((profile,), ("fetch",), "expert", cost, facts)
    others = (
        replace(clocks, profiles=(replace(profile, link_gb_per_s=26.0),)),
        replace(clocks, cost=replace(cost, dense_bytes=cost.dense_bytes + 1)),
        replace(clocks, cost=replace(cost, expert_bytes=cost.expert_bytes + 1)),
    )
    names = [config_hash(c.identity(2)) for c in (clocks, *others)]
    assert len(set(names)) == 4
    same = replace(clocks, cost=experts_only(2, shape.expert_bytes))
    assert config_hash(same.identity(2)) == names[0]


@pytest.mark.parametrize("name", ["a/../../evil", "x: y", "", "a b", "a\nb"])
def test_a_profile_has_a_name_that_files_can_have(name: str, tmp_path: Path) -> None:
    settings = link.Settings("tiny", "int4-g128", 1, 1, tmp_path, MIB)
    with pytest.raises(InputError, match="^link.name: got .*; expected letters, digits"):
        link.measure_profile(name, settings)
    assert not list(tmp_path.iterdir())


def test_the_cost_of_a_layer_is_an_assumption() -> None:
    value, source = link.launch_of(5e-6)
    assert value == pytest.approx(60) and source.startswith("assumption: 12 kernels a layer") and "5 us" in source


def test_this_machine_becomes_a_profile(
    trace: Path, tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roofline, "READ_BYTES", MIB)
    monkeypatch.setattr(link, "COPY_BYTES", MIB)
    monkeypatch.setattr(link, "working_set", lambda device: 1)
    monkeypatch.setattr(link, "model_of", lambda name: ModelShape("tiny", 256, 256, 6, 2))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    words = ("what=link", f"out={tmp_path}", "repeats=1", "link.disk_mib=2", "link.format=int4-g128", "link.name=here")
    code, made, _ = call(bench, *words)
    assert made["threads"] == len(os.sched_getaffinity(0)) and made["link"].startswith("not measured: there is no GPU")
    assert f"{made['threads']} of {made['cores']} cores" in made["sources"]["cpu_gb_per_s"]
    assert code == 0 and all(math.isfinite(made[k]) and made[k] > 0 for k in made["sources"])
    assert all(s.startswith("measured 20") for s in made["sources"].values())
    assert [p.name for p in (tmp_path / "hardware").iterdir()] == ["here.yaml"] and not list(tmp_path.glob(".rgpu-*"))
    for given in (f"hardware_file={made['profile']}", f"--config-dir={tmp_path}"):
        given_words = (given, *(["hardware=here"] if given.startswith("--") else []), f"trace.path={trace}")
        code, found, err = call(replay_command, *given_words)
        assert code == 0 and found["time"]["hardware_profile"] == "here", err
    code, _, err = call(bench, "what=link", f"out={tmp_path}", "link.disk_mib=0")
    assert code == 2 and err.startswith("rgpu bench: bench link: got no data to read")
