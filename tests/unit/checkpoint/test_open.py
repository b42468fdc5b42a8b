"""Which reader a checkpoint gets, what of it is read, and that mistakes are said in one line."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rgpu.checkpoint import files
from rgpu.checkpoint.gguf_file import GgufFile
from rgpu.checkpoint.open import CODECS, open_experts
from rgpu.errors import InputError
from rgpu.quant.int4 import Int4
from rgpu.quant.int8 import Int8
from tests.unit.checkpoint import test_awq, test_fp8, test_mxfp4, test_plain
from tests.unit.checkpoint.writing import EXPERTS, LAYERS, Tensors, every, numbers, stem_of, write


class Slices:
    """Counts the bytes that leave safetensors files, in front of the real `safe_open`."""

    def __init__(self, monkeypatch: Any) -> None:
        self.read = 0
        self.open = files.safe_open
        monkeypatch.setattr(files, "safe_open", lambda path, framework: Handle(self, self.open(path, framework)))

    def count(self, tensor: torch.Tensor) -> torch.Tensor:
        self.read += tensor.numel() * tensor.element_size()
        return tensor


class Handle:
    def __init__(self, slices: Slices, handle: Any) -> None:
        self.slices, self.handle = slices, handle

    def keys(self) -> Any:
        return self.handle.keys()

    def get_tensor(self, name: str) -> torch.Tensor:
        return self.slices.count(self.handle.get_tensor(name))

    def get_slice(self, name: str) -> Any:
        return Part(self.slices, self.handle.get_slice(name))


class Part:
    def __init__(self, slices: Slices, part: Any) -> None:
        self.slices, self.part = slices, part

    def get_shape(self) -> Any:
        return self.part.get_shape()

    def __getitem__(self, at: Any) -> torch.Tensor:
        return self.slices.count(self.part[at])


CHECKPOINTS = {
    "single": (test_plain.single(), None, "qwen3_moe"),
    "stacked": (test_plain.stacked(test_plain.single()), None, "qwen3_moe"),
    "transposed": (test_plain.transposed(test_plain.single()), None, "llama4_text"),
    "fp8 stacked": (test_fp8.stacked(test_fp8.single()), test_fp8.SETTINGS, "qwen3_moe"),
    "mxfp4": (test_mxfp4.packed(), test_mxfp4.SETTINGS, "gpt_oss"),
    "awq": (test_awq.packed(32), test_awq.settings(), "qwen3_moe"),
}


@pytest.mark.parametrize("name", list(CHECKPOINTS))
def test_one_expert_is_read_and_no_other(tmp_path: Path, monkeypatch: Any, name: str) -> None:
    tensors, settings, model_type = CHECKPOINTS[name]
    whole = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    one = whole // (len(LAYERS) * EXPERTS)
    folder, slices = write(tmp_path, tensors, settings, model_type=model_type), Slices(monkeypatch)
    with open_experts(folder) as reader:
        assert 0 < slices.read <= 2 * one  # the first expert says what the checkpoint holds
        for layer in LAYERS:
            slices.read = 0
            reader.read(layer, EXPERTS - 1)
            assert slices.read == one


def test_one_expert_of_a_gguf_file_is_read_and_no_other(tmp_path: Path, monkeypatch: Any) -> None:
    pytest.importorskip("gguf")
    from tests.unit.checkpoint import test_gguf

    path = test_gguf.write(tmp_path / "m.gguf", test_gguf.kinds_of("Q4_K", "Q6_K"))
    read, bytes_of = [0], GgufFile.bytes_of

    def spy(self: GgufFile, tensor: Any, start: int, count: int) -> Any:
        read[0] += count
        return bytes_of(self, tensor, start, count)

    monkeypatch.setattr(GgufFile, "bytes_of", spy)
    with open_experts(path) as reader:
        assert read == [0]
        reader.read(2, 3)
        weights = test_gguf.I * test_gguf.D
        assert read == [2 * weights * 144 // 256 + weights * 210 // 256]


def test_settings_of_a_text_model_inside_another(tmp_path: Path) -> None:
    """Models of text and images keep the text model's config in text_config, and its tensors one name deeper."""
    tensors = {name.replace("model.", "model.language_model.", 1): t for name, t in test_awq.packed(64).items()}
    config: Any = {"text_config": {"num_hidden_layers": 4, "model_type": "qwen3_5_moe_text"}}
    folder = write(tmp_path, tensors, test_awq.settings(group_size=64), **config)
    with open_experts(folder) as reader:
        assert (reader.layer_ids, reader.format) == (LAYERS, Int4(64, asymmetric=True))
        assert numbers(reader, 3, 0).up.shape == (128, 256)


def test_layers_past_the_model_s_are_left_out(tmp_path: Path) -> None:
    """DeepSeek-V3 keeps its extra prediction layer as one more layer of the model."""
    tensors = test_plain.single()
    extra = {name.replace("layers.3.", "layers.4."): t for name, t in tensors.items() if ".layers.3." in name}
    with open_experts(write(tmp_path / "a", tensors | extra)) as reader:
        assert reader.layer_ids == LAYERS
    with open_experts(write(tmp_path / "b", tensors | extra, num_hidden_layers=5)) as reader:
        assert reader.layer_ids == (*LAYERS, 4)


def drop(tensors: Tensors, part: str) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if part not in name}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (drop(test_plain.single(), stem_of(3, 1, "up_proj")), "no up projection of expert 1 in layer 3"),
        (drop(test_plain.single(), ".experts.2.gate"), "no gate projection of expert 2 in layer 1"),
        (
            drop(test_plain.stacked(test_plain.single()), "3.mlp.experts.down"),
            "no gate projection of expert 0 in layer 3",
        ),
        ({}, "no routed experts"),
        (
            test_plain.single() | {"other.layers.1.mlp.experts.0.up_proj.weight": torch.zeros(128, 256)},
            r"the same experts as .*expected one model's layers",
        ),
        (
            test_plain.stacked(test_plain.single())
            | {"model.layers.1.mlp.experts.down_proj": torch.zeros(3, 256, 100)},
            r"expected \[2I, D\] and \[D, I\], or \[D, 2I\] and \[I, D\]",
        ),
        (
            test_plain.single() | {f"{stem_of(1, 0, 'up_proj')}.bias": torch.zeros(128)},
            r"got a bias \[128\] in .*experts\.0\.up_proj; expected none",
        ),
        (
            test_plain.single() | {f"{stem_of(1, 0, 'up_proj')}.weight": torch.zeros(128, 128).bfloat16()},
            r"a matrix \[128, 128\] in .*experts\.0\.up_proj; expected \[128, 256\]",
        ),
    ],
)
def test_incomplete_and_uneven_checkpoints(tmp_path: Path, tensors: Tensors, message: str) -> None:
    kept = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    with pytest.raises(InputError, match=message) as raised, open_experts(write(tmp_path, kept)) as reader:
        reader.read(1, 0)
    assert "\n" not in str(raised.value)


def test_what_is_no_checkpoint_that_rgpu_reads(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no model at"):
        open_experts(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"config\.json"):
        open_experts(tmp_path)
    packed = test_awq.packed(32)
    with pytest.raises(InputError, match="got quant_method 'exl3'; expected one of compressed-tensors, gptq, awq"):
        open_experts(write(tmp_path / "a", packed, {"quant_method": "exl3"}))
    with pytest.raises(InputError, match="no tensor .*gate_proj.weight"):
        open_experts(write(tmp_path / "b", packed))
    folder = write(tmp_path / "c", packed, test_awq.settings())
    (folder / "config.json").write_text("[]")
    with pytest.raises(InputError, match="expected a json object"):
        open_experts(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match="cannot read .*config.json") as raised:
        open_experts(folder)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("method", [*CODECS, "modelopt_fp4"])
def test_stacked_or_foreign_tensors_are_refused_by_every_codec(tmp_path: Path, method: str) -> None:
    """Tensors of a kind that the config does not say: an error that names one, never numbers."""
    settings = {
        "quant_method": method, "bits": 4, "group_size": 32, "weight_block_size": [128, 128], "quant_algo": "NVFP4",
    }  # fmt: skip
    foreign = every(lambda stem, rows, cols: {"weight": torch.zeros(rows, cols, dtype=torch.int8)})
    stacked = {name: tensor.to(torch.int8) for name, tensor in test_plain.stacked(test_plain.single()).items()}
    for number, tensors in enumerate((foreign, stacked)):
        with pytest.raises(InputError, match=r"model\.layers\.1\.mlp\.experts") as raised:
            open_experts(write(tmp_path / str(number), tensors, settings))
        assert "\n" not in str(raised.value)


def test_quantize_only_rounds_floats(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="quantised already"):
        open_experts(write(tmp_path / "a", test_awq.packed(32), test_awq.settings()), quantize=Int8())
    with pytest.raises(InputError, match="act_order"):
        open_experts(write(tmp_path / "b", test_plain.single()), quantize=Int4(act_order=True))


def test_experts_and_layers_out_of_range_and_after_an_index_that_lies(tmp_path: Path) -> None:
    folder = write(tmp_path, test_plain.single())
    with open_experts(folder) as reader:
        for layer, expert in ((0, 0), (1, EXPERTS), (1, -1)):
            with pytest.raises(InputError, match=f"no expert {expert} in layer {layer}"):
                reader.read(layer, expert)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"]["x"] = "model-00003-of-00002.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"no model-00003-of-00002\.safetensors"):
        open_experts(folder)
