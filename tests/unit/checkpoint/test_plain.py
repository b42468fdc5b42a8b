"""Float experts: kept where they are bfloat16, rounded only where asked, split and turned as their models do."""

from pathlib import Path
from typing import Any

import pytest
import torch

from rgpu.checkpoint.open import open_experts
from rgpu.errors import InputError
from rgpu.kernels.compute_torch import dense_forward
from rgpu.quant.int4 import Int4
from rgpu.quant.int8 import Int8
from rgpu.quant.mxfp4 import Mxfp4
from rgpu.types import Gate
from tests.unit.checkpoint.writing import (
    EXPERTS,
    HIDDEN,
    LAYERS,
    ROLES,
    WIDTH,
    Tensors,
    check_experts,
    every,
    numbers,
    rng_of,
    stem_of,
    stems,
    write,
)


def single(dtype: torch.dtype = torch.bfloat16) -> Tensors:
    rng = rng_of(0)
    return every(lambda stem, rows, cols: {"weight": torch.randn(rows, cols, generator=rng).to(dtype)})


def stacked(tensors: Tensors) -> Tensors:
    made = {}
    for layer in LAYERS:
        gate, up, down = (
            torch.stack([tensors[f"{stem_of(layer, e, role)}.weight"] for e in range(EXPERTS)]) for role in ROLES
        )
        made[f"model.layers.{layer}.mlp.experts.gate_up_proj"] = torch.cat([gate, up], 1)
        made[f"model.layers.{layer}.mlp.experts.down_proj"] = down
    return made


def mixtral(tensors: Tensors) -> Tensors:
    names = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2", ".mlp.": ".block_sparse_moe."}
    made = {}
    for name, tensor in tensors.items():
        for old, new in names.items():
            name = name.replace(old, new)
        made[name] = tensor
    return made


def transposed(tensors: Tensors) -> Tensors:
    """Llama-4's [E, D, 2I] and [E, I, D], gate before up."""
    return {name: tensor.transpose(1, 2) for name, tensor in stacked(tensors).items()}


@pytest.mark.parametrize("form", [dict, stacked, mixtral, transposed])
def test_bfloat16_experts_are_kept(tmp_path: Path, form: Any) -> None:
    tensors = single()
    with open_experts(write(tmp_path, form(tensors))) as reader:
        assert reader.format.name == "bf16" and not reader.bias
        check_experts(reader, lambda stem: tensors[f"{stem}.weight"].float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_other_floats_are_not_rounded_in_silence(tmp_path: Path, dtype: torch.dtype) -> None:
    with pytest.raises(InputError, match=r"experts\.0\.gate_proj\.weight.*expected bfloat16.*quantize="):
        open_experts(write(tmp_path, single(dtype)))


@pytest.mark.parametrize("fmt", [Int8(), Int4(group=32), Mxfp4()])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_quantize_rounds_float_experts_as_the_format_does(tmp_path: Path, fmt: Any, dtype: torch.dtype) -> None:
    tensors = single(dtype)
    with open_experts(write(tmp_path, stacked(tensors)), quantize=fmt) as reader:
        assert reader.format == fmt
        check_experts(reader, lambda stem: fmt.unpack(fmt.quantize(tensors[f"{stem}.weight"].float())))


def test_experts_left_out_of_a_quantisation_are_plain(tmp_path: Path) -> None:
    tensors = single()
    settings = {"quant_method": "fp8", "weight_block_size": [128, 128], "modules_to_not_convert": ["mlp"]}
    with open_experts(write(tmp_path, tensors, settings)) as reader:
        check_experts(reader, lambda stem: tensors[f"{stem}.weight"].float())


def test_stacked_experts_compute_what_qwen3_moe_computes(tmp_path: Path) -> None:
    """The oracle of which half is gate: transformers' own module on the same tensors."""
    from transformers import Qwen3MoeConfig
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

    tensors = {name: tensor / 16 for name, tensor in stacked(single()).items()}
    config = Qwen3MoeConfig(num_experts=EXPERTS, hidden_size=HIDDEN, moe_intermediate_size=WIDTH, hidden_act="silu")
    config._experts_implementation = "eager"
    theirs = Qwen3MoeExperts(config).eval()
    with open_experts(write(tmp_path, tensors)) as reader:
        for layer in LAYERS:
            stem = f"model.layers.{layer}.mlp.experts."
            theirs.load_state_dict({role: tensors[f"{stem}{role}"].float() for role in ("gate_up_proj", "down_proj")})
            x = torch.randn(5, HIDDEN, generator=rng_of(layer))
            for expert in range(EXPERTS):
                ours = dense_forward(numbers(reader, layer, expert), Gate("silu"), x)
                with torch.no_grad():
                    wanted = theirs(x, torch.full((5, 1), expert), torch.ones(5, 1))
                torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-5)


def test_gpt_oss_in_bfloat16_computes_what_gpt_oss_computes(tmp_path: Path) -> None:
    """Transposed, interleaved and with biases; the oracle is transformers' own module."""
    from transformers import GptOssConfig
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

    rng = rng_of(1)
    shapes = {
        "gate_up_proj": (EXPERTS, HIDDEN, 2 * WIDTH), "gate_up_proj_bias": (EXPERTS, 2 * WIDTH),
        "down_proj": (EXPERTS, WIDTH, HIDDEN), "down_proj_bias": (EXPERTS, HIDDEN),
    }  # fmt: skip
    tensors = {
        f"model.layers.{layer}.mlp.experts.{name}": (torch.randn(shape, generator=rng) / 8).bfloat16()
        for layer in LAYERS
        for name, shape in shapes.items()
    }
    config = GptOssConfig(num_local_experts=EXPERTS, hidden_size=HIDDEN, intermediate_size=WIDTH)
    config._experts_implementation = "eager"
    theirs = GptOssExperts(config).eval()
    with open_experts(write(tmp_path, tensors, model_type="gpt_oss")) as reader:
        assert reader.bias and reader.layout.bias
        for layer in LAYERS:
            stem = f"model.layers.{layer}.mlp.experts."
            theirs.load_state_dict({name: tensors[stem + name].float() for name in shapes})
            x = torch.randn(5, HIDDEN, generator=rng)
            for expert in range(EXPERTS):
                ours = dense_forward(numbers(reader, layer, expert), Gate("gpt_oss", theirs.alpha, theirs.limit), x)
                with torch.no_grad():
                    wanted = theirs(x, torch.full((5, 1), expert), torch.ones(5, 1))
                torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-4)


def test_stacked_projections_of_different_lengths(tmp_path: Path) -> None:
    tensors = stacked(single())
    name = "model.layers.1.mlp.experts.gate_up_proj"
    tensors[name] = tensors[name][:-1]
    with pytest.raises(InputError):
        open_experts(write(tmp_path, tensors))


@pytest.mark.parametrize("index", ["[]", '{"weight_map": {"a": 1}}'])
def test_an_index_of_another_shape(tmp_path: Path, index: str) -> None:
    folder = write(tmp_path, single())
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(InputError, match=r"index\.json|incomplete"):
        open_experts(folder)


def test_a_number_of_layers_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="num_hidden_layers '4'; expected an integer"):
        open_experts(write(tmp_path, single(), num_hidden_layers="4"))


def test_fp8_blocks_that_are_no_pair(tmp_path: Path) -> None:
    weights = {f"{stem}.weight": torch.zeros(rows, cols).to(torch.float8_e4m3fn) for stem, rows, cols in stems()}
    scales = {f"{stem}.weight_scale_inv": torch.ones(-(-rows // 128), -(-cols // 128)) for stem, rows, cols in stems()}
    with pytest.raises(InputError, match="weight_block_size 128; expected"):
        open_experts(write(tmp_path, weights | scales, {"quant_method": "fp8", "weight_block_size": 128}))
