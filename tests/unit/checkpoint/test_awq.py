"""AWQ against AutoAWQ's own dequantisation (float32 scales, so to the bit), and against the words of the format."""

from pathlib import Path
from typing import Any

import pytest
import torch

from rgpu.checkpoint.open import open_experts
from rgpu.errors import InputError
from tests.unit.checkpoint.oracles import autoawq_packing
from tests.unit.checkpoint.writing import Tensors, check_experts, every, numbers, rng_of, scales, stem_of, words, write


def settings(**changes: Any) -> dict[str, Any]:
    return {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True} | changes


def packed(group: int, dtype: torch.dtype = torch.float16) -> Tensors:
    """Random words, so that every code and zero point occurs in every place."""
    rng = rng_of(group)
    return every(
        lambda stem, rows, cols: {
            "qweight": words(rng, cols, rows // 8),
            "qzeros": words(rng, cols // group, rows // 8),
            "scales": scales(rng, cols // group, rows, dtype=dtype),
        }
    )


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_as_autoawq_dequantises(tmp_path: Path, group: int, dtype: torch.dtype) -> None:
    oracle, tensors = autoawq_packing(), packed(group, dtype)

    def wanted(stem: str) -> torch.Tensor:
        qweight, qzeros, scale = (tensors[f"{stem}.{suffix}"] for suffix in ("qweight", "qzeros", "scales"))
        weight: torch.Tensor = oracle.dequantize_gemm(qweight, qzeros, scale.float(), 4, group)
        return weight.T

    with open_experts(write(tmp_path, tensors, settings(group_size=group))) as reader:
        fmt: Any = reader.format
        assert (fmt.name, fmt.group, fmt.asymmetric, fmt.scale_dtype) == ("int4", group, True, dtype)
        check_experts(reader, wanted)


def test_by_the_words_of_the_format(tmp_path: Path) -> None:
    """Bits of single words, without a library: what holds wherever the tests run."""
    tensors = packed(64)
    with open_experts(write(tmp_path, tensors, settings(group_size=64))) as reader:
        found = numbers(reader, 1, 2)
    place = {row: nibble for nibble, row in enumerate((0, 2, 4, 6, 1, 3, 5, 7))}
    for role, matrix in (("up_proj", found.up), ("down_proj", found.down)):
        part = {suffix: tensors[f"{stem_of(1, 2, role)}.{suffix}"] for suffix in ("qweight", "qzeros", "scales")}
        rows, cols = matrix.shape
        for n, k in [(n, k) for n in range(0, rows, 5) for k in range(0, cols, 7)]:
            shift = 4 * place[n % 8]
            code, zero = (int(part[s][at, n // 8]) >> shift & 15 for s, at in (("qweight", k), ("qzeros", k // 64)))
            assert float(matrix[n, k]) == (code - zero) * float(part["scales"][k // 64, n]), (role, n, k)


@pytest.mark.parametrize(
    ("claimed", "message"),
    [
        ({"bits": 3}, "got bits 3"),
        ({"version": "gemv"}, "version 'gemv'"),
        ({"group_size": -1}, "group -1"),
        ({"group_size": 64}, r"gate_proj\.qzeros \[8, 16\]; expected \[4, 16\]"),
    ],
)
def test_other_kinds_are_refused(tmp_path: Path, claimed: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_experts(write(tmp_path, packed(32), settings(**claimed)))


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    tensors = packed(32)
    del tensors[f"{stem_of(3, 0, 'up_proj')}.qzeros"]
    with (
        open_experts(write(tmp_path, tensors, settings())) as reader,
        pytest.raises(InputError, match=r"got no tensor model\.layers\.3\.mlp\.experts\.0\.up_proj\.qzeros"),
    ):
        reader.read(3, 0)
