"""NF4 as bitsandbytes itself writes and reads it, double quantisation included."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rgpu.checkpoint.open import open_experts
from rgpu.errors import InputError
from tests.unit.checkpoint.writing import Tensors, check_experts, every, numbers, rng_of, stem_of, write

functional = pytest.importorskip("bitsandbytes").functional

SETTINGS = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
STATE = "weight.quant_state.bitsandbytes__nf4"


def quantised(
    double: bool, kind: str = "nf4", block: int = 64, dtype: torch.dtype = torch.float32
) -> tuple[Tensors, Any]:
    """(tensors as a 4-bit linear layer saves them, what bitsandbytes dequantises them to)."""
    rng, theirs = rng_of(int(double)), {}

    def make(stem: str, rows: int, cols: int) -> Tensors:
        weight = (torch.randn(rows, cols, generator=rng) / 16).to(dtype)
        packed, state = functional.quantize_4bit(weight, blocksize=block, compress_statistics=double, quant_type=kind)
        theirs[stem] = functional.dequantize_4bit(packed, state)
        return {"weight": packed} | {f"weight.{name}": part for name, part in state.as_dict(packed=True).items()}

    tensors = every(make)
    return tensors, theirs


@pytest.mark.parametrize("double", [False, True])
def test_as_bitsandbytes_dequantises(tmp_path: Path, double: bool) -> None:
    tensors, theirs = quantised(double)
    assert tensors[f"{stem_of(1, 0, 'up_proj')}.weight.absmax"].dtype == (torch.uint8 if double else torch.float32)
    with open_experts(write(tmp_path, tensors, SETTINGS)) as reader:
        assert reader.format.name == "nf4"
        check_experts(reader, lambda stem: theirs[stem])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_where_it_rounds_to_the_model_s_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    """A layer of a 16-bit model dequantises to 16 bits; rgpu's float32 numbers round to the same."""
    tensors, theirs = quantised(True, dtype=dtype)
    with open_experts(write(tmp_path, tensors, SETTINGS)) as reader:
        found = numbers(reader, 3, 1)
    assert torch.equal(found.down.to(dtype), theirs[stem_of(3, 1, "down_proj")])


def changed_state(tensors: Tensors, stem: str, **changes: Any) -> torch.Tensor:
    state = json.loads(bytes(tensors[f"{stem}.{STATE}"].tolist())) | changes
    return torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("suffix", "value", "message"),
    [
        ("weight.absmax", None, r"no tensor .*experts\.2\.gate_proj\.weight\.absmax"),
        ("weight.nested_absmax", torch.ones(3), r"gate_proj\.weight\.nested_absmax \[3\]; expected \[2\]"),
        ("weight.quant_map", torch.arange(16.0), r"another table in .*gate_proj\.weight\.quant_map"),
        ("weight", torch.zeros(5, 1, dtype=torch.uint8), r"5 bytes in .*gate_proj\.weight .*expected 16384 bytes"),
        (STATE, torch.zeros(4, dtype=torch.uint8), r"no readable json in .*bitsandbytes__nf4"),
        (STATE, {"blocksize": 128}, r"blocksize 128.*in .*bitsandbytes__nf4; expected nf4 in blocks of 64"),
        (STATE, {"nested_offset": None}, r"no nested_blocksize and nested_offset"),
        ("weight.nested_absmax", torch.full((2,), float("nan")), r"experts\.2\.gate_proj.*not finite"),
    ],
)
def test_a_damaged_expert_is_named(tmp_path: Path, suffix: str, value: Any, message: str) -> None:
    tensors, _ = quantised(True)
    stem = stem_of(3, 2, "gate_proj")
    if isinstance(value, dict):
        value = changed_state(tensors, stem, **value)
    kept = {name: tensor for name, tensor in (tensors | {f"{stem}.{suffix}": value}).items() if tensor is not None}
    with open_experts(write(tmp_path, kept, SETTINGS)) as reader, pytest.raises(InputError, match=message) as raised:
        reader.read(3, 2)
    assert "\n" not in str(raised.value) and "expert 2 of layer 3" in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"load_in_8bit": True}, "got int8"), ({"bnb_4bit_quant_type": "fp4"}, "got fp4")],
)
def test_other_kinds_are_refused(tmp_path: Path, changes: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_experts(write(tmp_path, quantised(False)[0], SETTINGS | changes))


def test_blocks_of_another_size_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="blocksize 128"):
        open_experts(write(tmp_path, quantised(False, block=128)[0], SETTINGS))
