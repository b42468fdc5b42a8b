"""Traces on disk: one safetensors file, header in its metadata, states in side shards (docs/trace_format.md)."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
from safetensors import SafetensorError, safe_open

from rgpu.errors import TraceError
from rgpu.traces.encode import METADATA_KEY, SHARD_BYTES, Source, told, write_files
from rgpu.traces.importers.neutral_npz import load_neutral
from rgpu.traces.shards import HiddenShards, mapped
from rgpu.traces.trace import OPTIONAL, REQUIRED, SHARDED, Trace, TraceHeader
from rgpu.traces.validate import header_from_json, validate
from rgpu.traces.writer import TraceWriter

__all__ = ["TraceWriter", "load_trace", "save_trace"]


def save_trace(trace: Trace, path: Path | str, *, shard_bytes: int = SHARD_BYTES) -> Path:
    """Validate and write `trace` (hidden states into shards of at most `shard_bytes`); all or nothing.

    Returns the path. Raises `TraceError` for an invalid trace and for a path that cannot be written. The trace in
    hand stays as it is.
    """
    validate(trace, name="cannot save trace", checksum=False)
    header = TraceHeader(**trace.header.to_json())
    write_files(Path(path), header, {name: Source.of(array) for name, array in trace.arrays().items()}, shard_bytes)
    return Path(path)


def load_trace(
    path: Path | str, hidden: bool = True, verify: bool = True, stream: bool = False, setting: str = "trace.path",
    pre_attention: bool | None = None,
) -> Trace:  # fmt: skip
    """Read and validate a trace: `.safetensors` of rgpu or a neutral `.npz` with its sidecar.

    `hidden=False` leaves the hidden states on disk, unread, and so does `pre_attention` with the states before attention
    (None: as `hidden` says); `stream=True` maps both (`HiddenShards`), so that they may be larger than memory;
    `verify=False` skips checksums, nothing else; `setting` is what gave the path, for a hint. Raises `TraceError`, one
    line, for whatever is wrong with the file.
    """
    path = Path(path)
    if not path.exists():
        raise TraceError(
            f"cannot read trace {path}: got no such file; expected a trace; check {setting} or run rgpu record"
        )
    if not path.is_file():
        raise TraceError(f"cannot read trace {path}: got a folder; expected a .safetensors or .npz file; name the file")
    if path.suffix == ".npz":
        return validate(load_neutral(path, verify=verify), name=f"cannot use trace {path}", checksum=False)
    if path.suffix != ".safetensors":
        raise TraceError(f"cannot read trace {path}: got suffix '{path.suffix}'; expected .safetensors or .npz")
    metadata, arrays = _read(path, (set(REQUIRED) | set(OPTIONAL)) - set(SHARDED))
    header, shards = _header(path, metadata)
    lacking = [name for name in REQUIRED if name not in arrays]
    if lacking:
        raise TraceError(
            f"cannot use trace {path}: got no array '{lacking[0]}'; expected {', '.join(REQUIRED)}; record it again"
        )
    trace = Trace(header=header, **arrays)
    wanted = {"hidden": hidden, "pre_attention": hidden if pre_attention is None else pre_attention}
    read = _mapped_states if stream else _states
    for name in SHARDED:
        if wanted[name] and shards[name]:
            setattr(trace, name, read(path, name, shards[name], trace.tokens, verify))
    return validate(trace, name=f"cannot use trace {path}", checksum=verify)


def _read(path: Path, wanted: set[str]) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    try:
        with told(path, "read trace"), safe_open(path, framework="np") as file:
            names = wanted.intersection(file.keys())
            return file.metadata() or {}, {name: file.get_tensor(name) for name in names}
    except (SafetensorError, TypeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise TraceError(
            f"cannot read {path}: got a corrupt or truncated safetensors file ({reason}); copy or record it again"
        ) from None


def _header(path: Path, metadata: dict[str, str]) -> tuple[TraceHeader, dict[str, list[dict[str, Any]]]]:
    if METADATA_KEY not in metadata:
        raise TraceError(
            f"cannot use {path}: got a safetensors file without '{METADATA_KEY}' header; expected a trace of rgpu"
        )
    try:
        document = json.loads(metadata[METADATA_KEY])
        if not isinstance(document, dict):
            raise ValueError("not an object")
        shards = {
            name: [
                {"file": str(s["file"]), "rows": int(s["rows"]), "sha256": str(s["sha256"])}
                for s in document.get(f"{name}_shards", [])
            ]
            for name in SHARDED
        }
        return header_from_json(document), shards
    except TraceError as error:
        raise TraceError(f"cannot use trace {path}: {error}") from None
    except (ValueError, TypeError, KeyError) as error:
        raise TraceError(
            f"cannot use trace {path}: got an unreadable header ({error}); expected JSON; record it again"
        ) from None


def _states(path: Path, name: str, shards: list[dict[str, Any]], tokens: int, verify: bool) -> np.ndarray:
    """The states [N, L, D] of all shards."""
    whole: np.ndarray | None = None
    start = 0
    for file, shard in _shard_files(path, name, shards, tokens):
        part = _checked(path, name, file, shard, _read(file, {name})[1].get(name), verify)
        if whole is None:
            whole = np.empty((tokens, *part.shape[1:]), np.float16)
        _same_rows(path, name, file, part, whole)
        whole[start : start + len(part)] = part
        start += len(part)
    if whole is None:
        raise TraceError(f"cannot use trace {path}: got no {name} shard; record it again")
    return whole


def _mapped_states(path: Path, name: str, shards: list[dict[str, Any]], tokens: int, verify: bool) -> np.ndarray:
    """The states of all shards, mapped."""
    parts: list[np.ndarray] = []
    for file, shard in _shard_files(path, name, shards, tokens):
        try:
            part = mapped(file, name)
        except (OSError, ValueError, KeyError, TypeError):
            part = None
        parts.append(_checked(path, name, file, shard, part, verify))
        _same_rows(path, name, file, parts[-1], parts[0])
    return cast(np.ndarray, HiddenShards(parts))


def _shard_files(
    path: Path, name: str, shards: list[dict[str, Any]], tokens: int
) -> Iterator[tuple[Path, dict[str, Any]]]:
    if (rows := sum(s["rows"] for s in shards)) != tokens:
        raise TraceError(
            f"cannot use trace {path}: got {name} shards of {rows} rows; expected {tokens}; record it again"
        )
    for shard in shards:
        file = path.with_name(Path(shard["file"]).name)
        if not file.is_file():
            raise TraceError(
                f"cannot use trace {path}: got no {name} shard {file.name}; expected it beside the trace; copy it there"
            )
        yield file, shard


def _checked(
    path: Path, name: str, file: Path, shard: dict[str, Any], part: np.ndarray | None, verify: bool
) -> np.ndarray:
    if part is None or part.ndim != 3 or len(part) != shard["rows"] or part.dtype != np.float16:
        raise TraceError(
            f"cannot use {name} shard {file}: expected '{name}' float16 of {shard['rows']} rows; copy it again"
        )
    if verify and hashlib.sha256(np.ascontiguousarray(part).data).hexdigest() != shard["sha256"]:
        raise TraceError(f"cannot use {name} shard {file}: checksum mismatch with {path.name}; copy it again")
    return part


def _same_rows(path: Path, name: str, file: Path, part: np.ndarray, first: np.ndarray) -> None:
    if part.shape[1:] != first.shape[1:]:
        raise TraceError(
            f"cannot use {name} shard {file}: got rows {part.shape[1:]}; expected {first.shape[1:]}; copy it again"
        )
