"""GGUF files written by the gguf package, and its own dequantisation as the oracle; tensors of random bytes."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rgpu.checkpoint.gguf_file import GgufFile
from rgpu.checkpoint.open import open_experts
from rgpu.errors import InputError
from rgpu.quant.int8 import Int8
from tests.unit.checkpoint.writing import numbers

gguf = pytest.importorskip("gguf")

LAYERS, E, I, D = (1, 2), 4, 256, 512  # noqa: E741
SHAPES = {"gate": (E, I, D), "up": (E, I, D), "gate_up": (E, 2 * I, D), "down": (E, D, I)}
HALVES = {
    "Q4_K": (0, 2),
    "Q6_K": (208,),
    "Q8_0": (0,),
    "MXFP4": (),
    "BF16": (),
}  # where a block has its float16 factors


def random_blocks(kind: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """uint8 [..., bytes of a row]: random bytes in which the numbers that scale a block are finite and of ordinary size."""
    rng = np.random.default_rng(seed)
    columns, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    raw = rng.integers(0, 256, (*shape[:-1], shape[-1] // columns, size), np.uint8)
    for at in HALVES.get(kind, ()):
        half = (rng.random(raw.shape[:-1]) * rng.choice([-0.01, 0.01], raw.shape[:-1])).astype(np.float16)
        raw[..., at : at + 2] = half[..., None].view(np.uint8)
    if kind == "MXFP4":
        raw[..., 0] = rng.integers(100, 140, raw.shape[:-1])
    if kind in ("BF16", "F16", "F32"):
        made = rng.standard_normal(shape).astype(np.float16 if kind == "F16" else np.float32)
        return (made.view(np.uint16)[..., 1::2].copy() if kind == "BF16" else made).view(np.uint8)
    return raw.reshape(*shape[:-1], -1)


def write(path: Path, kinds: dict[tuple[int, str], str], bias: bool = False, blocks: int = 3, **changes: Any) -> Path:
    """A file with the tensors `kinds` ((layer, role) -> type) and some that a reader passes over; `changes` by name."""
    writer = gguf.GGUFWriter(path, "qwen3moe")
    writer.add_block_count(blocks)
    writer.add_array("tokenizer.ggml.tokens", ["a", "bb", "ccc"])
    writer.add_array("tokenizer.ggml.scores", [0.5, 1.5])
    writer.add_bool("tokenizer.ggml.add_bos_token", True)
    writer.add_string("general.name", "näme")
    if "nextn" in changes:
        writer.add_nextn_predict_layers(changes.pop("nextn"))
    if "alignment" in changes:
        writer.add_custom_alignment(changes.pop("alignment"))
    writer.add_tensor("blk.0.ffn_gate.weight", np.ones((3, 5), np.float32))
    writer.add_tensor("blk.1.ffn_gate_inp.weight", np.ones((E, D), np.float32))
    writer.add_tensor("blk.1.ffn_gate_shexp.weight", np.ones((7, D), np.float16))
    for (layer, role), kind in kinds.items():
        name = f"blk.{layer}.ffn_{role}_exps.weight"
        raw = changes.get(name, random_blocks(kind, SHAPES[role], seed=layer + len(role)))
        if raw is not None:
            writer.add_tensor(name, raw, raw_dtype=gguf.GGMLQuantizationType[kind])
        if bias:
            made = np.random.default_rng(layer).standard_normal(SHAPES[role][:2]).astype(np.float32)
            writer.add_tensor(f"blk.{layer}.ffn_{role}_exps.bias", made)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def kinds_of(gate: str, down: str = "", joined: bool = False) -> dict[tuple[int, str], str]:
    roles = {"gate_up": gate} if joined else {"gate": gate, "up": gate}
    return {(layer, role): kind for layer in LAYERS for role, kind in {**roles, "down": down or gate}.items()}


def theirs(path: Path) -> dict[str, torch.Tensor]:
    """Every expert tensor of the file in float32, as the gguf package reads and dequantises it."""
    return {
        tensor.name: torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy()).reshape(
            *[int(n) for n in tensor.shape[::-1]]
        )
        for tensor in gguf.GGUFReader(path).tensors
        if "_exps." in tensor.name
    }


def check(path: Path, joined: bool = False) -> None:
    wanted = theirs(path)
    with open_experts(path) as reader:
        assert (reader.layer_ids, reader.experts, reader.intermediate, reader.hidden) == (LAYERS, E, I, D)
        for layer in LAYERS:
            for expert in range(E):
                found, stem = numbers(reader, layer, expert), f"blk.{layer}.ffn_"
                if joined:
                    assert torch.equal(torch.cat([found.gate, found.up]), wanted[f"{stem}gate_up_exps.weight"][expert])
                else:
                    assert torch.equal(found.gate, wanted[f"{stem}gate_exps.weight"][expert])
                    assert torch.equal(found.up, wanted[f"{stem}up_exps.weight"][expert])
                assert torch.equal(found.down, wanted[f"{stem}down_exps.weight"][expert])
                if found.gate_bias is not None and found.up_bias is not None and found.down_bias is not None:
                    biases = {"gate": found.gate_bias, "up": found.up_bias, "down": found.down_bias}
                    if joined:
                        biases = {"gate_up": torch.cat([found.gate_bias, found.up_bias]), "down": found.down_bias}
                    for role, bias in biases.items():
                        assert torch.equal(bias, wanted[f"{stem}{role}_exps.bias"][expert])


@pytest.mark.parametrize("kind", list(HALVES))
@pytest.mark.parametrize("joined", [False, True])
def test_as_gguf_dequantises(tmp_path: Path, kind: str, joined: bool) -> None:
    path = write(tmp_path / "m.gguf", kinds_of(kind, joined=joined), bias=joined)
    with open_experts(path) as reader:
        assert reader.bias == joined
        assert reader.format.name == kind.lower() and reader.layout.down_format is None
    check(path, joined)


def test_down_of_another_type(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", kinds_of("Q4_K", "Q6_K"), bias=True)
    with open_experts(path) as reader:
        assert (reader.layout.format.name, reader.layout.format_of("down").name) == ("q4_k", "q6_k") and reader.bias
    check(path)


def test_layers_of_different_types_have_their_own_layouts(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", kinds_of("Q4_K") | {(2, "down"): "Q6_K"})
    with open_experts(path) as reader:
        assert [reader.layout_of(layer).format_of("down").name for layer in LAYERS] == ["q4_k", "q6_k"]
        with pytest.raises(InputError, match=r"got Q6_K for blk\.2\.ffn_down_exps\.weight; expected Q4_K as blk\.1"):
            _ = reader.layout
    check(path)


@pytest.mark.parametrize("alignment", [32, 256])
def test_the_header_is_the_gguf_package_s(tmp_path: Path, alignment: int) -> None:
    path = write(tmp_path / "m.gguf", kinds_of("Q8_0"), alignment=alignment)
    ours, reader = GgufFile(path), gguf.GGUFReader(path)
    assert ours.keys["general.name"] == "näme" and ours.keys["qwen3moe.block_count"] == 3
    assert set(ours.tensors) == {tensor.name for tensor in reader.tensors}
    for tensor in reader.tensors:
        mine = ours.tensors[tensor.name]
        assert (mine.shape, mine.kind) == (tuple(int(n) for n in tensor.shape[::-1]), int(tensor.tensor_type))
        assert mine.offset == int(tensor.data_offset)
        assert np.array_equal(ours.bytes_of(mine, 1, 9), tensor.data.reshape(-1).view(np.uint8)[1:10])


def test_blocks_that_predict_further_tokens_are_left_out(tmp_path: Path) -> None:
    with open_experts(write(tmp_path / "m.gguf", kinds_of("Q8_0"), nextn=1)) as reader:
        assert reader.layer_ids == (1,)


def test_parts_of_a_model_and_a_folder(tmp_path: Path) -> None:
    kinds = kinds_of("Q8_0")
    half = {key: kind for key, kind in kinds.items() if key[0] == 1}
    write(tmp_path / "m-00001-of-00002.gguf", half)
    (tmp_path / "other").mkdir()
    whole = write(tmp_path / "other" / "m.gguf", kinds)
    with pytest.raises(InputError, match=r"no m-00002-of-00002\.gguf"):
        open_experts(tmp_path)
    write(tmp_path / "m-00002-of-00002.gguf", {key: kind for key, kind in kinds.items() if key not in half})
    wanted = theirs(whole)
    for path in (tmp_path, tmp_path / "m-00002-of-00002.gguf"):
        with open_experts(path) as reader:
            for layer in LAYERS:
                assert torch.equal(numbers(reader, layer, 3).up, wanted[f"blk.{layer}.ffn_up_exps.weight"][3])
    (tmp_path / "n.gguf").write_bytes(whole.read_bytes())
    with pytest.raises(InputError, match=r"2 GGUF models, m, n\.gguf"):
        open_experts(tmp_path)


UP, DOWN = "blk.2.ffn_up_exps.weight", "blk.1.ffn_down_exps.weight"
NARROW = random_blocks("Q8_0", (E, I, 256), 0)


def damaged_scale() -> np.ndarray:
    raw = random_blocks("Q4_K", SHAPES["down"], 0)
    raw[2, 5, :2] = np.array([np.inf], np.float16).view(np.uint8)
    return raw


@pytest.mark.parametrize(
    ("kinds", "changes", "message"),
    [
        (kinds_of("F16"), {}, r"blk\.1\.ffn_down_exps\.weight: got the type F16; expected one of Q8_0"),
        (kinds_of("Q4_K", "Q5_K"), {}, r"ffn_down_exps\.weight: got the type Q5_K"),
        (kinds_of("Q4_K") | {(2, "up"): "Q6_K"}, {}, rf"{UP}: got the type Q6_K; expected Q4_K as blk\.2\.ffn_gate"),
        (kinds_of("Q8_0"), {UP: None}, rf"got no {UP}"),
        (kinds_of("Q8_0"), {UP: NARROW}, rf"{UP}: got \[4, 256, 256\]; expected \[4, 256, 512\]"),
        (kinds_of("Q4_K"), {DOWN: damaged_scale()}, rf"expert 2 of {DOWN}.*not finite"),
        ({}, {}, "no routed experts"),
    ],
)
def test_what_cannot_be_held_is_named(tmp_path: Path, kinds: Any, changes: Any, message: str) -> None:
    path = write(tmp_path / "m.gguf", kinds, **changes)
    with pytest.raises(InputError, match=message) as raised, open_experts(path) as reader:
        reader.read(1, 2)
    assert "\n" not in str(raised.value)


def test_biases_must_be_complete(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", kinds_of("Q8_0"), bias=True)
    path.write_bytes(path.read_bytes().replace(b"blk.2.ffn_up_exps.bias", b"blk.2.ffn_xx_exps.bias"))
    with pytest.raises(InputError, match=r"blk\.2\.ffn_up_exps\.bias: got none; expected F32 \[4, 256\]"):
        open_experts(path)


@pytest.mark.parametrize("keep", [0, 3, 10, 60, 300, 900])
def test_a_header_cut_off(tmp_path: Path, keep: int) -> None:
    path = write(tmp_path / "m.gguf", kinds_of("Q8_0"))
    os.truncate(path, keep)
    with pytest.raises(InputError, match=r"m\.gguf") as raised:
        open_experts(path)
    assert "\n" not in str(raised.value)


def test_data_cut_off_and_files_of_another_kind(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", kinds_of("Q8_0"))
    os.truncate(path, path.stat().st_size - 64)
    with open_experts(path) as reader:
        numbers(reader, 1, 0)
        with pytest.raises(
            InputError, match=r"blk\.2\.ffn_down_exps\.weight.*got a file of \d+ bytes; expected at least"
        ):
            reader.read(2, E - 1)
    path.write_bytes(b"GGUF" + b"\x09" + bytes(100))
    with pytest.raises(InputError, match="version 9"):
        open_experts(path)
    with pytest.raises(InputError, match=r"nowhere\.gguf"):
        open_experts(tmp_path / "nowhere.gguf")


def test_experts_and_layers_out_of_range_and_quantize(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", kinds_of("Q8_0"))
    with open_experts(path) as reader:
        for layer, expert in ((0, 0), (1, E), (1, -1)):
            with pytest.raises(InputError, match=r"no (layer 0|expert (4|-1) in layer 1)"):
                reader.read(layer, expert)
    with pytest.raises(InputError, match="quantised already"):
        open_experts(path, quantize=Int8())


def test_a_tensor_beside_the_experts_that_rgpu_does_not_know(tmp_path: Path) -> None:
    """A scale of its own, say: passed over, every expert would be off by it."""
    path = write(tmp_path / "m.gguf", kinds_of("Q8_0"), bias=True)
    path.write_bytes(path.read_bytes().replace(b"ffn_down_exps.bias", b"ffn_down_exps.scal"))
    with pytest.raises(InputError, match=r"cannot read blk\.\d\.ffn_down_exps\.scal .*expected weight and bias alone"):
        open_experts(path)
