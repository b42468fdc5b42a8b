"""gpt-oss' MXFP4 against transformers' own conversion, with the rows of gate and up told apart by its own module."""

from pathlib import Path

import pytest
import torch

from rgpu.checkpoint.open import open_experts
from rgpu.errors import InputError
from tests.unit.checkpoint.writing import EXPERTS, HIDDEN, LAYERS, WIDTH, Tensors, check_experts, numbers, rng_of, write

SETTINGS = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}


def packed() -> Tensors:
    rng, made = rng_of(0), {}
    for layer in LAYERS:
        for name, rows, cols in (("gate_up_proj", 2 * WIDTH, HIDDEN), ("down_proj", HIDDEN, WIDTH)):
            stem = f"model.layers.{layer}.mlp.experts.{name}"
            blocks = torch.randint(0, 256, (EXPERTS, rows, cols // 32, 16), generator=rng)
            exponents = torch.randint(100, 140, (EXPERTS, rows, cols // 32), generator=rng)
            made[f"{stem}_blocks"], made[f"{stem}_scales"] = blocks.to(torch.uint8), exponents.to(torch.uint8)
            made[f"{stem}_bias"] = torch.randn(EXPERTS, rows, generator=rng).bfloat16()
    return made


def test_as_transformers_dequantises(tmp_path: Path) -> None:
    pytest.importorskip("termcolor")
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    tensors = packed()
    theirs = {
        (layer, name): convert_moe_packed_tensors(
            tensors[f"model.layers.{layer}.mlp.experts.{name}_blocks"],
            tensors[f"model.layers.{layer}.mlp.experts.{name}_scales"],
            dtype=torch.float32,
        )  # [E, K, N]
        for layer in LAYERS
        for name in ("gate_up_proj", "down_proj")
    }

    def wanted(stem: str) -> torch.Tensor:
        _, _, layer, _, _, expert, role = stem.split(".")
        if role == "down_proj":
            return theirs[int(layer), role][int(expert)].T
        both = theirs[int(layer), "gate_up_proj"][int(expert)]
        return both[:, ::2].T if role == "gate_proj" else both[:, 1::2].T  # as GptOssExperts takes them

    with open_experts(write(tmp_path, tensors, SETTINGS, model_type="gpt_oss")) as reader:
        assert reader.format.name == "mxfp4" and reader.bias
        check_experts(reader, wanted)
        found = numbers(reader, 3, 2)
    biases = [tensors[f"model.layers.3.mlp.experts.{name}_bias"][2].float() for name in ("gate_up_proj", "down_proj")]
    for bias, expected in (
        (found.gate_bias, biases[0][::2]), (found.up_bias, biases[0][1::2]), (found.down_bias, biases[1]),
    ):  # fmt: skip
        assert bias is not None and torch.equal(bias, expected)


def filled(value: int, *shape: int) -> torch.Tensor:
    return torch.full(shape, value, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gate_up_proj_scales": None}, r"no tensor .*experts\.gate_up_proj.scales"),
        ({"down_proj_blocks": filled(0, 3, 256, 4, 8)}, r"down_proj_blocks \[256, 4, 8\]; expected \[256, 4, 16\]"),
        ({"down_proj_scales": filled(255, 3, 256, 4)}, r"down projection of expert 0 of layer 3.*e8m0"),
        ({"down_proj_bias": None}, r"no bias in .*layers\.3\.mlp\.experts\.down_proj"),
        ({"down_proj_scales": filled(0, 2, 256, 4)}, r"down_proj_scales \[2, 256, 4\].*expected tensors with one"),
    ],
)
def test_a_damaged_layer_is_named(tmp_path: Path, change: dict[str, torch.Tensor | None], message: str) -> None:
    tensors = packed() | {f"model.layers.3.mlp.experts.{name}": tensor for name, tensor in change.items()}
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    with (
        pytest.raises(InputError, match=message) as raised,
        open_experts(write(tmp_path, kept, SETTINGS, model_type="gpt_oss")) as reader,
    ):
        reader.read(3, 0)
    assert "\n" not in str(raised.value)
