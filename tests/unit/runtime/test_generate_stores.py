"""`rgpu generate`: what experts are stored as, where they are read from, what serves a miss."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_module

from rgpu.errors import InputError
from rgpu.experiments import live_verify
from rgpu.experiments.live_store import stored
from rgpu.kernels.compute_triton import on_gpu
from rgpu.runtime.architecture import read_architecture
from rgpu.runtime.fidelity import TOLERANCES
from rgpu.runtime.loading import load_resident
from tests.unit.runtime.generating import generate, with_tokenizer
from tests.unit.runtime.quantised_models import quantised

pytestmark = pytest.mark.usefixtures("stores")


@pytest.mark.parametrize(
    "overrides",
    [
        ("quantize=int8",),
        ("quantize=int4", "group=32", "pool.miss=cpu"),
        ("quantize=mxfp4", "store=direct", "checked=true"),
    ],
)
def test_rounded_experts_are_as_the_stock_model_with_their_numbers(wide: Path, overrides: tuple[str, ...]) -> None:
    first = generate(wide, "verify=true", "prompt=['w1 w2 w3 w4','w7']", *overrides)
    assert first["failed"] == [] and first["identical_decisions"]
    assert "identical_logits" not in first
    fidelity = first["fidelity"]
    assert fidelity["rows"] == sum(len(row) for row in first["token_ids"]) == 10
    assert fidelity["within_tolerance"] and 0 < fidelity["logit_error_mean"] <= fidelity["logit_error_max"]
    assert first["format"] == overrides[0].partition("=")[2]
    assert first["memory"]["experts_bytes"] < 0.7 * 3 * 10 * 3 * 64 * 32 * 2  # of bfloat16


def test_a_store_is_written_once(wide: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generate(wide, "quantize=int8")
    found = {path: path.stat().st_mtime_ns for path in cache.rglob("experts.rgpu")}
    monkeypatch.setattr("rgpu.store.convert.convert", lambda *_: pytest.fail("converted again"))
    generate(wide, "quantize=int8", "pool.slots=3")
    assert found == {path: path.stat().st_mtime_ns for path in cache.rglob("experts.rgpu")}


def test_a_quantised_checkpoint_runs_as_it_is(tmp_path: Path) -> None:
    folder, _ = quantised("fp8", tmp_path)
    made = generate(with_tokenizer(folder), "verify=true")
    assert made["failed"] == [] and made["fidelity"]["within_tolerance"]
    assert made["format"] == "as the checkpoint has it"
    with pytest.raises(InputError, match=r"quantised already \(fp8\).*leave quantize out"):
        generate(folder, "quantize=int8")


def test_other_numbers_than_the_stores_fail(wide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The float model is no reference for one in four bits."""
    monkeypatch.setattr(live_verify, "load_dequantised", lambda f, a, _, dtype: load_resident(f, a, dtype))
    made = generate(wide, "verify=true", "quantize=int4", "group=32")
    assert made["failed"] == ["fidelity"]
    assert made["fidelity"]["logit_error_mean"] > 10 * TOLERANCES[torch.float32].logit_error_mean


@pytest.mark.parametrize(
    ("store", "mapped", "held"),
    [(("ram",), False, 30), (("direct",), False, 0), (("tier", "ram_experts=7"), False, 7), (("disk",), True, 0)],
)
def test_every_store_gives_the_stock_logits(wide: Path, store: tuple[str, ...], mapped: bool, held: int) -> None:
    made = generate(wide, f"store={store[0]}", *store[1:], "verify=true", "pool.slots=3", "checked=true")
    assert made["failed"] == [] and made["identical_logits"]
    expert = 3 * 64 * 32 * 4
    assert held * expert <= made["memory"]["store_ram_bytes"] <= held * expert + (8192 if held else 0)
    assert (made["memory"]["store_mapped_bytes"] > 0) == mapped
    assert made["store"] == store[0]


@pytest.mark.parametrize("store", ["disk", "ram"])
def test_misses_on_the_processor(wide: Path, store: str) -> None:
    made = generate(wide, "pool.miss=cpu", f"store={store}", "verify=true", "pool.slots=3")
    assert made["failed"] == [] and made["identical_logits"]
    assert made["misses_by_handler"] == {"fetch": 0, "cpu": made["misses"]} and made["misses"] > 0
    both = generate(wide, "pool.miss=split", f"store={store}", "verify=true", "pool.slots=3")
    assert both["failed"] == [] and both["identical_logits"] and both["misses"] == made["misses"]
    assert sum(both["misses_by_handler"].values()) == both["misses"]
    fetched = generate(wide, f"store={store}", "pool.slots=3")
    assert fetched["misses_by_handler"] == {"fetch": made["misses"], "cpu": 0}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("pool.miss=cpu", "store=direct"),
            "pool.miss: got cpu with store=direct.*expected store=disk.*set store=disk",
        ),
        (("pool.miss=cpu", "store=tier", "ram_experts=4"), "pool.miss: got cpu with store=tier"),
        (("pool.miss=split", "store=direct"), "pool.miss: got split with store=direct.*set store=disk"),
        (("fused=true",), "fused: got true with device=cpu; expected device=cuda; set fused=false"),
        (("pool.miss=zero_copy",), "pool.miss: got 'zero_copy' with device=cpu; expected one of fetch, cpu"),
        (("device=cuda", "pool.miss=cpu"), "pool.miss: got cpu with experts in float32; expected quantised ones"),
        (
            ("device=cuda", "pool.miss=slow"),
            "got 'slow' with device=cuda; expected one of fetch, zero_copy, cpu, split",
        ),
        (("device=cuda", "pool.miss=zero_copy"), "pool.miss: got zero_copy with store=disk; expected store=ram"),
        (
            ("device=cuda", "pool.miss=zero_copy", "store=ram"),
            "pool.miss: got zero_copy with experts in float32; expected",
        ),
        (("store=tier",), "ram_experts: got 0; expected a number above 0"),
        (("ram_experts=4",), "ram_experts: got 4; expected 0 with store=disk"),
        (("quantize=int3",), "quantize: got 'int3'; expected null or one of int8, int4, mxfp4"),
        (("group=32",), "group: got 32 with quantize=null"),
        (("quantize=mxfp4", "group=32"), "group: got 32 with quantize=mxfp4"),
        (("quantize=int4",), "multiple of 128"),
        (("device=tpu",), "device: got 'tpu'; expected one of cpu, cuda"),
    ],
)
def test_what_cannot_be_is_one_line_before_anything_is_stored(
    wide: Path, overrides: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rgpu.runtime.session.converted", lambda *_: pytest.fail("began to convert"))
    with pytest.raises(InputError, match=message) as raised:
        generate(wide, *overrides)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("graphs", [True, False])
def test_what_a_gpu_is_asked_for(wide: Path, graphs: bool) -> None:
    overrides = ["device=cuda", "store=ram", "quantize=bf16", "pool.miss=zero_copy", f"graphs={graphs}"]
    with initialize_config_module("rgpu.conf", version_base="1.3"):
        cfg = compose("generate", [f"model={wide}", *overrides])
    options = stored(cfg, read_architecture(wide)).options
    assert (options["device"], options["store"], options["handler"]) == ("cuda", "ram", "zero_copy")
    assert options["graphs"] is graphs and options["kernel"] is on_gpu
