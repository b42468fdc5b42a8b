"""GPTQ against GPTQModel's own dequantiser on the same files, and against the words of the format, number by number."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rgpu.checkpoint.open import open_experts
from rgpu.errors import InputError
from tests.unit.checkpoint.oracles import gptqmodel_dequantiser
from tests.unit.checkpoint.writing import (
    Tensors,
    check_experts,
    every,
    numbers,
    rng_of,
    scales,
    stem_of,
    stems,
    words,
    write,
)


def settings(**changes: Any) -> dict[str, Any]:
    return {
        "quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, "desc_act": False, "checkpoint_format": "gptq",
    } | changes  # fmt: skip


def packed(config: dict[str, Any], dtype: torch.dtype = torch.float16) -> Tensors:
    """Random words; zero points in every nibble, 8 where symmetric, less one in the first layout."""
    rng, group = rng_of(0), config["group_size"]
    in_order = {cols: torch.arange(cols) // group for _, _, cols in stems()}
    shuffled = {cols: torch.randperm(cols, generator=rng) // group for cols in in_order}
    less = int(config["checkpoint_format"] == "gptq")

    def make(stem: str, rows: int, cols: int) -> Tensors:
        stored = torch.randint(0, 16 - less, (cols // group, rows // 8, 8), generator=rng)
        if config["sym"]:
            stored = torch.full_like(stored, 8 - less)
        zeros = sum(stored[:, :, i] << (4 * i) for i in range(8))
        assert isinstance(zeros, torch.Tensor)
        return {
            "qweight": words(rng, cols // 8, rows),
            "qzeros": torch.where(zeros >= 1 << 31, zeros - (1 << 32), zeros).to(torch.int32),
            "scales": scales(rng, cols // group, rows, dtype=dtype),
            "g_idx": (shuffled if config["desc_act"] else in_order)[cols].to(torch.int32),
        }

    return every(make)


CASES = [
    settings(sym=sym, desc_act=act, group_size=group, checkpoint_format=layout)
    for sym in (True, False)
    for act in (False, True)
    for group, layout in ((32, "gptq"), (64, "gptq_v2"), (128, "gptq"))
]


@pytest.mark.parametrize("config", CASES, ids=lambda c: "-".join(str(v) for v in c.values()))
def test_as_gptqmodel_dequantises(tmp_path: Path, config: dict[str, Any]) -> None:
    dequantiser = gptqmodel_dequantiser()
    folder = write(tmp_path, packed(config), config)
    whole = tmp_path / "whole.st"  # the oracle wants all tensors of a module in one file
    save_file(
        {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}, whole
    )
    theirs = dequantiser.convert_gptq_file(whole, torch.float32, config, "cpu")
    with open_experts(folder) as reader:
        fmt: Any = reader.format
        assert (fmt.name, fmt.group) == ("int4", config["group_size"])
        assert (fmt.asymmetric, fmt.act_order) == (not config["sym"], config["desc_act"])
        check_experts(reader, lambda stem: theirs[f"{stem}.weight"])


@pytest.mark.parametrize("layout", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("act", [False, True])
def test_by_the_words_of_the_format(tmp_path: Path, layout: str, act: bool) -> None:
    """Bits of single words, without a library: what holds wherever the tests run."""
    config = settings(sym=False, desc_act=act, checkpoint_format=layout)
    tensors = packed(config, torch.bfloat16)
    with open_experts(write(tmp_path, tensors, config)) as reader:
        found = numbers(reader, 3, 1)
    for role, matrix in (("gate_proj", found.gate), ("down_proj", found.down)):
        part = {
            suffix: tensors[f"{stem_of(3, 1, role)}.{suffix}"] for suffix in ("qweight", "qzeros", "scales", "g_idx")
        }
        rows, cols = matrix.shape
        for n, k in [(n, k) for n in range(0, rows, 5) for k in range(0, cols, 7)]:
            g = int(part["g_idx"][k])
            code = int(part["qweight"][k // 8, n]) >> (4 * (k % 8)) & 15
            zero = (int(part["qzeros"][g, n // 8]) >> (4 * (n % 8)) & 15) + (layout == "gptq")
            assert float(matrix[n, k]) == (code - zero) * float(part["scales"][g, n]), (role, n, k)


def test_without_g_idx_columns_are_in_order(tmp_path: Path) -> None:
    tensors = {name: tensor for name, tensor in packed(settings()).items() if not name.endswith("g_idx")}
    with (
        open_experts(write(tmp_path / "a", tensors, settings())) as reader,
        open_experts(write(tmp_path / "b", packed(settings()), settings())) as other,
    ):
        assert torch.equal(numbers(reader, 1, 0).down, numbers(other, 1, 0).down)


def test_up_in_another_order_than_gate_is_refused(tmp_path: Path) -> None:
    config = settings(desc_act=True)
    tensors = packed(config)
    name = f"{stem_of(1, 0, 'up_proj')}.g_idx"
    tensors[name] = tensors[name].flip(0)
    with (
        open_experts(write(tmp_path, tensors, config)) as reader,
        pytest.raises(InputError, match=r"experts\.0\.up_proj.*one order for gate and up"),
    ):
        reader.read(1, 0)


@pytest.mark.parametrize(
    ("config", "claimed", "message"),
    [
        (settings(sym=False), {"sym": True}, r"zero points other than 8 in .*experts\.0\.gate_proj\.qzeros"),
        (settings(), {"checkpoint_format": "gptq_v2"}, r"zero points other than 8 in .*gate_proj\.qzeros"),
        (settings(desc_act=True), {"desc_act": False}, r"out of order in .*experts\.0\.gate_proj\.g_idx"),
        (
            settings(sym=False, checkpoint_format="gptq_v2"),
            {"checkpoint_format": "gptq"},
            r"zero point of 15 in .*qzeros",
        ),
        (settings(), {"bits": 8}, "got bits 8"),
        (settings(), {"checkpoint_format": "marlin"}, "checkpoint_format 'marlin'"),
        (settings(), {"group_size": -1}, "group -1"),
        (settings(), {"group_size": 64}, r"gate_proj\.scales \[8, 128\]; expected \[4, 128\]"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(tmp_path: Path, config: Any, claimed: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        open_experts(write(tmp_path, packed(config), config | claimed))
    assert "\n" not in str(raised.value)


def test_groups_of_different_sizes_are_refused(tmp_path: Path) -> None:
    config = settings(desc_act=True)
    tensors = packed(config)
    name = f"{stem_of(3, 2, 'down_proj')}.g_idx"
    tensors[name][0] = (tensors[name][0] + 1) % 4
    with (
        open_experts(write(tmp_path, tensors, config)) as reader,
        pytest.raises(InputError, match=r"different sizes in .*experts\.2\.down_proj\.g_idx; expected 4 groups of 32"),
    ):
        reader.read(3, 2)
