"""`rgpu plan`: its document against a replay and a run of its numbers, other shapes, and its one-line mistakes."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import Qwen3MoeConfig

from rgpu.experiments.plan import run as plan_command
from rgpu.experiments.replay import run as replay_command
from rgpu.predictors.markov import Markov
from rgpu.traces.storage import load_trace, save_trace
from tests.support import routed_trace

SIZES: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "moe_intermediate_size": 16, "max_position_embeddings": 256, "intermediate_size": 48, "dtype": "float32",
}  # fmt: skip


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return save_trace(routed_trace(4, tokens=60, sequences=3, sizes=(9000, 9000)), tmp_path / "t.safetensors")


def config(folder: Path, layers: int, experts: int, top_k: int) -> Path:
    Qwen3MoeConfig(**SIZES, num_hidden_layers=layers, num_experts=experts, num_experts_per_tok=top_k).save_pretrained(
        folder
    )
    return folder


@pytest.fixture
def model(trace: Path, tmp_path: Path) -> Path:
    """A config of the trace's shape, without weights."""
    header = load_trace(trace).header
    return config(tmp_path / "model", 2, header.num_experts, header.top_k)


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


def least(call: Any, *words: str) -> dict[str, int]:
    """The caps that the command asks for when it is given none."""
    code, _, err = call(plan_command, *words)
    assert code == 2 and err.count("\n") == 1, err
    return {w: int(n) for w, n in re.findall(r"memory\.(vram|ram)=(\d+)", err.partition("give ")[2])}


def test_the_plan_of_a_gpu_is_what_a_replay_of_it_gives(model: Path, trace: Path, call: Any) -> None:
    words = (f"model={model}", f"trace.path={trace}", "hardware=rtx4090", "policy=lru")
    needed = least(call, *words, "memory.vram=1", "memory.ram=1")
    room = 2 * 3 * 128 * 1024  # some more slots
    code, made, err = call(
        plan_command, *words, f"memory.vram={needed['vram'] + room // 64}", f"memory.ram={needed['ram'] + room}"
    )
    assert code == 0, err
    assert made["used"]["vram"] <= made["memory"]["vram"] == needed["vram"] + room // 64
    assert sum(row["bytes"] for row in made["rows"] if row["where"] == "vram") == made["used"]["vram"]
    assert 2 < made["slots"] < made["shape"]["experts"]
    expected, size = made["expected"], made["shape"]["expert_bytes"]
    assert (expected["same_shape"], expected["slots"]) == (True, made["slots"])
    code, replayed, _ = call(
        replay_command, f"trace.path={trace}", f"trace.expert_bytes={size}", f"pool.slots={made['slots']}", "policy=lru",
        "hardware=rtx4090",
    )  # fmt: skip
    assert code == 0 and replayed["hits"] == expected["hits"]
    timed = made["time"]
    assert timed["simulated"] is True and timed["scaled_by_layers"] == 1
    assert timed["tpot_s"] > replayed["time"]["tpot_s"]  # there only experts take time
    assert 0 < timed["bound_share"] <= 1 and timed["tokens_per_s"] > 0
    for words_of_table in ("KV cache", f"slots: {made['slots']} a pool", "simulated on rtx4090", "same shape"):
        assert words_of_table in err


def test_what_memory_buys(model: Path, trace: Path, call: Any) -> None:
    """More memory: more slots, more hits, more speed; a longer context: fewer slots."""
    words = (f"model={model}", f"trace.path={trace}", "hardware=laptop_nvme")
    base = least(call, *words, "memory.ram=1")["ram"]
    made = []
    for more in (0, 40_000, 10_000_000):
        code, document, err = call(plan_command, *words, f"memory.ram={base + more}")
        assert code == 0, err
        assert document["memory"]["vram"] is None and document["ram_experts"] == 0
        made.append(document)
    assert [d["slots"] for d in made] == sorted(d["slots"] for d in made)
    assert made[0]["slots"] == 2 and made[2]["share"] == 1
    rates = [d["expected"]["hit_rate"] for d in made]
    speeds = [d["time"]["tokens_per_s"] for d in made]
    assert rates == sorted(rates) and speeds == sorted(speeds) and rates[0] < rates[2]
    for document in made:
        growth = [g["slots"] for g in document["context_growth"]]
        assert growth == sorted(growth, reverse=True)


def test_slots_at_the_start_and_at_full_context(call: Any) -> None:
    words = ("model=assets/reference", "memory.vram=null", "memory.ram=545MiB", "trace.path=null", "prefill_rows=64")
    code, document, err = call(plan_command, *words, "context=1024")
    assert code == 0, err
    slots = {g["context"]: g["slots"] for g in document["context_growth"]}
    assert slots[512] > slots[1024] == document["slots"]
    line = (
        f"with memory.grow=true there are {slots[512]} while contexts have up to 512 tokens and {slots[1024]} at 1024"
    )
    assert line in err
    assert "memory.grow" not in call(plan_command, *words, "context=64")[2]


def test_host_memory_that_holds_few_experts_reads_the_disk(model: Path, trace: Path, call: Any) -> None:
    words = (f"model={model}", f"trace.path={trace}", "hardware=rtx4090")
    needed = least(call, *words, "memory.vram=1", "memory.ram=1")
    slow = call(plan_command, *words, f"memory.vram={needed['vram']}", f"memory.ram={needed['ram']}")[1]
    fast = call(plan_command, *words, f"memory.vram={needed['vram']}", "memory.ram=16GB")[1]
    assert slow["ram_experts"] == 1 and fast["disk_experts"] == 0
    assert slow["time"]["disk_busy_share"] > 0 == fast["time"]["disk_busy_share"]
    assert slow["time"]["tokens_per_s"] < fast["time"]["tokens_per_s"]


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_another_shape_takes_the_same_share_and_says_so(trace: Path, tmp_path: Path, scope: str, call: Any) -> None:
    model = config(tmp_path / "other", 6, 24, 3)
    words = (f"model={model}", f"trace.path={trace}", "hardware=rtx4090", f"pool.scope={scope}", "memory.ram=1GB")
    base = least(call, *words, "memory.vram=1")["vram"]
    stride = 3 * 16 * 32 * 4
    code, made, err = call(plan_command, *words, f"memory.vram={base + 6 * 10 * stride}")
    assert code == 0, err
    experts = load_trace(trace).header.num_experts * (2 if scope == "global" else 1)
    assert made["expected"]["same_shape"] is False
    assert made["expected"]["slots"] == min(experts, max(2, round(made["share"] * experts)))
    assert made["time"]["scaled_by_layers"] == 3 and "another shape" in err


def test_a_predictor_has_its_row(trace: Path, tmp_path: Path, call: Any) -> None:
    header = load_trace(trace).header
    folder = config(tmp_path / "model", 2, header.num_experts, header.top_k)
    words = (f"model={folder}", "trace.path=null", "memory.vram=null", "memory.ram=1GiB")

    def row(*more: str) -> tuple[int, list[int]]:
        code, made, err = call(plan_command, *words, *more)
        assert code == 0, err
        assert ("predictor" in err) == bool(more)
        return made["slots"], [r["bytes"] for r in made["rows"] if r["name"] == "predictor" and r["where"] == "ram"]

    assert row()[1] == []
    maps = 4 * header.num_experts * 33  # from hidden size 32, with a bias; saved for every row, applied where it exists
    assert row("predictor=linear")[1] == [(2 * 5 + 3) * maps]
    saved = Markov().fit(load_trace(trace)).save(tmp_path / "markov")
    assert row(f"calibration.predictor={saved}")[1] == row("predictor=markov")[1]
    needed = [least(call, *words, "memory.ram=1", *more)["ram"] for more in ((), ("predictor=markov",))]
    assert needed[1] - needed[0] == row("predictor=markov")[1][0]


def test_without_trace_or_hardware(model: Path, trace: Path, call: Any) -> None:
    code, made, err = call(plan_command, f"model={model}", "trace.path=null", "hardware=rtx4090")
    assert code == 0 and made["expected"] is None and made["time"] is None and "unknown without a trace" in err
    assert made["memory"] == {"vram": 24_000_000_000, "ram": made["memory"]["ram"]}
    code, made, _ = call(plan_command, f"model={model}", f"trace.path={trace}", "memory.ram=4GB")
    assert code == 0 and made["expected"]["hit_rate"] > 0 and made["time"] is None and made["memory"]["vram"] is None
    code, made, _ = call(
        plan_command, f"model={model}", f"trace.path={trace}", "memory.ram=4GB", "memory.vram=null", "hardware=rtx4090"
    )
    assert code == 0 and made["time"]["on_gpu"] is False and made["time"]["tokens_per_s"] > 0


@pytest.mark.parametrize("fmt", ["float16", "bf16", "int8", "mxfp4"])
def test_smaller_formats_leave_more_slots(model: Path, fmt: str, tmp_path: Path, call: Any) -> None:
    wide = tmp_path / "wide"
    Qwen3MoeConfig(
        **(SIZES | {"hidden_size": 128, "moe_intermediate_size": 128}), num_hidden_layers=2, num_experts=64,
        num_experts_per_tok=4,
    ).save_pretrained(wide)  # fmt: skip
    words = (f"model={wide}", "trace.path=null", "memory.ram=527MiB")
    plain = call(plan_command, *words)[1]
    stored = call(plan_command, *words, f"format={fmt}")[1]
    assert stored["slots"] > plain["slots"] and stored["dense_bytes"] == plain["dense_bytes"]


@pytest.mark.parametrize(
    ("words", "needle"),
    [
        (["model=/no/such"], "no such folder"), (["dtype=float8"], "dtype"), (["format=int3"], "storage format"),
        (["memory.ram=lots"], "memory.ram"), (["memory.vram=8GiB", "hardware=laptop_nvme"], "no GPU"),
        (["context=100000"], "at most 256"), (["context=1.5"], "whole number"), (["batch=0"], "batch"),
        (["trace.path=/no/such.safetensors"], "no/such"), (["pool.scope=row"], "pool.scope"),
        (["hardware=rtx9999"], "hardware"), (["policy=lruu"], "lru"), (["group=8"], "expected none"),
        (["hardware=rtx4090", "memory.vram=10MiB"], "memory.vram="),
        (["hardware=laptop_nvme", "miss=cpu"], "miss"), (["hardware=rtx4090", "overlap=none"], "overlap"),
        (["miss=teleport"], "miss"), (["predictor=oracle"], "can run live"),
        (["predictor=ngram"], "rgpu train predictor=ngram"),
        (["predictor=linear", "calibration.predictor=p"], "one of them"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(words: list[str], needle: str, model: Path, trace: Path, call: Any) -> None:
    given = [
        w for w in (f"model={model}", f"trace.path={trace}") if w.split("=")[0] not in {x.split("=")[0] for x in words}
    ]
    code, _, err = call(plan_command, *given, *words)
    assert code == 2 and err.count("\n") == 1 and needle in err, err
