"""FP8 with blocks of 128 x 128, of single experts and stacked, against transformers' own dequantisation."""

from pathlib import Path
from typing import Any

import pytest
import torch

from rgpu.checkpoint.open import open_experts
from rgpu.errors import InputError
from tests.unit.checkpoint.writing import (
    EXPERTS,
    LAYERS,
    ROLES,
    Tensors,
    check_experts,
    every,
    numbers,
    rng_of,
    scales,
    stem_of,
    write,
)

SETTINGS = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}


def codes(rng: torch.Generator, *shape: int) -> torch.Tensor:
    """float8_e4m3fn of all bits but NaN."""
    bits = torch.randint(0, 256, shape, generator=rng)
    return torch.where((bits & 127) == 127, bits ^ 1, bits).to(torch.uint8).view(torch.float8_e4m3fn)


def single(dtype: torch.dtype = torch.bfloat16) -> Tensors:
    rng = rng_of(0)

    def make(stem: str, rows: int, cols: int) -> Tensors:
        scale = scales(rng, -(-rows // 128), -(-cols // 128))
        scale = scale.abs() if dtype == torch.float8_e8m0fnu else scale
        return {"weight": codes(rng, rows, cols), "weight_scale_inv": scale.to(dtype), "input_scale": torch.ones(1)}

    return every(make)


def stacked(tensors: Tensors) -> Tensors:
    """What transformers writes: gate_up_proj and gate_up_proj_scale_inv of all experts of a layer."""
    made = {}
    for layer in LAYERS:
        for suffix, name in (("weight", ""), ("weight_scale_inv", "_scale_inv")):
            gate, up, down = (
                torch.stack([tensors[f"{stem_of(layer, e, role)}.{suffix}"].float() for e in range(EXPERTS)])
                for role in ROLES
            )
            dtype = tensors[f"{stem_of(layer, 0, 'up_proj')}.{suffix}"].dtype
            stem = f"model.layers.{layer}.mlp.experts"
            made[f"{stem}.gate_up_proj{name}"] = torch.cat([gate, up], 1).to(dtype)
            made[f"{stem}.down_proj{name}"] = down.to(dtype)
    return made


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float8_e8m0fnu])
@pytest.mark.parametrize("form", [dict, stacked])
def test_as_transformers_dequantises(tmp_path: Path, dtype: torch.dtype, form: Any) -> None:
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    tensors = single(dtype)

    def wanted(stem: str) -> torch.Tensor:
        weight, scale = tensors[f"{stem}.weight"], tensors[f"{stem}.weight_scale_inv"]
        dense: torch.Tensor = Fp8Dequantize(None)._dequantize_one(weight, scale, torch.float32)
        return dense

    with open_experts(write(tmp_path, form(tensors), SETTINGS)) as reader:
        assert reader.format.name == "fp8_block"
        check_experts(reader, wanted)


def ragged(width: int, rows: int) -> Tensors:
    """Stacked experts of `width` x 192 whose gate_up has `rows` rows of scales."""
    rng, made = rng_of(1), {}
    for layer in LAYERS:
        stem = f"model.layers.{layer}.mlp.experts"
        made[f"{stem}.gate_up_proj"] = codes(rng, EXPERTS, 2 * width, 192)
        made[f"{stem}.gate_up_proj_scale_inv"] = scales(rng, EXPERTS, rows, 2)
        made[f"{stem}.down_proj"] = codes(rng, EXPERTS, 192, width)
        made[f"{stem}.down_proj_scale_inv"] = scales(rng, EXPERTS, 2, -(-width // 128))
    return made


def test_blocks_at_the_edges_are_smaller(tmp_path: Path) -> None:
    """64 x 192: one block of rows for gate and one for up, two of columns, the second half as wide."""
    tensors = ragged(64, 2)
    with open_experts(write(tmp_path, tensors, SETTINGS)) as reader:
        found = numbers(reader, 3, 2)
    stem = "model.layers.3.mlp.experts"
    weight, scale = tensors[f"{stem}.gate_up_proj"][2].float(), tensors[f"{stem}.gate_up_proj_scale_inv"][2]
    for half, matrix in ((0, found.gate), (1, found.up)):
        rows = weight[64 * half : 64 * half + 64]
        assert torch.equal(matrix[:, :128], rows[:, :128] * scale[half, 0])
        assert torch.equal(matrix[:, 128:], rows[:, 128:] * scale[half, 1])
    down, scale = tensors[f"{stem}.down_proj"][2].float(), tensors[f"{stem}.down_proj_scale_inv"][2]
    assert torch.equal(found.down[128:], down[128:] * scale[1, 0])


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (ragged(96, 2), r"96 rows in a stacked model\.layers\.1\.mlp\.experts\.gate_up_proj"),
        (ragged(192, 3), r"gate_up_proj_scale_inv: got \[3, 2\]"),
        (ragged(64, 4), r"gate_up_proj_scale_inv \[2, 2\]; expected \[1, 2\]"),
    ],
)
def test_blocks_that_hold_rows_of_gate_and_of_up_are_refused(tmp_path: Path, tensors: Tensors, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_experts(write(tmp_path, tensors, SETTINGS))


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("weight_scale_inv", None, r"no tensor .*experts\.2\.up_proj\.weight_scale_inv"),
        ("weight_scale_inv", torch.ones(2, 2), r"experts\.2\.up_proj\.weight_scale_inv \[2, 2\]; expected \[1, 2\]"),
        ("weight_scale_inv", torch.full((1, 2), float("nan")), r"experts\.2\.up_proj.*not finite"),
        ("weight", torch.zeros(128, 256), r"experts\.2\.up_proj\.weight in float32; expected float8_e4m3fn"),
        ("weight", torch.full((128, 256), 255, dtype=torch.uint8).view(torch.float8_e4m3fn), r"up_proj.*NaN"),
        (
            "weight",
            torch.zeros(64, 256).to(torch.float8_e4m3fn),
            r"a matrix \[64, 256\] in .*up_proj; expected \[128, 256\]",
        ),
        ("weight_scale", torch.ones(1), r"the tensor .*experts\.2\.up_proj\.weight_scale; expected only weight"),
    ],
)
def test_a_damaged_expert_is_named(tmp_path: Path, name: str, tensor: Any, message: str) -> None:
    tensors = single() | {f"{stem_of(3, 2, 'up_proj')}.{name}": tensor}
    kept = {key: value for key, value in tensors.items() if value is not None}
    with open_experts(write(tmp_path, kept, SETTINGS)) as reader, pytest.raises(InputError, match=message) as raised:
        reader.read(3, 2)
    assert "\n" not in str(raised.value) and "expert 2 of layer 3" in str(raised.value)


@pytest.mark.parametrize("block", [None, [64, 64]])
def test_other_blocks_are_refused(tmp_path: Path, block: Any) -> None:
    with pytest.raises(InputError, match=r"expected \[128, 128\]"):
        open_experts(write(tmp_path, single(), SETTINGS | {"weight_block_size": block}))
