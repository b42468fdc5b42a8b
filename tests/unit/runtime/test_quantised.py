"""Quantised experts: the same output wherever an expert lies, and close to the stock model that holds the same numbers."""

from pathlib import Path
from typing import Any

import pytest
import torch

from rgpu.errors import InputError
from rgpu.kernels.compute_cpu import CpuCompute
from rgpu.policies.lru import Lru
from rgpu.quant.formats import by_name
from rgpu.replay.controller import Controller
from rgpu.replay.pool import PoolConfig
from rgpu.runtime.architecture import read_architecture
from rgpu.runtime.loading import load_dequantised, load_resident
from rgpu.runtime.session import OffloadSession
from tests.live_models import EXPERTS, build, generate, prompts
from tests.unit.runtime.quantised_models import KINDS, mxfp4, quantised

PLACES = (
    (EXPERTS, "fetch", 1),
    (2, "fetch", 1),
    (4, "cpu", 1),
    (3, "split", 1),
    (3, "fetch", 2),
)  # slots, handler, threads


def runs(folder: Path, cache: Path, **options: Any) -> list[Any]:
    made = []
    for slots, handler, threads in PLACES:
        with OffloadSession.open(
            folder,
            lambda shape: Controller(Lru(), shape, PoolConfig("layer", slots)),  # noqa: B023
            cache=cache, handler=handler, threads=threads, kernel=CpuCompute, **options,
        ) as opened:  # fmt: skip
            made.append(generate(opened.model, prompts(4)))
    return made


def check(made: list[Any], wanted: Any) -> None:
    """Equal to the bit among each other; tokens and, nearly, logits as the stock model gives them."""
    for tokens, logits in made[1:]:
        assert torch.equal(tokens, made[0][0])
        assert all(torch.equal(a, b) for a, b in zip(logits, made[0][1], strict=True))
    tokens, logits = wanted
    assert torch.equal(made[0][0], tokens)
    for ours, theirs in zip(made[0][1], logits, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_quantised_checkpoint_runs_as_it_is(kind: str, tmp_path: Path) -> None:
    folder, numbers = quantised(kind, tmp_path)
    wanted = generate(load_resident(numbers, read_architecture(numbers), torch.float32), prompts(4))
    check(runs(folder, tmp_path / "stores"), wanted)


def test_gpt_oss_in_mxfp4(tmp_path: Path) -> None:
    folder, numbers = mxfp4(tmp_path)
    wanted = generate(load_resident(numbers, read_architecture(numbers), torch.float32), prompts(4))
    check(runs(folder, tmp_path / "stores"), wanted)


@pytest.mark.parametrize("kind", ["qwen3_moe", "gpt_oss", "deepseek_v3"])
@pytest.mark.parametrize("name", ["int8", "int4", "mxfp4", "bf16"])
def test_rounded_once_when_the_store_is_made(kind: str, name: str, tmp_path: Path) -> None:
    width = "moe_intermediate_size" if kind != "gpt_oss" else "intermediate_size"
    folder = build(kind, tmp_path / "m", hidden_size=64, **{width: 32})
    rounding: Any = by_name(name, **({"group": 32} if name == "int4" else {}))
    made = runs(folder, tmp_path / "stores", quantize=rounding)
    with OffloadSession.open(
        folder,
        lambda shape: Controller(Lru(), shape, PoolConfig("layer", 2)),
        cache=tmp_path / "stores",
        quantize=rounding,
        kernel=CpuCompute,
    ) as opened:
        stock = load_dequantised(folder, opened.architecture, opened.store, torch.float32)
    check(made, generate(stock, prompts(4)))


def test_experts_whose_activation_no_kernel_has(tmp_path: Path) -> None:
    folder = build("olmoe", tmp_path / "m", hidden_act="relu")
    with pytest.raises(InputError, match="activation"):
        OffloadSession.open(
            folder, lambda shape: Controller(Lru(), shape, PoolConfig("layer", 2)), quantize=by_name("int8"),  # type: ignore[arg-type]
            cache=tmp_path / "stores",
        )  # fmt: skip


def test_without_a_kernel(tmp_path: Path) -> None:
    folder = build("olmoe", tmp_path / "m")
    with pytest.raises(InputError, match="CpuCompute"):
        OffloadSession.open(
            folder, lambda shape: Controller(Lru(), shape, PoolConfig("layer", 2)), quantize=by_name("int8"),  # type: ignore[arg-type]
            cache=tmp_path / "stores",
        )  # fmt: skip
