"""Whole tiny models in the quantised layouts that people download, beside the same model in the numbers these stand for."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.live_models import build

Tensors = dict[str, torch.Tensor]
Made = tuple[Tensors, torch.Tensor]  # the tensors of a projection by suffix, and the numbers [N, K] they stand for
_LINEAR = re.compile(r"\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)\.weight$")
GROUP = 32


def fp8(weight_NK: torch.Tensor) -> Made:
    rows, cols = weight_NK.shape
    blocks = torch.zeros(-(-rows // 128) * 128, -(-cols // 128) * 128)
    blocks[:rows, :cols] = weight_NK
    scale = blocks.view(blocks.shape[0] // 128, 128, -1, 128).abs().amax((1, 3)) / 448
    wide = scale.repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :cols]
    codes = (weight_NK / wide).to(torch.float8_e4m3fn)
    return {"weight": codes, "weight_scale_inv": scale}, codes.float() * wide


def _codes(weight_NK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(codes 0 to 15, float16 scales [N, G], numbers) of symmetric int4."""
    groups = weight_NK.view(len(weight_NK), -1, GROUP)
    scale = (groups.abs().amax(2) / 7).half()
    codes = (groups / scale.float()[..., None]).round().clamp(-8, 7) + 8
    return codes.view_as(weight_NK).long(), scale, ((codes - 8) * scale.float()[..., None]).view_as(weight_NK)


def _words(fields_MN8: torch.Tensor) -> torch.Tensor:
    """int32 words of 8 fields each, the first lowest."""
    word = sum(fields_MN8[..., i] << (4 * i) for i in range(8))
    assert isinstance(word, torch.Tensor)
    return torch.where(word >= 1 << 31, word - (1 << 32), word).to(torch.int32)


def gptq(weight_NK: torch.Tensor) -> Made:
    codes, scale, numbers = _codes(weight_NK)
    rows, cols = weight_NK.shape
    return {
        "qweight": _words(codes.T.reshape(cols // 8, 8, rows).transpose(1, 2)),
        "qzeros": _words(torch.full((cols // GROUP, rows // 8, 8), 7)),
        "scales": scale.T.contiguous(),
        "g_idx": (torch.arange(cols) // GROUP).to(torch.int32),
    }, numbers


def packed(weight_NK: torch.Tensor) -> Made:
    """compressed-tensors' pack-quantized."""
    codes, scale, numbers = _codes(weight_NK)
    words = _words(codes.view(len(codes), -1, 8))
    return {"weight_packed": words, "weight_scale": scale, "weight_shape": torch.tensor(weight_NK.shape)}, numbers


KINDS: dict[str, tuple[Callable[[torch.Tensor], Made], dict[str, Any]]] = {
    "fp8": (fp8, {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}),
    "gptq": (gptq, {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": True, "desc_act": False,
                    "checkpoint_format": "gptq"}),
    "compressed-tensors": (packed, {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {
        "group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "group_size": GROUP, "symmetric": True,
                                                        "strategy": "group", "type": "int"}}}}),
}  # fmt: skip


def quantised(kind: str, folder: Path) -> tuple[Path, Path]:
    """(quantised, the same numbers in float32): a Qwen3-MoE whose attention is quantised as its experts are."""
    make, settings = KINDS[kind]
    plain = build("qwen3_moe", folder / "plain", hidden_size=256, moe_intermediate_size=128, head_dim=32)
    stored: Tensors = {}
    numbers: Tensors = {}
    for name, tensor in load_file(plain / "model.safetensors").items():
        if not _LINEAR.search(name):
            stored[name] = numbers[name] = tensor
            continue
        made, numbers[name] = make(tensor)
        stored |= {f"{name.removesuffix('.weight')}.{suffix}": part.contiguous() for suffix, part in made.items()}
    return _both(folder, plain, stored, numbers, settings)


def mxfp4(folder: Path) -> tuple[Path, Path]:
    """The same of a gpt-oss, whose experts alone are quantised, stacked and with biases."""
    plain = build("gpt_oss", folder / "plain", torch.bfloat16, hidden_size=64, intermediate_size=32)
    values = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])
    random = torch.Generator().manual_seed(0)
    stored: Tensors = {}
    numbers: Tensors = {}
    for name, tensor in load_file(plain / "model.safetensors").items():
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            stored[name] = numbers[name] = tensor
            continue
        experts, cols, rows = tensor.shape
        codes = torch.randint(0, 16, (experts, rows, cols // 32, 32), generator=random)
        exponent = torch.randint(123, 126, (experts, rows, cols // 32), generator=random)
        weight = (values[codes] * 2.0 ** (exponent - 127)[..., None]).reshape(experts, rows, cols)
        stored[f"{name}_blocks"] = (codes[..., 0::2] | codes[..., 1::2] << 4).to(torch.uint8)
        stored[f"{name}_scales"] = exponent.to(torch.uint8)
        numbers[name] = weight.transpose(1, 2).contiguous()
    return _both(folder, plain, stored, numbers, {"quant_method": "mxfp4"})


def _both(folder: Path, plain: Path, stored: Tensors, numbers: Tensors, settings: dict[str, Any]) -> tuple[Path, Path]:
    config = json.loads((plain / "config.json").read_text())
    for name, tensors, extra in (("quantised", stored, {"quantization_config": settings}), ("numbers", numbers, {})):
        (folder / name).mkdir()
        save_file(tensors, folder / name / "model.safetensors", metadata={"format": "pt"})
        (folder / name / "config.json").write_text(json.dumps(config | extra))
    return folder / "quantised", folder / "numbers"
