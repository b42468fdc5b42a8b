"""The clock held against runs on a GPU, on made-up ids: the trace of forced routing, decisions, calibration and its rows."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen3MoeConfig

from rgpu.errors import InputError
from rgpu.experiments.benching import engine_run, gpu_runs
from rgpu.experiments.benching.gpu_runs import (
    FIRST,
    POLICIES,
    PROMPT_ROWS,
    STAGING,
    GpuRun,
    decided,
    forced_trace,
    usable,
)
from rgpu.experiments.benching.gpu_validation import COLUMNS, calibrate, median_s, rates_of, validate
from rgpu.experiments.benching.gpu_validation_figure import draw
from rgpu.experiments.benching.made_model import ForcedRouting, skeleton
from rgpu.experiments.benching.table import read_rows, write_rows
from rgpu.experiments.suites.validating.judging import verdict
from rgpu.planning.model_facts import ModelFacts
from rgpu.policies.loop import DEMAND_LOADS, HITS
from rgpu.replay.controller import Controller
from rgpu.replay.events import pass_groups
from rgpu.replay.pool import PoolConfig
from rgpu.replay.timing.machine import Machine
from rgpu.runtime.model_bytes import facts_of
from rgpu.types import RoutingEvent

SCRIPT = Path(__file__).resolve().parents[3] / "benchmarks" / "gpu_validation.py"
STEPS = 12
RATES = Machine(name="made up", bytes_per_s=4e12, link_bytes_per_s=5e10, zero_copy_bytes_per_s=4e10)
LAUNCH_S = {True: 2e-5, False: 3e-5}
TRUE = {"sync_s": 1.2e-5, "link_latency_s": 8e-6}


@pytest.fixture(scope="module")
def facts() -> ModelFacts:
    config = Qwen3MoeConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, moe_intermediate_size=32, num_experts=16, num_experts_per_tok=4,
    )  # fmt: skip
    return facts_of(skeleton(config), "bfloat16", "bf16", name="small")


@pytest.fixture(scope="module")
def ids_NLK(facts: ModelFacts) -> np.ndarray:
    rng = np.random.default_rng(3)
    skew_E = rng.permutation(np.arange(1, facts.experts + 1)) ** -0.8
    drawn = rng.random((90, facts.layers, facts.experts)) / skew_E  # the smallest are taken: the most popular ones
    return np.argsort(drawn, axis=2)[:, :, : facts.top_k].astype(np.uint8)


def row(**given: Any) -> dict[str, str]:
    base = {
        "model": "small", "cap_gib": "1", "policy": "lru", "handler": "fetch", "graphs": "True", "fused": "True", "batch": "1",
        "slots": "6", "hit_rate": "0", "misses_per_token": "0", "tpot_ms_p20": "1", "tpot_ms_p50": "1", "tpot_ms_p80": "1",
        "steps": str(STEPS), "error": "",
    }  # fmt: skip
    return base | {name: str(value) for name, value in given.items()}


def run(facts: ModelFacts, ids_NLK: np.ndarray, **given: Any) -> GpuRun:
    """A run whose row is what the true machine takes and what the replay counts."""
    made = decided(row(**given), ids_NLK, facts)
    machine = replace(RATES, launch_s=LAUNCH_S[made.fused], **TRUE)
    ms = 1e3 * median_s(made, machine)
    measured = {"tpot_ms_p20": 0.9 * ms, "tpot_ms_p50": ms, "tpot_ms_p80": 1.1 * ms}
    counted = {"hit_rate": made.hit_rate, "misses_per_token": made.misses}
    return replace(made, row=row(**given, **measured, **counted))


@pytest.fixture(scope="module")
def runs(facts: ModelFacts, ids_NLK: np.ndarray) -> list[GpuRun]:
    return [
        run(facts, ids_NLK, slots=16, cap_gib=4),
        run(facts, ids_NLK, slots=16, cap_gib=4, fused=False),
        run(facts, ids_NLK, slots=6, cap_gib=1),
        run(facts, ids_NLK, slots=12, cap_gib=2),
        run(facts, ids_NLK, slots=12, cap_gib=2, handler="zero_copy"),
        run(facts, ids_NLK, slots=12, cap_gib=2, policy="on_demand"),
        run(facts, ids_NLK, slots=10, cap_gib=2, batch=3),
    ]


def test_what_is_counted_is_what_the_engine_counts() -> None:
    assert FIRST == 1 + engine_run.SETTLED and gpu_runs.PROMPT_ROWS == 32


@pytest.mark.parametrize("batch", [1, 3])
def test_the_trace_is_what_was_forced(facts: ModelFacts, ids_NLK: np.ndarray, batch: int) -> None:
    """Row by row and pass by pass, past the end of the ids and on from their begin."""
    trace = forced_trace(ids_NLK, facts, batch, FIRST + STEPS)
    order, starts, _ = pass_groups(trace)
    forced = ForcedRouting(ids_NLK, batch * PROMPT_ROWS, torch.device("cpu"))
    assert batch * (PROMPT_ROWS + FIRST + STEPS - 1) > len(ids_NLK) or batch == 1
    for p in range(FIRST + STEPS):
        rows = order[starts[p] : starts[p + 1]]
        assert len(rows) == batch * (PROMPT_ROWS if p == 0 else 1)
        forced._advance(None, None, {"input_ids": torch.zeros(batch, len(rows) // batch)})
        want_LTK = forced._next_LTK[:, : len(rows)].numpy()
        np.testing.assert_array_equal(trace.expert_ids[rows].transpose(1, 0, 2), want_LTK)


@pytest.mark.parametrize(("policy", "batch"), [("lru", 1), ("lru", 3), ("on_demand", 1)])
def test_decisions_are_the_controllers(facts: ModelFacts, ids_NLK: np.ndarray, policy: str, batch: int) -> None:
    """What the engine has makes the same hits and misses, pass by pass."""
    made = decided(row(policy=policy, batch=batch), ids_NLK, facts)
    shape = forced_trace(ids_NLK, facts, batch, 2).shape
    controller = Controller(POLICIES[policy], shape, PoolConfig("layer", 6, None, STAGING), keep_log=False)
    controller.start()
    at, before = 0, controller.counts.copy()
    for p in range(FIRST + STEPS):
        if p == FIRST:
            before = controller.counts.copy()
        rows = (at + np.arange(batch * (PROMPT_ROWS if p == 0 else 1))) % len(ids_NLK)
        at += len(rows)
        for layer in range(facts.layers):
            part = ids_NLK[rows, layer].astype(np.int64)
            controller.observe(RoutingEvent(layer, p, part, np.ones(part.shape, np.float32)))
    counts = controller.counts - before
    hits, misses = int(counts[HITS]), int(counts[DEMAND_LOADS])
    assert made.hit_rate == round(hits / (hits + misses), 4) and made.misses == round(misses / STEPS, 3)
    assert not made.same and misses > 0 and (hits > 0) == (policy == "lru")


def test_a_pool_of_every_expert_was_filled(runs: list[GpuRun]) -> None:
    assert [r.resident for r in runs] == [True, True, *[False] * 5]
    assert runs[0].hit_rate == 1.0 and runs[0].misses == 0.0 and runs[0].log.hit.all()
    assert all(r.same for r in runs)


def test_the_machine_is_found_and_the_rest_predicted(runs: list[GpuRun]) -> None:
    found = calibrate(runs, RATES, "small")
    assert found.rows == (0, 1, 3, 5)
    assert found.launch_s[True] == pytest.approx(LAUNCH_S[True], rel=1e-3)
    assert found.launch_s[False] == pytest.approx(LAUNCH_S[False], rel=1e-3)
    assert found.sync_s == pytest.approx(TRUE["sync_s"], rel=1e-2)
    assert found.latency_s == pytest.approx(TRUE["link_latency_s"], rel=1e-2)
    profile = replace(RATES, name="other", sync_s=1e-6)
    points, _ = validate(runs, RATES, profile, {"small": "small"})
    assert [p["role"] for p in points].count("validation") == 3
    for p in points:
        assert set(p) == set(COLUMNS)
        assert abs(p["error"]) < 0.01 and p["decisions_same"]  # type: ignore[arg-type]
    missed = points[2]
    assert missed["error_without_misses"] < -0.01 and missed["error_profile_misses"] < -0.01  # type: ignore[operator]
    assert points[0]["error_without_misses"] == points[0]["error"]


def test_a_difference_is_reported(facts: ModelFacts, ids_NLK: np.ndarray, runs: list[GpuRun]) -> None:
    wrong = decided({**runs[2].row, "misses_per_token": "0.125"}, ids_NLK, facts)
    points, _ = validate([*runs, wrong], RATES, RATES, {"small": "small"})
    assert [p["decisions_same"] for p in points] == [True] * len(runs) + [False]
    assert points[-1]["misses_per_token"] == "0.125" and points[-1]["misses_replayed"] == runs[2].misses


def test_the_figure_is_drawn(runs: list[GpuRun], tmp_path: Path) -> None:
    points, _ = validate(runs, RATES, RATES, {"small": "small"})
    judged = verdict([float(str(p["error"])) for p in points], [float(str(p["spread"])) for p in points])
    files = draw(points, judged, tmp_path, "validation_gpu")
    assert {f.name for f in files} == {"validation_gpu.svg", "validation_gpu.png"} and all(
        f.stat().st_size for f in files
    )


def test_what_is_left_out() -> None:
    assert usable(row()) and not usable(row(graphs=False)) and not usable(row(error="OutOfMemoryError"))


def test_rates_are_those_of_the_largest_transfers() -> None:
    rows = [
        {"way": way, "mib": str(mib), "gb_per_s_p50": str(rate)}
        for way, mib, rate in (("memcpy_to_device", 1, 30), ("memcpy_to_device", 64, 55), ("gather_from_host", 4, 50))
    ]
    found = rates_of(rows, 4150.0, 1e14)
    assert (found.link_rate, found.zero_copy_rate, found.bytes_per_s) == (55e9, 50e9, 4150e9)
    with pytest.raises(InputError, match="no row of gather_from_host"):
        rates_of(rows[:2], 4150.0, 1e14)


def test_bad_input(facts: ModelFacts, ids_NLK: np.ndarray, runs: list[GpuRun]) -> None:
    with pytest.raises(InputError, match=r"got ids of shape \[90, 2, 4\]; expected \[rows, 3, 4\]"):
        forced_trace(ids_NLK[:, :2], facts, 1, 5)
    with pytest.raises(InputError, match="got policy 'fifo'"):
        decided(row(policy="fifo"), ids_NLK, facts)
    with pytest.raises(InputError, match="expected all three"):
        calibrate(runs[:4], RATES, "small")
    with pytest.raises(InputError, match="got fused=False; expected a resident row"):
        validate([runs[0], *runs[3:], run(facts, ids_NLK, fused=False)], RATES, RATES, {"small": "small"})


@pytest.fixture
def script(facts: ModelFacts, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script, whose Qwen3-30B-A3B is the small model."""
    spec = importlib.util.spec_from_file_location("gpu_validation_script", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "facts", lambda name: replace(facts, name=name))
    return module


def called(script: Any, monkeypatch: pytest.MonkeyPatch, folder: Path, routing: Path) -> int:
    arguments = ["--rows", f"{folder}/engine.csv", "--transfers", f"{folder}/transfers.csv", "--routing", str(routing)]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments, "--figures", str(folder / "figures")])
    with pytest.raises(SystemExit) as ended:
        script.main()
    return int(str(ended.value.code))


def test_the_script(
    script: Any, runs: list[GpuRun], ids_NLK: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    rows = [{**r.row, "model": "Qwen3-30B-A3B"} for r in runs] + [{**runs[0].row, "graphs": "False"}]
    write_rows(tmp_path / "engine.csv", rows, list(rows[0]))
    transfers = [
        {"way": "memcpy_to_device", "mib": 64, "gb_per_s_p50": 50},
        {"way": "gather_from_host", "mib": 64, "gb_per_s_p50": 40},
    ]
    write_rows(tmp_path / "transfers.csv", transfers, list(transfers[0]))
    assert called(script, monkeypatch, tmp_path, tmp_path) == 2
    assert capsys.readouterr().err.startswith("gpu_validation: --routing: got no ")
    np.save(tmp_path / "qwen.npy", ids_NLK)
    assert called(script, monkeypatch, tmp_path, tmp_path) == 0
    found = json.loads((tmp_path / "validation.json").read_text())
    assert (found["rows"], found["decisions_same"], found["judged"]["error"]["configurations"]) == (7, 7, 3)
    assert len(read_rows(tmp_path / "validation.csv")) == 7 and (tmp_path / "figures" / "validation_gpu.png").exists()
    write_rows(tmp_path / "engine.csv", [{**row, "hit_rate": "0.1234"} for row in rows], list(rows[0]))
    assert called(script, monkeypatch, tmp_path, tmp_path) == 1
    assert "decisions DIFFER" in capsys.readouterr().out
    write_rows(tmp_path / "engine.csv", [{**rows[0], "model": "another"}], list(rows[0]))
    assert called(script, monkeypatch, tmp_path, tmp_path) == 2
    assert capsys.readouterr().err.startswith("gpu_validation: --rows: got the model another; expected some of ")
