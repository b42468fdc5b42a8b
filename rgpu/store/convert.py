"""Checkpoint to store: streamed one expert at a time, written once, atomically."""

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from rgpu.checkpoint.dense import write_dense
from rgpu.checkpoint.experts import CheckpointExperts, checkpoint_files
from rgpu.checkpoint.open import open_experts
from rgpu.checkpoint.plain import Quantizer
from rgpu.errors import InputError
from rgpu.quant.formats import named
from rgpu.quant.layout import SlotLayout
from rgpu.store.expert_store import DATA_START, VERSION, ExpertStore, read_header, write_header
from rgpu.store.layout import ExpertLayout, described, dtype_name

_SAMPLES, _BLOCK = 64, 4096


def cache_folder() -> Path:
    """Where stores are kept: `$RGPU_CACHE`, else `~/.cache/rgpu`, in `stores/`."""
    root = os.environ.get("RGPU_CACHE")
    return (Path(root) if root else Path.home() / ".cache" / "rgpu") / "stores"


@dataclass(frozen=True, slots=True)
class StoreForm:
    """What a store holds. `dtype`: float experts arranged as the model's module has them (`interleaved`, `transposed`), or
    None: the arrays of a storage format, as the checkpoint has them or rounded to `quantize`."""

    dtype: torch.dtype | None = torch.float32
    interleaved: bool = False
    transposed: bool = False
    quantize: Quantizer | None = None
    layers: int | None = None

    @property
    def name(self) -> str:
        """Part of the store's path."""
        if self.dtype is not None:
            return dtype_name(self.dtype)
        return "stored" if self.quantize is None else "-".join(str(v) for v in named(self.quantize).values())


def open_store(model_dir: Path, form: StoreForm, where: str = "disk", cache: Path | None = None) -> ExpertStore:
    """The store of the checkpoint in `model_dir`, converted on first use, found again afterwards."""
    return ExpertStore(converted(model_dir, form, cache), where)


def converted(model_dir: Path, form: StoreForm, cache: Path | None = None) -> Path:
    """The store file of the checkpoint in `model_dir`, written on first use, found again afterwards."""
    source = source_hash(model_dir)
    path = (cache or cache_folder()) / f"{source[:20]}-{form.name}" / "experts.rgpu"
    if path.exists():
        try:
            read_header(path)
        except InputError:
            path.unlink()
    if not path.exists():
        convert(model_dir, path, form, source)
    return path


def dense_checkpoint(model_dir: Path, cache: Path | None = None) -> Path:
    """A folder with the dense part of a quantised checkpoint in plain numbers: written on first use, found afterwards."""
    path = (cache or cache_folder()) / f"{source_hash(model_dir)[:20]}-dense"
    if not path.exists():
        with _atomic(path) as partial:
            partial.mkdir()
            write_dense(model_dir, partial)
    return path


def source_hash(model_dir: Path) -> str:
    """sha256 that tells checkpoints apart without reading all of them: of every file its size, time of change, header
    and 64 blocks spread over it."""
    digest = hashlib.sha256()
    for file in checkpoint_files(model_dir):
        stat = file.stat()
        digest.update(f"{file.name}:{stat.st_size}:{stat.st_mtime_ns};".encode())
        with file.open("rb") as data:
            for i in range(_SAMPLES):
                data.seek(i * stat.st_size // _SAMPLES)
                digest.update(data.read(_BLOCK))
    return digest.hexdigest()


def convert(model_dir: Path, path: Path, form: StoreForm, source: str) -> None:
    """Writes the store of `model_dir` at `path`; holds one expert in memory at a time. Nothing is left at `path` unless
    it is complete; no space left is an `InputError`."""
    with _rows(model_dir, form) as rows, _atomic(path) as partial:
        total = DATA_START + len(rows.layer_ids) * rows.experts * rows.layout.stride
        free = shutil.disk_usage(path.parent).free
        if free < total:
            raise OSError(errno.ENOSPC, f"{free} bytes free, {total} needed")
        header = {
            "version": VERSION, "layer_ids": list(rows.layer_ids), "experts": rows.experts, "layout": described(rows.layout),
            "expert_bytes": rows.layout.payload_bytes, "stride": rows.layout.stride, "source": source, "file_bytes": total,
        }  # fmt: skip
        row = torch.zeros(rows.layout.stride, dtype=torch.uint8)
        keys = [(layer, expert) for layer in rows.layer_ids for expert in range(rows.experts)]
        with partial.open("wb") as out:
            out.write(write_header(header))
            for layer, expert in tqdm(keys, desc="expert store", unit="expert", disable=None, delay=2):
                rows.fill(row, layer, expert)
                out.write(row.numpy().data)
            out.flush()
            os.fsync(out.fileno())


@dataclass(frozen=True, slots=True)
class _Rows:
    """Experts of a checkpoint as rows of a store: `fill(row, layer, expert)` writes one."""

    layer_ids: tuple[int, ...]
    experts: int
    layout: ExpertLayout | SlotLayout
    fill: Callable[[torch.Tensor, int, int], None]


@contextmanager
def _rows(model_dir: Path, form: StoreForm) -> Iterator[_Rows]:
    if form.dtype is None:
        with open_experts(model_dir, form.quantize) as reader:
            layout = reader.layout
            yield _Rows(
                reader.layer_ids,
                reader.experts,
                layout,
                lambda row, layer, expert: layout.pack(reader.read(layer, expert), row),
            )
        return
    with CheckpointExperts(model_dir, interleaved=form.interleaved, layers=form.layers) as found:
        floats = ExpertLayout(
            found.intermediate, found.hidden, form.dtype, found.bias, form.transposed, form.interleaved
        )
        yield _Rows(
            found.layer_ids,
            found.experts,
            floats,
            lambda row, layer, expert: floats.fill(row, found.read(layer, expert)),
        )


@contextmanager
def _atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place on success and vanishes otherwise, Ctrl-C included."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        if partial.is_dir() and path.exists():  # another process was faster
            return
        os.replace(partial, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(
                f"no space left for the expert store {path}: {error.strerror}; free some or set RGPU_CACHE elsewhere"
            ) from None
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise InputError(f"cannot write {path}: {error.strerror}; set RGPU_CACHE to a writable folder") from None
        raise
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)
