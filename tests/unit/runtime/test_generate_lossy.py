"""`rgpu generate lossy=...`: never silent, its cost in quality beside its speed, its one-line mistakes."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from rgpu.errors import InputError
from rgpu.runtime.architecture import read_architecture
from rgpu.runtime.loading import load_resident
from rgpu.traces.storage import load_trace
from tests.live_models import LAYERS, TOP_K, build
from tests.unit.runtime.generating import generate, with_tokenizer

pytestmark = pytest.mark.usefixtures("stores")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("heldout")
    for name, step in (("one", 7), ("two", 11)):
        (folder / f"{name}.txt").write_text(" ".join(f"w{i * step % 93}" for i in range(60)))
    return folder


def ran(wide: Path, text: Path, *overrides: str) -> dict[str, Any]:
    return generate(wide, f"lossy.text={text}", "lossy.tokens=40", "pool.slots=4", *overrides)


@pytest.mark.parametrize(
    ("choice", "nothing"),
    [
        (("lossy=skip", "lossy.threshold=0.9"), "lossy.threshold=0"),
        (("lossy=substitute", "lossy.threshold=0.9"), "lossy.similarity=1.5"),
        (("lossy=low_precision", "lossy.threshold=0.9"), "lossy.threshold=0"),
    ],
)
def test_the_cost_is_reported(
    wide: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], choice: tuple[str, str], nothing: str
) -> None:
    own = tmp_path / "own.safetensors"
    made = ran(wide, text, *choice, "verify=true", f"trace_out={own}")
    section, found = made["lossy"], made["lossy"]["report"]
    mode = choice[0].removeprefix("lossy=")
    did = {"skip": "skipped", "substitute": "substituted"}.get(mode, mode)
    assert made["failed"] == [] and made["identical_decisions"] is True and "identical_tokens" not in made
    assert section["mode"] == mode and section["assignments"] == section["tokens"] * LAYERS * TOP_K
    assert 0 < section["not_loaded"] <= section[did] < section["assignments"]
    assert load_trace(own).header.provenance["lossy"]["mode"] == mode
    assert found["tokens"] == 40 and set(found["by_text"]) == {"one", "two"}
    assert found["kl_mean"] > 0 and found["perplexity"]["lossy"] != found["perplexity"]["exact"]
    assert found["perplexity_ratio"] == pytest.approx(
        found["perplexity"]["lossy"] / found["perplexity"]["exact"], rel=1e-4
    )
    assert found["speedup"] == pytest.approx(found["tpot_s"]["exact"] / found["tpot_s"]["lossy"], rel=0.01)
    assert found["loads_per_token"]["lossy"] < found["loads_per_token"]["exact"]
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("rgpu generate: ")]
    assert len(lines) == 2 and all(f"lossy={mode}" in line for line in lines)
    assert "not the model's own" in lines[0] and "perplexity" in lines[1] and "the exact run's speed" in lines[1]

    same = ran(wide, text, *choice, nothing)["lossy"]["report"]
    assert same["kl_mean"] == 0 and same["perplexity_ratio"] == 1 and same["same_first_choice"] == 1
    assert same["loads_per_token"]["lossy"] == same["loads_per_token"]["exact"]
    assert same["perplexity"]["exact"] == found["perplexity"]["exact"]


def test_perplexity_is_the_stock_models(wide: Path, text: Path) -> None:
    found = ran(wide, text, "lossy=skip", f"lossy.text={text / 'one.txt'}", "lossy.tokens=20")["lossy"]["report"]
    model = load_resident(wide, read_architecture(wide), torch.float32)
    ids = torch.tensor([[3 + i * 7 % 93 for i in range(60)]])[:, :52]
    with torch.no_grad():
        logits = model(ids).logits[0, 31:51].double()
    nll = -logits.log_softmax(1).gather(1, ids[0, 32:, None]).mean()
    assert found["perplexity"]["exact"] == pytest.approx(math.exp(float(nll)), rel=1e-4)


def test_a_cost_that_is_not_measured_is_said_so(wide: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = generate(wide, "lossy=skip", "lossy.report=false", "lossy.text=nowhere", "predictor=gate_lookahead")
    assert made["lossy"]["report"] is None
    assert "its cost is not measured (lossy.report=true does)" in capsys.readouterr().err
    assert generate(wide)["lossy"] is None
    assert "lossy" not in capsys.readouterr().err


def test_low_precision_copies_count_in_a_cap(wide: Path) -> None:
    cap = ("memory.ram=800MiB", "lossy.report=false")
    made = {mode: generate(wide, f"lossy={mode}", *cap)["memory"] for mode in ("low_precision", "substitute")}
    rows = {mode: {row["name"]: row["bytes"] for row in memory["plan"]} for mode, memory in made.items()}
    assert rows["low_precision"]["low-precision experts"] >= made["low_precision"]["low_precision_bytes"] > 0
    assert rows["low_precision"]["kernel"] > 0 and made["substitute"]["low_precision_bytes"] == 0
    assert rows["substitute"]["similarities"] == 4 * LAYERS * 10 * 10


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("lossy=skip", "lossy.threshold=2"), r"lossy\.threshold: got 2"),
        (("lossy=skip", "lossy.threshold=null"), r"lossy\.threshold: got null"),
        (("lossy=skip", "lossy.relative=top"), r"lossy\.relative"),
        (("lossy=substitute", "lossy.similarity=-3"), r"lossy\.similarity"),
        (("lossy=substitute", "policy=on_demand"), "keeps no expert"),
        (("lossy=low_precision", "quantize=int8", "group=32"), "quantised already"),
        (("lossy=low_precision", "lossy.format=nf4"), r"lossy\.format"),
        (("lossy=low_precision", "lossy.group=64"), "multiple of 64"),
        (("lossy=skip", "device=cuda"), "expected cpu"),
        (("lossy=skip", "lossy.text=nowhere"), "got nowhere"),
        (("lossy=skip", "lossy.tokens=0"), r"lossy\.tokens: got 0"),
        (("lossy=skip", "lossy.report=3"), r"lossy\.report: got 3"),
    ],
)
def test_mistakes_are_one_line(wide: Path, overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        generate(wide, *overrides)
    assert "\n" not in str(raised.value)


def test_models_of_one_expert_a_token_and_short_texts(tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("w1 w2")
    folder = with_tokenizer(build("qwen3_moe", tmp_path / "one", num_experts_per_tok=1))
    with pytest.raises(InputError, match="one expert a token"):
        generate(folder, "lossy=skip", "lossy.report=false")
    with pytest.raises(InputError, match="got 2 tokens"):
        generate(folder, "lossy=substitute", "lossy.threshold=null", f"lossy.text={short}")
