"""benchmarks/gpu.py where there is no GPU: its checks in the interpreter, and the lines it ends with."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rgpu.experiments.benching import correctness, looking_ahead
from rgpu.experiments.benching.correctness import KERNELS, Case, cases, check
from rgpu.experiments.benching.table import read_rows
from rgpu.kernels import gather, lookahead, resolve, route, sort_pairs, topk
from rgpu.kernels.shapes import FAMILIES

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu.py"


def script(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, env=os.environ)


def test_checks_in_the_interpreter(tmp_path: Path) -> None:
    done = script("--interpret", "--only-experts", "--formats", "bf16", "--rows", "1", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    rows = read_rows(tmp_path / "correctness.csv")
    assert summary["wrong"] == [] and summary["correctness_rows"] == len(rows) == 12
    assert {row["kernel"] for row in rows} == {"decode", "prefill"}
    assert {row["gate"] for row in rows} == set(correctness.GATES)
    assert all(row["right"] == row["repeats"] == "True" for row in rows)
    assert json.loads((tmp_path / "summary.json").read_text())["exit_codes"] == {"correctness": 0}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("name", ["gpu", "gpu_engine"])
def test_no_gpu(name: str) -> None:
    done = subprocess.run([sys.executable, str(SCRIPT.with_stem(name))], capture_output=True, text=True, env=os.environ)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"{name}: no GPU: ") and done.stderr.count("\n") == 1


def test_an_unknown_format() -> None:
    done = script("--interpret", "--formats", "int3")
    assert done.returncode == 2 and done.stderr.startswith("gpu: --formats: got 'int3'; expected some of ")


def test_a_checkout_without_its_links(tmp_path: Path) -> None:
    (tmp_path / "benchmarks").mkdir()
    copy = tmp_path / "benchmarks" / "gpu.py"
    copy.write_text(SCRIPT.read_text())
    (tmp_path / "rgpu").mkdir()
    (tmp_path / "rgpu" / "__init__.py").touch()
    done = subprocess.run([sys.executable, str(copy)], capture_output=True, text=True, cwd=tmp_path)
    assert (
        done.returncode == 2
        and done.stderr.startswith("gpu: no rgpu/kernels/decode.py: ")
        and done.stderr.count("\n") == 1
    )


def test_nothing_heavy_is_needed() -> None:
    """What the machines with a GPU lack is not imported by what runs there."""
    modules = "correctness, looking_ahead, measuring, providers, running, table, transfers"
    code = (
        f"from rgpu.experiments.benching import {modules}\nimport sys\n"
        "found = {'hydra', 'numba', 'pandas', 'matplotlib', 'transformers', 'llvmlite'} & set(sys.modules)\n"
        "sys.exit(f'loaded {sorted(found)}' if found else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_kernel_of_every_format_is_planned() -> None:
    planned = list(cases())
    assert len({case.key for case in planned}) == len(planned)
    found = {(case.kernel, case.format) for case in planned}
    assert {(kernel, name) for kernel in ("decode", "prefill") for name, _ in FAMILIES} <= found
    faster = {fmt for kernel, fmt in found if kernel == "decode_fast"}
    assert {"int4-g128", "int4-g32-zero", "q4_k"} <= faster and not {"bf16", "nf4"} & faster
    assert {case.kernel for case in planned} == set(KERNELS)


def test_lookahead_is_checked_and_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, few = torch.device("cpu"), (lookahead.CASES[5], lookahead.Case(1, 8, 2, 12, 4, "threshold", 5))
    monkeypatch.setattr(lookahead, "CASES", few)
    for other in (topk, sort_pairs, resolve, route, gather):
        monkeypatch.setattr(other, "CASES", ())
    rows = list(correctness.small_kernels(cpu))
    assert [row["kernel"] for row in rows] == ["lookahead"] * 2
    assert all(row["right"] and row["repeats"] for row in rows)
    monkeypatch.setattr(looking_ahead, "REPEATS", 1)
    monkeypatch.setattr(looking_ahead, "MAPS", 2)
    timed = list(looking_ahead.measure(cpu, few))
    assert [row["provider"] for row in timed] == ["lookahead", "logits", "torch", "round_trip"] * 2
    assert all(set(row) == set(looking_ahead.COLUMNS) and row["us_p50"] > 0 for row in timed)
    real = lookahead.lookahead
    monkeypatch.setattr(
        lookahead, "lookahead", lambda *a, **k: real(*a, **k)._replace(logits_NHE=real(*a, **k)[0] + 1e-6)
    )
    assert not any(row["right"] for row in correctness.small_kernels(cpu))


def test_a_wrong_kernel_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("decode", "int4-g32-zero", "small", "silu", 1, "fp32")
    cpu = torch.device("cpu")
    assert check(case, cpu)["right"]
    real = correctness.moe_decode
    monkeypatch.setattr(correctness, "moe_decode", lambda *a, **k: real(*a, **k) * 1.0001)
    assert not check(case, cpu)["right"]
    monkeypatch.setattr(correctness, "moe_decode", lambda *a, **k: real(*a, **k) * float("nan"))
    assert not check(case, cpu)["right"]
    noise = iter((0.0, 1e-9))
    monkeypatch.setattr(correctness, "moe_decode", lambda *a, **k: real(*a, **k) + next(noise))
    found = check(case, cpu)
    assert found["right"] and not found["repeats"]
