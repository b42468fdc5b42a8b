"""`rgpu generate` under caps: laid out by the plan, kept while it runs."""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rgpu.errors import InputError
from rgpu.experiments.live_memory import measured, options_of, overrun
from rgpu.experiments.live_peaks import Peaks
from rgpu.memory.process import PeakMemory
from rgpu.planning.memory_plan import PROCESS_BYTES, plan_memory
from rgpu.runtime.model_bytes import read_facts
from rgpu.transfer.staged_reads import BUFFERS as READ_BUFFERS
from tests.live_models import EXPERTS, LAYERS, build
from tests.unit.runtime.generating import generate, with_tokenizer

ROOT = Path(__file__).resolve().parents[3]
MIB = 1 << 20
pytestmark = pytest.mark.usefixtures("stores")

# a fresh process, as a command line is: the shipped model first, then one whose experts are most of it
SCRIPT = """
import json, sys
from hydra import compose, initialize_config_module
from rgpu.experiments.generate import run

made = []
for model, cap in (sys.argv[1:3], sys.argv[3:5]):
    with initialize_config_module("rgpu.conf", version_base="1.3"):
        cfg = compose("generate", [f"model={model}", f"memory.ram={cap}", "prompt='the w1 w2'", "max_new_tokens=24"])
    made.append(run(cfg))
print(json.dumps(made))
"""


def smallest(folder: Path, *overrides: str) -> int:
    """The cap that the command asks for when it is given none."""
    with pytest.raises(InputError, match="expected at least") as raised:
        generate(folder, "memory.ram=1", *overrides)
    assert "\n" not in str(raised.value)
    found = re.search(r"give memory\.ram=(\d+)", str(raised.value))
    assert found
    return int(found[1])


def test_the_smallest_cap_works_and_a_byte_less_does_not(wide: Path) -> None:
    cap = smallest(wide, "policy=on_demand")
    made = generate(wide, "policy=on_demand", f"memory.ram={cap}")
    assert (made["slots"], made["staging"]) == (2, 1)
    assert made["memory"]["planned_bytes"] == made["memory"]["cap_bytes"] == cap
    with pytest.raises(InputError, match=f"memory.ram={cap - 1}"):
        generate(wide, "policy=on_demand", f"memory.ram={cap - 1}")


def test_a_predictor_takes_from_the_slots(tmp_path: Path) -> None:
    words = (
        "policy=lru",
        "memory.ram=1GiB",
        "max_new_tokens=2",
        "calibration.trace=assets/traces/reference_hidden.safetensors",
    )
    made = {name: generate(Path("assets/reference"), f"predictor={name}", *words) for name in ("markov", "popularity")}
    rows = {name: {r["name"]: r["bytes"] for r in own["memory"]["plan"]} for name, own in made.items()}
    assert rows["markov"]["predictor"] == 4 * 8 * 5 * 33 * 32 and rows["popularity"]["predictor"] == 4 * 8 * 32


@pytest.mark.parametrize("overrides", [("quantize=int8",), ("store=tier", "ram_experts=7"), ("pool.scope=global",)])
def test_slots_fill_the_cap(wide: Path, overrides: tuple[str, ...]) -> None:
    scope = "global" if "pool.scope=global" in overrides else "layer"
    pools = LAYERS if scope == "layer" else 1
    least = smallest(wide, *overrides)
    made = generate(wide, *overrides, f"memory.ram={least + 60_000}", "verify=true")
    memory = made["memory"]
    rows = {row["name"]: row["bytes"] for row in memory["plan"]}
    assert made["failed"] == [] and memory["pool_bytes"] == rows["expert slots"]
    slot = memory["pool_bytes"] // (pools * made["slots"])
    assert memory["planned_bytes"] <= memory["cap_bytes"] < memory["planned_bytes"] + pools * slot
    assert made["slots"] < EXPERTS * LAYERS // pools
    assert memory["dense_bytes"] == rows["dense weights"]
    assert (
        rows.get("experts in RAM", 0) >= memory["store_ram_bytes"] == (7 * 24_576 if "store=tier" in overrides else 0)
    )
    assert rows["logits"] == 4 * 5 * 96 and rows["decision log"] > 0  # what verify keeps
    assert memory["peak_bytes"] > memory["peak_growth_bytes"] > 0


def test_context_leaves_room(wide: Path) -> None:
    assert smallest(wide, "context=8") == smallest(wide)  # 3 + 5 tokens
    assert smallest(wide, "context=100") > smallest(wide) < smallest(wide, "prompt=['w1 w2 w3','w4']")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("memory.ram=6GiB", "pool.slots=4"), "pool.slots: got 4 with a cap"),
        (("memory.ram=6GiB", "pool.bytes=1MiB"), "pool.bytes: got 1MiB with a cap"),
        (("memory.vram=6GiB",), "memory.vram: got 6GiB with device=cpu.*memory.ram is the cap"),
        (("memory.ram=6GiB", "device=cuda"), "expected both memory.vram and memory.ram"),
        (("memory.ram=6GiB", "memory.vram=1GiB", "device=cuda", "store=ram"), "store: got ram with memory.vram"),
        (("memory.ram=much",), "memory.ram: got 'much'; expected a size"),
        (("context=50",), "context: got 50 without a cap"),
        (("memory.ram=6GiB", "context=7"), "context: got 7; expected at least 8"),
        (("memory.ram=6GiB", "context=129"), "context: got 129; expected at most 128"),
    ],
)
def test_caps_that_cannot_be(wide: Path, overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        generate(wide, *overrides)
    assert "\n" not in str(raised.value)


def test_a_plan_with_a_gpu_chooses_the_tier(wide: Path) -> None:
    facts = read_facts(str(wide), "float32")

    def options(ram: int) -> dict[str, Any]:
        return options_of(plan_memory(facts, vram=1 << 30, ram=PROCESS_BYTES + ram, context=8))

    assert options(MIB) == {"store": "ram"}
    assert options((7 + READ_BUFFERS) * facts.expert_stride) == {"store": "tier", "ram_experts": 7}
    rows = [
        plan_memory(facts, vram=1 << 30, ram=PROCESS_BYTES + ram, context=8).rows[-1]
        for ram in (MIB, 13 * facts.expert_stride)
    ]
    total = facts.layers * facts.experts
    assert rows[0].how == f"{total} of {total} experts held in RAM, page-locked"
    assert rows[1].how == f"7 of {total} experts held in RAM; the rest is read from disk"  # through the buffers
    assert options_of(plan_memory(facts, vram=None, ram=1 << 30, context=8)) == options_of(None) == {}


def test_a_run_over_its_cap_says_so(wide: Path) -> None:
    plan = plan_memory(read_facts(str(wide), "float32"), vram=None, ram=1 << 30, context=8)
    found = measured(plan, Peaks(SimpleNamespace(nbytes=(1 << 30) + 5)), 5)  # type: ignore[arg-type]
    assert (found["cap_bytes"], found["peak_growth_bytes"]) == (1 << 30, 1 << 30)
    assert overrun(found).startswith("memory.ram: the run took 1 GiB, more than the cap of 1 GiB")
    assert (
        overrun(found | {"peak_bytes": 1 << 30}) == overrun(measured(None, Peaks(SimpleNamespace(nbytes=9)), 5)) == ""
    )  # type: ignore[arg-type]

    def later(*parts: tuple[int, int], where: str = "ram") -> str:
        caps = [{"tokens": 0, "cap_bytes": cap, "peak_bytes": peak, "where": where} for cap, peak in parts]
        return overrun(found | {"later": {"caps": caps}})

    assert later((1 << 30, 9 * MIB), (2 << 30, (1 << 30) + 5)) == ""  # what it took, it took under the second cap
    assert "took 705 MiB, more than the cap of 640 MiB" in later((1 << 30, 800 * MIB), (640 * MIB, 705 * MIB))
    assert later((1 << 30, 9), where="vram").startswith("memory.ram: the run took 1 GiB")
    assert later((9, 10), where="vram").startswith("memory.ram: ")


def test_what_a_card_held_counts_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    now = {"reserved": 50, "most": 70}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1000 - now["reserved"] - 7, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: now["reserved"])
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: now["most"])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: now.update(most=now["reserved"]))
    peaks = Peaks(PeakMemory())
    assert peaks.end_part(vram=True) == 77
    assert peaks.end_part(vram=True) == 57 and peaks.vram_bytes == 77
    now["most"] = 90
    assert peaks.vram_bytes == 97


def test_private_memory_stays_under_the_cap(tmp_path: Path) -> None:
    """An engine that held the experts once more, or as many as it liked, would go over both."""
    sizes = {"hidden_size": 256, "moe_intermediate_size": 512, "num_experts": 24, "num_hidden_layers": 4}
    folder = with_tokenizer(build("qwen3_moe", tmp_path / "m", **sizes))
    shipped, cap = 545 * MIB, PROCESS_BYTES + 48 * MIB
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, "assets/reference", str(shipped), str(folder), str(cap)],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    reference, large = json.loads(done.stdout.splitlines()[-1])
    experts = 4 * 24 * 3 * 256 * 512 * 4
    for made in (reference, large):
        memory = made["memory"]
        assert memory["peak_bytes"] <= memory["cap_bytes"]
        assert memory["planned_bytes"] <= memory["cap_bytes"]
        assert 0 < made["hits"] < made["accesses"]
    assert large["memory"]["experts_bytes"] == experts > 3 * large["memory"]["pool_bytes"]
    # imports are over by the second run: what it adds is its plan without the process, and some slack of the allocator
    assert large["memory"]["peak_growth_bytes"] <= large["memory"]["planned_bytes"] - PROCESS_BYTES + 16 * MIB
    assert "memory.ram" not in done.stderr
