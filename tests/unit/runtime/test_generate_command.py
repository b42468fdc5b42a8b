"""`rgpu generate` on a tiny model with a tokenizer: its figures, its checks, its one-line mistakes."""

from pathlib import Path

import pytest

from rgpu.errors import InputError
from rgpu.traces.storage import load_trace
from tests.live_models import EXPERTS, build
from tests.unit.runtime.generating import generate, with_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_tokenizer(build("qwen3_moe", tmp_path_factory.mktemp("with_tokenizer")))


pytestmark = pytest.mark.usefixtures("stores")


def test_figures_and_checks(folder: Path, tmp_path: Path) -> None:
    got = generate(folder, "pool.slots=4", "verify=true", f"trace_out={tmp_path / 'own.safetensors'}")
    assert got["identical_tokens"] is got["identical_logits"] is got["identical_decisions"] is True
    assert got["hits"] + got["misses"] == got["accesses"] > 0
    assert got["misses"] == got["loads"] == got["demand_loads"]
    assert got["bytes_loaded"] == got["loads"] * 3 * 16 * 32 * 4
    assert (got["policy"], got["slots"], got["scope"], got["predictor"]) == ("lru", 4, "layer", None)
    assert len(got["token_ids"]) <= 5
    assert got["tokens_per_s"] > 0
    assert {"pool_bytes", "dense_bytes", "store_mapped_bytes", "peak_rss_bytes"} <= set(got["memory"])
    trace = load_trace(tmp_path / "own.safetensors")
    assert trace.header.num_experts == EXPERTS
    assert trace.header.expert_bytes == [3 * 16 * 32 * 4] * 3


@pytest.mark.parametrize(
    "overrides",
    [
        ("predictor=gate_lookahead", "planner.width=2"),
        ("predictor=previous_token", "planner.next_token=true"),
        ("policy=static_hot",),
        ("policy=rotary", "pool.scope=global", "pool.slots=9"),
    ],
)
def test_prefetch_and_calibration_in_a_batch(folder: Path, tmp_path: Path, overrides: tuple[str, ...]) -> None:
    own = tmp_path / "own.safetensors"
    generate(folder, "predictor=gate_lookahead", f"trace_out={own}")
    got = generate(folder, "prompt=['w1 w2 w3 w4','w7']", "verify=true", f"calibration.trace={own}", *overrides)
    assert got["identical_tokens"] is got["identical_logits"] is got["identical_decisions"] is True
    assert len(got["text"]) == len(got["token_ids"]) == 2
    assert got["loads"] == got["demand_loads"] + got["proactive_loads"] + got["fill_loads"]


def test_default_pool_is_a_quarter(folder: Path) -> None:
    assert generate(folder)["slots"] == EXPERTS // 4
    assert generate(folder, "pool.scope=global")["slots"] == 3 * EXPERTS // 4
    assert generate(folder, "pool.bytes=54KiB")["slots"] == 3


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("policy=belady",), "future"),
        (("dtype=float8",), "dtype"),
        (("pool.slots=0",), r"pool\.slots"),
        (("policy=on_demand", "pool.slots=1", "pool.staging=2"), "staging"),
        (("prompt=''",), "empty prompt"),
        (("max_new_tokens=500",), "at most 128"),
        (("policy=static_hot", "calibration.trace=nowhere.safetensors"), "rgpu record"),
        (("model=/nowhere",), "no model at"),
        (("store=tape",), "direct or tier"),
    ],
)
def test_mistakes_are_one_line(folder: Path, overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        generate(folder, *overrides)
    assert "\n" not in str(raised.value)
