"""ModelOpt's NVFP4 against compressed-tensors' nibbles and torch's e4m3, and against GPTQModel's dequantiser."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from rgpu.checkpoint.open import open_experts
from rgpu.errors import InputError
from tests.unit.checkpoint.oracles import gptqmodel_dequantiser
from tests.unit.checkpoint.writing import Tensors, check_experts, every, rng_of, stem_of, write


def packed(power_of_two: bool = False) -> Tensors:
    """Every code, scales of all e4m3 numbers, a factor of its own for every projection."""
    rng = rng_of(0)

    def make(stem: str, rows: int, cols: int) -> Tensors:
        bits = torch.randint(0, 256, (rows, cols // 16), generator=rng)
        bits = torch.where((bits & 127) == 127, bits ^ 1, bits).to(torch.uint8)
        factor = torch.rand((), generator=rng) / 100 + 1e-4
        return {
            "weight": torch.randint(0, 256, (rows, cols // 2), generator=rng).to(torch.uint8),
            "weight_scale": bits.view(torch.float8_e4m3fn),
            "weight_scale_2": factor.log2().round().exp2() if power_of_two else factor,
            "input_scale": torch.rand((), generator=rng),
        }

    return every(make)


def save(folder: Path, tensors: Tensors, quantization: dict[str, Any], inside: bool = False) -> Path:
    """With the settings in hf_quant_config.json, or `inside` config.json as newer exports have them."""
    if inside:
        return write(folder, tensors, {"quant_method": "modelopt"} | quantization)
    content = {"producer": {"name": "modelopt", "version": "0.37.0"}, "quantization": quantization}
    write(folder, tensors)
    (folder / "hf_quant_config.json").write_text(json.dumps(content))
    return folder


def mixed(algorithm: str) -> dict[str, Any]:
    """FP8 attention beside experts of `algorithm`."""
    layers: dict[str, dict[str, Any]] = {"model.layers.1.self_attn.q_proj": {"quant_algo": "FP8"}}
    for name in ("1.mlp.experts", "3.mlp.experts.0.gate_proj", "3.mlp.experts.0.up_proj", "3.mlp"):
        layers[f"model.layers.{name}"] = {"quant_algo": algorithm, "group_size": 16}
    return {"quant_algo": "MIXED_PRECISION", "kv_cache_quant_algo": "FP8", "quantized_layers": layers}


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("settings", [{"quant_algo": "NVFP4", "group_size": 16}, mixed("W4A16_NVFP4")])
def test_nvfp4(tmp_path: Path, settings: dict[str, Any], inside: bool) -> None:
    """The nibbles are compressed-tensors' reading, the scales torch's cast; the order of the products is rgpu's."""
    helpers = pytest.importorskip("compressed_tensors.compressors.nvfp4.helpers")
    tensors = packed()

    def wanted(stem: str) -> torch.Tensor:
        weight, scale = tensors[f"{stem}.weight"], tensors[f"{stem}.weight_scale"].float()
        rows, half = weight.shape
        numbers = helpers.unpack_fp4_from_uint8(weight, rows, 2 * half, torch.float32)
        dense: torch.Tensor = numbers * scale.repeat_interleave(16, 1) * tensors[f"{stem}.weight_scale_2"]
        return dense

    with open_experts(save(tmp_path, tensors, settings, inside)) as reader:
        assert reader.format.name == "nvfp4"
        check_experts(reader, wanted)


def test_as_gptqmodel_dequantises(tmp_path: Path) -> None:
    """It multiplies the two scales first, which rounds otherwise unless the factor is a power of two."""
    dequantiser, tensors = gptqmodel_dequantiser(), packed(power_of_two=True)
    save_file(tensors, tmp_path / "whole.st")
    with safe_open(tmp_path / "whole.st", "pt") as file:
        theirs = dequantiser.convert_nvfp4_shard(file, torch.float32)
    with open_experts(save(tmp_path, tensors, {"quant_algo": "NVFP4"})) as reader:
        check_experts(reader, lambda stem: theirs[f"{stem}.weight"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (mixed("FP8"), r"got FP8 for model\.layers\.1\.mlp\.experts\.0\.gate_proj in quantized_layers"),
        ({"quant_algo": "FP8"}, "quant_algo 'FP8'"),
        ({"quant_algo": "W4A8_AWQ"}, "quant_algo 'W4A8_AWQ'"),
        ({}, "quant_algo None"),
    ],
)
def test_other_algorithms_are_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_experts(save(tmp_path, packed(), {"group_size": 16} | settings))


@pytest.mark.parametrize(
    ("suffix", "tensor", "message"),
    [
        ("weight_scale_2", None, r"no tensor .*experts\.1\.gate_proj\.weight_scale_2"),
        ("weight_scale_2", torch.ones(2), r"gate_proj\.weight_scale_2 \[2\]; expected one number"),
        ("weight_scale_2", torch.tensor(float("inf")), r"experts\.1\.gate_proj.*not finite"),
        ("weight_scale", torch.ones(128, 16), r"gate_proj\.weight_scale in float32; expected float8_e4m3fn"),
        (
            "weight",
            torch.zeros(128, 256).to(torch.float8_e4m3fn),
            r"gate_proj\.weight in float8_e4m3fn; expected uint8",
        ),
        ("pre_quant_scale", torch.ones(256), r"got the tensor .*gate_proj\.pre_quant_scale"),
    ],
)
def test_a_damaged_expert_is_named(tmp_path: Path, suffix: str, tensor: Any, message: str) -> None:
    tensors = packed() | {f"{stem_of(3, 1, 'gate_proj')}.{suffix}": tensor}
    kept = {name: value for name, value in tensors.items() if value is not None}
    with (
        open_experts(save(tmp_path, kept, {"quant_algo": "NVFP4"})) as reader,
        pytest.raises(InputError, match=message) as raised,
    ):
        reader.read(3, 1)
    assert "\n" not in str(raised.value) and "expert 1 of layer 3" in str(raised.value)
