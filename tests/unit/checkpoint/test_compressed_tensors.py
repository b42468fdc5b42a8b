"""compressed-tensors pack-quantized, written and read back by the library itself (float32 scales, so to the bit)."""

from pathlib import Path
from typing import Any

import pytest
import torch

from rgpu.checkpoint.open import open_experts
from rgpu.errors import InputError
from tests.unit.checkpoint.writing import (
    Tensors,
    check_experts,
    every,
    numbers,
    rng_of,
    scales,
    stem_of,
    stems,
    write,
)

packing = pytest.importorskip("compressed_tensors.compressors.pack_quantized")

SETTINGS = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {}}


def packed(
    group: int, asymmetric: bool = False, dtype: torch.dtype = torch.float32, bits: int = 4, order: bool = False
) -> Tensors:
    """All experts packed by the library's own `pack_to_int32`; every code and zero point occurs."""
    rng = rng_of(group + bits)
    low, high = -(1 << (bits - 1)), 1 << (bits - 1)
    columns = {cols: torch.randperm(cols, generator=rng) // (group or cols) for _, _, cols in stems()}

    def make(stem: str, rows: int, cols: int) -> Tensors:
        groups = cols // (group or cols)
        codes = torch.randint(low, high, (rows, cols), generator=rng).to(torch.int8)
        tensors = {
            "weight_packed": packing.base.pack_to_int32(codes, bits),
            "weight_scale": scales(rng, rows, groups, dtype=dtype),
            "weight_shape": torch.tensor([rows, cols]),
        }
        if asymmetric:
            zero = torch.randint(low, high, (rows, groups), generator=rng).to(torch.int8)
            tensors["weight_zero_point"] = packing.base.pack_to_int32(zero, bits, packed_dim=0)
        if order:
            tensors["weight_g_idx"] = columns[cols].to(torch.int32)
        return tensors

    return every(make)


def theirs(tensors: Tensors, stem: str, group: int, asymmetric: bool, bits: int = 4) -> torch.Tensor:
    """The library's own decompression, with its scale in float32 so that it does not round."""
    quantization = pytest.importorskip("compressed_tensors.quantization")
    args = quantization.QuantizationArgs(
        num_bits=bits, symmetric=not asymmetric, strategy="group" if group else "channel", group_size=group or None
    )
    scheme = quantization.QuantizationScheme(targets=["Linear"], weights=args)
    state = {name.removeprefix(f"{stem}."): tensor for name, tensor in tensors.items() if name.startswith(f"{stem}.")}
    state["weight_scale"] = state["weight_scale"].float()
    weight: torch.Tensor = packing.base.PackedQuantizationCompressor.decompress(state, scheme)["weight"]
    return weight


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_w4a16(tmp_path: Path, group: int, asymmetric: bool, dtype: torch.dtype) -> None:
    tensors = packed(group, asymmetric, dtype)
    with open_experts(write(tmp_path, tensors, SETTINGS)) as reader:
        fmt: Any = reader.format
        assert (fmt.name, fmt.group, fmt.asymmetric, fmt.scale_dtype) == ("int4", group, asymmetric, dtype)
        check_experts(reader, lambda stem: theirs(tensors, stem, group, asymmetric))


@pytest.mark.parametrize("group", [0, 128])
def test_w8a16(tmp_path: Path, group: int) -> None:
    tensors = packed(group, bits=8, dtype=torch.bfloat16)
    if group == 128:  # down has one group a row here, gate two: no scheme of one scale a row
        assert tensors[f"{stem_of(1, 0, 'down_proj')}.weight_scale"].shape[1] == 1
    with open_experts(write(tmp_path, tensors, SETTINGS)) as reader:
        assert (reader.format.name, reader.format.group) == ("int8", group)
        check_experts(reader, lambda stem: theirs(tensors, stem, group, False, bits=8))


@pytest.mark.parametrize("asymmetric", [False, True])
def test_columns_in_the_order_of_activations(tmp_path: Path, asymmetric: bool) -> None:
    """The library no longer reads g_idx: its codes, with the group of every column looked up here."""
    tensors = packed(32, asymmetric, torch.bfloat16, order=True)

    def wanted(stem: str) -> torch.Tensor:
        shape = tensors[f"{stem}.weight_shape"].tolist()
        scale, group = tensors[f"{stem}.weight_scale"].float(), tensors[f"{stem}.weight_g_idx"].long()
        codes = packing.base.unpack_from_int32(tensors[f"{stem}.weight_packed"], 4, shape).float()
        if not asymmetric:
            return codes * scale[:, group]
        words = tensors[f"{stem}.weight_zero_point"]
        zero = packing.base.unpack_from_int32(words, 4, (shape[0], scale.shape[1]), packed_dim=0).float()
        return (codes - zero[:, group]) * scale[:, group]

    with open_experts(write(tmp_path, tensors, SETTINGS)) as reader:
        assert getattr(reader.format, "act_order", False)
        check_experts(reader, wanted)


def test_gate_and_up_in_different_orders_are_refused(tmp_path: Path) -> None:
    tensors = packed(32, order=True)
    name = f"{stem_of(3, 2, 'up_proj')}.weight_g_idx"
    tensors[name] = tensors[name].flip(0)
    with (
        open_experts(write(tmp_path, tensors, SETTINGS)) as reader,
        pytest.raises(InputError, match=r"layers\.3\.mlp\.experts\.2\.up_proj.*one order for gate and up"),
    ):
        reader.read(3, 2)


def broken(change: str) -> tuple[Tensors, str]:
    """(tensors of which expert 1 of layer 3 is wrong, what the error must say)."""
    tensors, stem = packed(64, asymmetric=True, dtype=torch.bfloat16), stem_of(3, 1, "down_proj")
    match change:
        case "no scale":
            del tensors[f"{stem}.weight_scale"]
            return tensors, r"got no tensor .*experts\.1\.down_proj\.weight_scale; expected one of bfloat16"
        case "other dtype":
            tensors[f"{stem}.weight_scale"] = tensors[f"{stem}.weight_scale"].half()
            return tensors, r"experts\.1\.down_proj\.weight_scale in float16; expected bfloat16"
        case "other group":
            tensors[f"{stem}.weight_scale"] = tensors[f"{stem}.weight_scale"].repeat(1, 2)
            return tensors, r"experts\.1\.down_proj\.weight_scale \[256, 4\]; expected \[256, 2\]"
        case "no zero points":
            del tensors[f"{stem}.weight_zero_point"]
            return tensors, r"got no tensor .*experts\.1\.down_proj\.weight_zero_point"
        case "not finite":
            tensors[f"{stem}.weight_scale"][7, 1] = float("inf")
            return tensors, r"experts\.1\.down_proj.*not finite"
        case "unknown tensor":
            tensors[f"{stem}.weight_global_scale"] = torch.ones(1)
            return tensors, r"got the tensor .*experts\.1\.down_proj\.weight_global_scale; expected only weight_packed"
        case "left out":
            for name in [name for name in tensors if name.startswith(stem)]:
                del tensors[name]
            tensors[f"{stem}.weight"] = torch.zeros(256, 128)
            return tensors, r"got no tensor .*experts\.1\.down_proj\.weight_shape"
        case _:
            tensors[f"{stem}.weight_shape"] = torch.tensor([256, 64])
            return tensors, r"experts\.1\.down_proj\.weight_packed \[256, 16\]; expected \[256, 8\]"


@pytest.mark.parametrize(
    "change",
    ["no scale", "other dtype", "other group", "no zero points", "not finite", "unknown tensor", "left out", "shape"],
)
def test_a_damaged_expert_is_named(tmp_path: Path, change: str) -> None:
    tensors, message = broken(change)
    with open_experts(write(tmp_path, tensors, SETTINGS)) as reader:
        numbers(reader, 3, 0)
        with pytest.raises(InputError, match=message) as raised:
            numbers(reader, 3, 1)
    assert "\n" not in str(raised.value) and "expert 1 of layer 3" in str(raised.value)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (packed(256), "groups of a row|group 256"),
        (packed(16), "group 16"),
        (packed(64, True, bits=8), "asymmetric codes of 8 bits"),
        (packed(64, bits=2), "symmetric codes of 2 bits"),
        (every(lambda stem, rows, cols: {"weight_packed": torch.zeros(rows, cols // 2, dtype=torch.uint8)}), "int32"),
    ],
)
def test_other_schemes_are_refused(tmp_path: Path, tensors: Tensors, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_experts(write(tmp_path, tensors, SETTINGS))
