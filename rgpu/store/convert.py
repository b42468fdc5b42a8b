"""Checkpoint to store: streamed one expert at a time, written once, atomically."""

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from tqdm import tqdm

from rgpu.checkpoint.experts import CheckpointExperts, checkpoint_files
from rgpu.errors import InputError
from rgpu.store.expert_store import DATA_START, ExpertStore, read_header, write_header
from rgpu.store.layout import DTYPES, ExpertLayout

_SAMPLES, _BLOCK = 64, 4096


def cache_folder() -> Path:
    """Where stores are kept: `$RGPU_CACHE`, else `~/.cache/rgpu`, in `stores/`."""
    root = os.environ.get("RGPU_CACHE")
    return (Path(root) if root else Path.home() / ".cache" / "rgpu") / "stores"


def open_store(model_dir: Path, dtype: torch.dtype, where: str = "disk", cache: Path | None = None) -> ExpertStore:
    """The store of the checkpoint in `model_dir` in `dtype`, converted on first use, found again afterwards."""
    source = source_hash(model_dir)
    path = (cache or cache_folder()) / f"{source[:20]}-{_name(dtype)}" / "experts.rgpu"
    if path.exists():
        try:
            read_header(path)
        except InputError:
            path.unlink()
    if not path.exists():
        convert(model_dir, path, dtype, source)
    return ExpertStore(path, where)


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


def convert(model_dir: Path, path: Path, dtype: torch.dtype, source: str) -> None:
    """Writes the store of `model_dir` at `path`; holds one expert in memory at a time. Nothing is left at `path` unless
    it is complete; no space left is an `InputError`."""
    with CheckpointExperts(model_dir) as checkpoint, _atomic(path) as partial:
        layout = ExpertLayout(checkpoint.intermediate, checkpoint.hidden, dtype)
        layers, experts = checkpoint.layer_ids, checkpoint.experts
        total = DATA_START + len(layers) * experts * layout.stride
        free = shutil.disk_usage(path.parent).free
        if free < total:
            raise OSError(errno.ENOSPC, f"{free} bytes free, {total} needed")
        header = {
            "layer_ids": list(layers), "experts": experts, "intermediate": layout.intermediate, "hidden": layout.hidden,
            "dtype": _name(dtype), "expert_bytes": layout.payload_bytes, "stride": layout.stride,
            "source": source, "file_bytes": total,
        }  # fmt: skip
        row = torch.zeros(layout.stride, dtype=torch.uint8)
        gate_up, down = layout.views(row)
        with (
            partial.open("wb") as out,
            tqdm(total=len(layers) * experts, desc="expert store", unit="expert", disable=None, delay=2) as bar,
        ):
            out.write(write_header(header))
            for layer in layers:
                for expert in range(experts):
                    gate, up, projection = checkpoint.read(layer, expert)
                    gate_up[: layout.intermediate].copy_(gate)
                    gate_up[layout.intermediate :].copy_(up)
                    down.copy_(projection)
                    out.write(row.numpy().data)
                    bar.update()
            out.flush()
            os.fsync(out.fileno())


@contextmanager
def _atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place on success and vanishes otherwise, Ctrl-C included."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
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
        partial.unlink(missing_ok=True)


def _name(dtype: torch.dtype) -> str:
    for name, known in DTYPES.items():
        if known == dtype:
            return name
    raise InputError(f"unsupported dtype {dtype}: expected one of {', '.join(DTYPES)}")
