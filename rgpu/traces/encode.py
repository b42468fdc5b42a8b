"""How a trace becomes files: streamed safetensors, written beside the target and renamed, states in side shards.

Legend: N tokens, L MoE layers, D hidden size.
"""

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rgpu.errors import TraceError
from rgpu.traces.trace import OPTIONAL, REQUIRED, SHARDED, TraceHeader

METADATA_KEY = "rgpu_trace"
SHARD_BYTES = 256 << 20
CHUNK_BYTES = 16 << 20
_NAMES = {"uint8": "U8", "uint16": "U16", "int32": "I32", "int64": "I64", "float16": "F16"}


@dataclass(frozen=True, slots=True)
class Source:
    """An array that is read in row ranges: `read(start, stop)` gives those rows in final order."""

    dtype: np.dtype
    shape: tuple[int, ...]
    read: Callable[[int, int], np.ndarray]

    @staticmethod
    def of(array: np.ndarray) -> "Source":
        return Source(array.dtype, array.shape, lambda start, stop: array[start:stop])

    @property
    def row_bytes(self) -> int:
        return int(self.dtype.itemsize * np.prod(self.shape[1:], dtype=np.int64))

    def chunks(self, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """Little-endian bytes of the rows from `start` to `stop`, at most about `CHUNK_BYTES` at a time."""
        stop = self.shape[0] if stop is None else stop
        step = max(1, CHUNK_BYTES // max(1, self.row_bytes))
        for a in range(start, stop, step):
            yield np.ascontiguousarray(self.read(a, min(a + step, stop)), self.dtype.newbyteorder("<")).tobytes()


@contextmanager
def told(path: Path, doing: str) -> Iterator[None]:
    """Turn an `OSError` into one `TraceError` line about `path`."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "free some space or choose another folder" if full else "choose a path that can be used"
        reason = "no space left" if full else (error.strerror or str(error))
        raise TraceError(f"cannot {doing} {path}: got {reason}; {remedy}") from error


def shard_name(path: Path, name: str, index: int) -> str:
    return f"{path.stem}.{name}-{index:05d}.safetensors"


def write_files(path: Path, header: TraceHeader, sources: dict[str, Source], shard_bytes: int = SHARD_BYTES) -> None:
    """Write the trace file and the shards of its states so that either all of them appear or none.

    Fills `header.checksum`: sha256 over the arrays of the main file in canonical order, as `Trace.checksum`.
    Raises `TraceError` where the files cannot be written.
    """
    if path.suffix != ".safetensors":
        raise TraceError(
            f"cannot write trace {path}: got suffix '{path.suffix}'; expected .safetensors; rename the output"
        )
    digest = hashlib.sha256()
    main = {name: sources[name] for name in (*REQUIRED, *OPTIONAL) if name in sources and name not in SHARDED}
    for name, source in main.items():
        digest.update(name.encode())
        for chunk in source.chunks():
            digest.update(chunk)
    header.checksum = digest.hexdigest()
    placed: list[tuple[Path, Path]] = []
    try:
        with told(path, "write trace"):
            path.parent.mkdir(parents=True, exist_ok=True)
            document = header.to_json() | {"hidden_shards": []}
            for name in SHARDED:
                if name in sources:
                    document[f"{name}_shards"] = _write_shards(path, name, sources[name], shard_bytes, placed)
            order = sorted(main, key=lambda name: -main[name].dtype.itemsize)  # keeps every array aligned
            whole = {name: (main[name], 0, main[name].shape[0]) for name in order}
            _write_one(path, whole, {METADATA_KEY: json.dumps(document)}, placed)
            for part, target in placed:
                os.replace(part, target)
            for name in SHARDED:
                _drop_stale_shards(path, name, len(document.get(f"{name}_shards", [])))
            _sync_folder(path.parent)
    finally:
        for part, _ in placed:
            part.unlink(missing_ok=True)


def _write_shards(
    path: Path, name: str, states: Source, shard_bytes: int, placed: list[tuple[Path, Path]]
) -> list[dict[str, Any]]:
    rows = max(1, shard_bytes // max(1, states.row_bytes))
    shards = []
    for index, start in enumerate(range(0, states.shape[0], rows)):
        stop = min(start + rows, states.shape[0])
        target = path.with_name(shard_name(path, name, index))
        digest = _write_one(target, {name: (states, start, stop)}, {}, placed)
        shards.append({"file": target.name, "rows": stop - start, "sha256": digest})
    return shards


def _write_one(
    target: Path, tensors: dict[str, tuple[Source, int, int]], metadata: dict[str, str], placed: list[tuple[Path, Path]]
) -> str:
    """Stream one safetensors file to a part file beside `target`; returns the sha256 of its tensor bytes."""
    layout: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, (source, start, stop) in tensors.items():
        begin, end = end, end + (stop - start) * source.row_bytes
        shape = [stop - start, *source.shape[1:]]
        layout[name] = {"dtype": _NAMES[source.dtype.name], "shape": shape, "data_offsets": [begin, end]}
    head = json.dumps(layout).encode()
    head += b" " * (-len(head) % 8)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    placed.append((part, target))
    digest = hashlib.sha256()
    with part.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for source, start, stop in tensors.values():
            for chunk in source.chunks(start, stop):
                digest.update(chunk)
                file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _drop_stale_shards(path: Path, name: str, kept: int) -> None:
    """Remove shards that a larger trace of the same name left behind."""
    index = kept
    while (stale := path.with_name(shard_name(path, name, index))).exists():
        stale.unlink()
        index += 1


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
