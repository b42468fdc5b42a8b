"""`rgpu bench kernels` end to end on a tiny model: rows only for what agrees with plain torch, and one line for mistakes."""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rgpu.errors import InputError
from rgpu.experiments.bench import run
from rgpu.experiments.benching import cases, providers, roofline, running
from rgpu.experiments.benching.cases import FORMATS, calls, fill, make_pool
from rgpu.experiments.benching.measuring import COLUMNS
from rgpu.experiments.benching.providers import FAMILIES
from rgpu.experiments.benching.roofline import Roof
from rgpu.experiments.benching.table import append_rows, read_rows
from rgpu.experiments.benching.timing import LEAST, call_seconds, samples
from rgpu.kernels.shapes import ModelShape
from rgpu.types import Gate

CPU = torch.device("cpu")
TINY = (
    ModelShape("tiny", 256, 256, 6, 2),
    ModelShape("tiny-oss", 256, 128, 4, 2, Gate("gpt_oss", limit=7.0), True),
)
Bench = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Bench:
    """Runs the command on tiny models; gives its exit code, its JSON document and stderr."""
    monkeypatch.setattr(cases, "MODELS", TINY)
    monkeypatch.setattr(running, "working_set", lambda device: 1)
    monkeypatch.setattr(roofline, "READ_BYTES", 1 << 16)
    before = torch.get_num_threads()

    def run_it(*words: str) -> tuple[int, dict[str, Any], str]:
        quick = ("models=[tiny]", "formats=[int4-g128]", "rows=[1]", "repeats=1", "seconds=0.01", f"out={tmp_path}")
        monkeypatch.setattr("sys.argv", ["rgpu bench", *quick, *words])
        code = 0
        try:
            run.main()
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capsys.readouterr()
        torch.set_num_threads(before)
        return code, json.loads(out.splitlines()[-1]) if out else {}, err

    return run_it


def test_rows_and_figure(bench: Bench, tmp_path: Path) -> None:
    code, found, _ = bench("models=[tiny,tiny-oss]", "formats=[nf4,bf16,q4_k]", "rows=[1,17]")
    assert code == 0 and found["failed"] == []
    with (tmp_path / "kernels.csv").open(newline="") as file:
        table = csv.DictReader(file)
        rows = list(table)
    assert tuple(table.fieldnames or ()) == COLUMNS
    assert len(rows) == found["rows"]
    who = {(row["model"], row["format"], row["provider"]) for row in rows}
    for model in ("tiny", "tiny-oss"):
        assert {(model, fmt, "rgpu_cpu") for fmt in ("nf4", "bf16")} <= who
        assert {(model, "bf16", f"transformers_{name}") for name in ("eager", "batched_mm", "grouped_mm")} <= who
        assert (model, "nf4", "bitsandbytes_nf4") in who
    assert {row["kernel"] for row in rows if row["rows"] == "17"} == {"prefill"}
    for row in rows:
        assert 0 < float(row["us_p20"]) <= float(row["us_p50"]) <= float(row["us_p80"])
        assert float(row["gb_per_s"]) == pytest.approx(1e-3 * int(row["bytes"]) / float(row["us_p50"]), rel=2e-3)
        assert 0 <= float(row["error"]) < 2e-2 and float(row["roofline_share"]) > 0
    one = next(row for row in rows if (row["model"], row["format"], row["rows"]) == ("tiny", "nf4", "1"))
    assert int(one["bytes"]) == 2 * TINY[0].layout(FORMATS["nf4"]).payload_bytes  # one token's two experts
    assert "multiple of 256" in found["skipped"]["tiny-oss q4_k"]
    for picture in found["figures"]:
        assert Path(picture).stat().st_size > 1000


def test_a_wrong_kernel_gets_no_row(bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ours = FAMILIES[0]

    def off_by_a_twentieth(pool: cases.Pool, threads: int) -> dict[str, providers.Call]:
        right = ours.make(pool, threads)["rgpu_cpu"]
        return {"rgpu_cpu": lambda r: 1.05 * right(r)}

    monkeypatch.setattr(providers, "FAMILIES", (replace(ours, make=off_by_a_twentieth), *FAMILIES[1:]))
    code, found, err = bench()
    assert code == 1 and found["failed"] == ["tiny int4-g128 rows=1 rgpu_cpu"]
    assert "differs from plain torch by 0.05" in found["skipped"]["tiny int4-g128 rows=1 rgpu_cpu"]
    assert {row["provider"] for row in read_rows(tmp_path / "kernels.csv")} == {"dequantise_matmul"}


def test_a_kernel_that_breaks_leaves_the_rows_of_others(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(r: cases.Routed) -> torch.Tensor:
        raise ValueError("no such instruction\nand more")

    ours = replace(FAMILIES[0], make=lambda pool, threads: {"rgpu_cpu": breaks})
    monkeypatch.setattr(providers, "FAMILIES", (ours, *FAMILIES[1:]))
    code, found, _ = bench()
    assert code == 1 and found["rows"] == 1
    assert found["skipped"]["tiny int4-g128 rows=1 rgpu_cpu"] == "no such instruction"


def test_the_budget_is_kept(bench: Bench) -> None:
    code, found, _ = bench("budget_s=0", "formats=[int4-g128,mxfp4]")
    assert (code, found["rows"]) == (0, 0) and "csv" not in found
    assert found["skipped"]["tiny mxfp4"] == "the budget of 0 s was over"


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("what=stores", "what: got 'stores'; expected kernels"),
        ("models=[gpt-5]", "models: got 'gpt-5'; expected some of tiny, tiny-oss; "),
        ("models=[]", "models: got an empty list; expected one or more; "),
        ("formats=[int3]", "formats: got 'int3'; expected some of int4-g32, "),
        ("providers=[vllm]", "providers: got 'vllm' on cpu; expected some of rgpu_cpu, "),
        ("providers=[rgpu_decode]", "providers: got 'rgpu_decode' on cpu; "),
        ("device=tpu", "device: got 'tpu'; expected one of auto, cpu, cuda; "),
        ("rows=[0]", "rows: got 0; expected 1 or more"),
        ("threads=0", "bench: got threads=0, "),
        ("threads=abc", "bench: got threads=abc, expected"),
    ],
)
def test_mistakes_are_one_line(bench: Bench, tmp_path: Path, word: str, line: str) -> None:
    code, found, err = bench("device=cpu", word)
    assert (code, found) == (2, {})
    assert err.startswith(f"rgpu bench: {line}") and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_gpu_that_is_not_there(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, _, err = bench("device=cuda")
    assert code == 2 and err == "rgpu bench: device: got cuda; expected a GPU that torch can use; give device=cpu\n"


@pytest.mark.parametrize("name", FORMATS)
def test_random_slots_are_legal_and_differ(name: str) -> None:
    model = ModelShape("tiny", 512, 256, 3, 2, Gate(), True)
    pool = make_pool(model, name, CPU, 1, 1 << 30, 0)
    gates = []
    for row in pool.slots_SB:
        expert = pool.layout.unpack(row)
        for weight in (expert.gate, expert.up, expert.down):
            assert torch.isfinite(weight).all()
            assert 0.05 < float(weight.std()) * weight.shape[1] ** 0.5 < 5
        assert expert.down_bias is not None and float(expert.down_bias.std()) == pytest.approx(0.3, rel=0.2)
        pool.layout.pack(pool.layout.arrays(row), torch.empty_like(row))  # which refuses what no file could hold
        gates.append(expert.gate)
    assert not torch.equal(gates[0], gates[1])


def test_slots_are_filled_through_to_the_last_array() -> None:
    layout = TINY[1].layout(FORMATS["int4-g32"])
    slots_SB = torch.zeros(2, layout.stride, dtype=torch.uint8)
    fill(layout, slots_SB, torch.Generator().manual_seed(0))
    for row in slots_SB:
        assert all(bool(array.any()) for array in layout.views(row).values())


def test_how_many_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    stride = TINY[0].layout(FORMATS["mxfp4"]).stride

    def made(working_set: int, most: int) -> int:
        return len(make_pool(TINY[0], "mxfp4", CPU, working_set, most, 0).slots_SB)

    assert made(1, 1 << 30) == 6  # a layer
    assert made(9 * stride, 1 << 30) == 9  # more where a layer fits a cache
    assert made(9 * stride, 4 * stride) == 4  # fewer where memory ends
    with pytest.raises(InputError, match=r"^tiny mxfp4: got room for 1 experts of [^\n]*; expected 2 or more; "):
        made(1, stride)


def test_calls_use_other_experts_each_time_and_k_different_ones() -> None:
    pool = make_pool(replace(TINY[0], experts=64), "int4-g128", CPU, 1, 1 << 30, 0)
    made = list(calls(pool, 3, 4, 0, CPU))
    assert len({tuple(r.slot_TK.flatten().tolist()) for r in made}) == 4
    for r in made:
        assert all(len(set(chosen)) == 2 for chosen in r.slot_TK.tolist())
        assert r.distinct == r.slot_TK.unique().numel()
        torch.testing.assert_close(r.weight_TK.sum(1), torch.ones(3))


def test_samples_end_with_the_time_or_the_rounds() -> None:
    used: list[int] = []
    each = [lambda n=n: used.append(n) for n in range(4)]
    took, timing = samples(each, CPU, "thread", 2, 60.0, False)
    assert timing == "thread" and len(took) == 8 and used == [1, 2, 3, 0, 1, 2, 3, 0]
    assert len(samples(each, CPU, "wall", 2, 0.0, False)[0]) == LEAST
    assert len(call_seconds(lambda: None, CPU, "wall", 5)) == 5


def test_roof() -> None:
    roof = Roof(gb_per_s=10.0, gflops=100.0)
    assert roof.seconds(1e9, 1e9) == pytest.approx(0.1) and roof.basis(1e9, 1e9) == "memory 10 GB/s"
    assert roof.seconds(1e9, 1e11) == pytest.approx(1.0) and roof.basis(1e9, 1e11) == "matrix product 100 GFLOP/s"


def test_rows_that_are_appended_stay(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.csv"
    append_rows(path, [{"a": 1, "b": "x, y"}], ("a", "b"))
    append_rows(path, [{"a": 2}], ("a", "b"))
    assert read_rows(path) == [{"a": "1", "b": "x, y"}, {"a": "2", "b": ""}]
