"""Experts come out of the store as they were in the checkpoint; nothing half-written is ever left."""

import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from rgpu.errors import InputError
from rgpu.store import convert
from rgpu.store.convert import StoreForm, open_store
from rgpu.store.expert_store import ExpertStore
from rgpu.store.layout import ALIGNMENT, ExpertLayout
from rgpu.types import ExpertKey

LAYERS, E, I, D = (1, 3), 5, 12, 20  # noqa: E741


def weights() -> dict[str, torch.Tensor]:
    """Stacked experts [E, 2I, D] and [E, D, I] of two layers; layers 0 and 2 are dense."""
    torch.manual_seed(0)
    made = {}
    for layer in LAYERS:
        made[f"model.layers.{layer}.mlp.experts.gate_up_proj"] = torch.randn(E, 2 * I, D)
        made[f"model.layers.{layer}.mlp.experts.down_proj"] = torch.randn(E, D, I)
    return made


def split(stacked: dict[str, torch.Tensor], names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")) -> Any:
    made = {}
    for key, value in stacked.items():
        stem, kind = key.rsplit(".", 1)
        for e in range(E):
            if kind == "down_proj":
                made[f"{stem}.{e}.{names[2]}.weight"] = value[e].contiguous()
            else:
                gate, up = value[e].chunk(2)
                made[f"{stem}.{e}.{names[0]}.weight"], made[f"{stem}.{e}.{names[1]}.weight"] = (
                    gate.contiguous(),
                    up.contiguous(),
                )
    return made


def write(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    folder.mkdir(exist_ok=True)
    dense = {
        "model.layers.0.mlp.gate_proj.weight": torch.zeros(3, 3),
        "model.layers.1.mlp.shared_experts.up_proj.weight": torch.zeros(2, 2),
    }
    save_file(tensors | dense, folder / "model.safetensors")
    return folder


def matches(store: ExpertStore, dtype: torch.dtype) -> bool:
    expected = weights()
    assert isinstance(store.layout, ExpertLayout)
    for at, layer in enumerate(LAYERS):
        for e in range(E):
            row = torch.from_numpy(store.buffer(ExpertKey(at, e)).copy())
            gate_up, down = store.layout.views(row)[:2]
            if not torch.equal(gate_up, expected[f"model.layers.{layer}.mlp.experts.gate_up_proj"][e].to(dtype)):
                return False
            if not torch.equal(down, expected[f"model.layers.{layer}.mlp.experts.down_proj"][e].to(dtype)):
                return False
    return True


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", ["stacked", "single", "w123"])
@pytest.mark.parametrize("where", ["disk", "ram"])
def test_round_trip(tmp_path: Path, dtype: torch.dtype, form: str, where: str) -> None:
    tensors = {
        "stacked": weights,
        "single": lambda: split(weights()),
        "w123": lambda: split(weights(), ("w1", "w3", "w2")),
    }
    store = open_store(write(tmp_path / "m", tensors[form]()), StoreForm(dtype), where, tmp_path / "cache")
    assert (store.layer_ids, store.experts) == (LAYERS, E)
    assert matches(store, dtype)
    assert (store.mapped_bytes > 0) == (where == "disk")
    assert store.shape(2).expert_bytes == (3 * I * D * dtype.itemsize,) * 2
    with pytest.raises(ValueError, match="read-only"):
        store.buffer(ExpertKey(0, 0))[0] = 1
    with pytest.raises(InputError, match="no expert"):
        store.buffer(ExpertKey(0, E))


def test_sharded_checkpoint(tmp_path: Path) -> None:
    tensors, folder = split(weights()), tmp_path / "m"
    folder.mkdir()
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, keys in shards.items():
        save_file({k: tensors[k] for k in keys}, folder / file)
    index = {"weight_map": {k: file for file, keys in shards.items() for k in keys}}
    (folder / "model.safetensors.index.json").write_text(__import__("json").dumps(index))
    assert matches(open_store(folder, StoreForm(torch.float32), cache=tmp_path / "cache"), torch.float32)
    (folder / "b.safetensors").unlink()
    with pytest.raises(InputError, match=r"no b\.safetensors"):
        open_store(folder, StoreForm(torch.float32), cache=tmp_path / "cache")


def test_converted_once_and_again_when_the_checkpoint_changes(tmp_path: Path, monkeypatch: Any) -> None:
    calls = []
    original = convert.convert
    monkeypatch.setattr(convert, "convert", lambda *a: (calls.append(a), original(*a)))
    folder, cache = write(tmp_path / "m", weights()), tmp_path / "cache"
    open_store(folder, StoreForm(torch.float32), cache=cache)
    store = open_store(folder, StoreForm(torch.float32), cache=cache)
    assert len(calls) == 1
    os.truncate(store.path, store.nbytes - 1)
    assert matches(open_store(folder, StoreForm(torch.float32), cache=cache), torch.float32)
    assert len(calls) == 2
    write(folder, {k: v + 1 for k, v in weights().items()})
    assert not matches(open_store(folder, StoreForm(torch.float32), cache=cache), torch.float32)
    assert len(calls) == 3


def test_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("RGPU_CACHE", str(tmp_path / "here"))
    store = open_store(write(tmp_path / "m", weights()), StoreForm(torch.float32))
    assert store.path.is_relative_to(tmp_path / "here" / "stores")


@pytest.mark.parametrize("keep", [4, 100, 4000])
def test_truncated_checkpoint(tmp_path: Path, keep: int) -> None:
    folder = write(tmp_path / "m", weights())
    os.truncate(folder / "model.safetensors", keep)
    with pytest.raises(InputError, match=r"model\.safetensors") as raised:
        open_store(folder, StoreForm(torch.float32), cache=tmp_path / "cache")
    assert "\n" not in str(raised.value)
    assert not any(p.is_file() for p in tmp_path.glob("cache/**/*"))


def test_incomplete_and_uneven_checkpoints(tmp_path: Path) -> None:
    tensors = split(weights())
    missing = {k: v for k, v in tensors.items() if ".3.mlp.experts.2.up_proj" not in k}
    with pytest.raises(InputError, match="no up projection of expert 2 in layer 3"):
        open_store(write(tmp_path / "a", missing), StoreForm(torch.float32), cache=tmp_path / "cache")
    uneven = tensors | {"model.layers.3.mlp.experts.1.down_proj.weight": torch.zeros(D, I + 1)}
    with pytest.raises(InputError, match="expert 1 of layer 3"):
        open_store(write(tmp_path / "b", uneven), StoreForm(torch.float32), cache=tmp_path / "cache")
    with pytest.raises(InputError, match="no routed experts"):
        open_store(write(tmp_path / "c", {}), StoreForm(torch.float32), cache=tmp_path / "cache")
    assert not any(p.is_file() for p in tmp_path.glob("cache/**/*"))


def test_no_space_and_interruption_leave_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    folder, cache = write(tmp_path / "m", weights()), tmp_path / "cache"
    with monkeypatch.context() as patch:
        patch.setattr(convert.shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
        with pytest.raises(InputError, match="no space left"):
            open_store(folder, StoreForm(torch.float32), cache=cache)
    for failure, expected in (
        (OSError(errno.ENOSPC, "No space left on device"), InputError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ):
        with monkeypatch.context() as patch:

            def fail(_: int, failure: BaseException = failure) -> None:
                raise failure

            patch.setattr(convert.os, "fsync", fail)
            with pytest.raises(expected):
                open_store(folder, StoreForm(torch.float32), cache=cache)
        assert not any(p.is_file() for p in cache.glob("**/*"))
    assert matches(open_store(folder, StoreForm(torch.float32), cache=cache), torch.float32)


def test_layout_is_aligned_and_has_no_overlap() -> None:
    for width, hidden in ((1, 1), (12, 20), (64, 256)):
        for dtype in (torch.float32, torch.bfloat16):
            layout = ExpertLayout(width, hidden, dtype)
            assert layout.stride % ALIGNMENT == 0
            row = torch.zeros(layout.stride, dtype=torch.uint8)
            gate_up, down = layout.views(row)[:2]
            gate_up.fill_(1)
            assert not down.any()
            assert gate_up.nbytes + down.nbytes == layout.payload_bytes <= layout.nbytes


def test_other_files_are_not_stores(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(np.zeros(5000, np.uint8).tobytes())
    with pytest.raises(InputError, match="another kind of file"):
        ExpertStore(path)
