"""The first `DATA_START` bytes of a store file: magic, length, JSON, zero padding."""

import json
import os
import struct
from pathlib import Path
from typing import Any

from rgpu.errors import InputError

MAGIC = b"rgpustr1"
VERSION = 2
DATA_START = 4096
_REMEDY = "delete it and run again"


def write_header(header: dict[str, Any]) -> bytes:
    """Magic, length, JSON, zero padding: `DATA_START` bytes."""
    text = json.dumps(header).encode()
    head = MAGIC + struct.pack("<Q", len(text)) + text
    if len(head) > DATA_START:
        raise InputError(f"store header of {len(head)} bytes does not fit in {DATA_START}: too many layers")
    return head.ljust(DATA_START, b"\0")


def read_header(path: Path) -> dict[str, Any]:
    """The store's header; `InputError` when the file is not a complete store."""
    try:
        with path.open("rb") as file:
            return header_of(file.fileno(), path)
    except OSError as error:
        raise InputError(f"cannot read expert store {path}: {error.strerror}; {_REMEDY}") from None


def header_of(descriptor: int, path: Path) -> dict[str, Any]:
    """The header of an open file, `path` for messages; as `read_header`, but an I/O error is an `OSError`."""
    head = os.pread(descriptor, DATA_START, 0)
    size = os.fstat(descriptor).st_size
    if len(head) < DATA_START or head[: len(MAGIC)] != MAGIC:
        raise InputError(f"cannot read expert store {path}: got another kind of file; {_REMEDY}")
    (length,) = struct.unpack_from("<Q", head, len(MAGIC))
    try:
        header: dict[str, Any] = json.loads(head[len(MAGIC) + 8 : len(MAGIC) + 8 + length])
        expected = int(header["file_bytes"])
        version = int(header["version"])
    except (ValueError, KeyError, TypeError):
        raise InputError(f"cannot read expert store {path}: got a damaged header; {_REMEDY}") from None
    if version != VERSION:
        raise InputError(f"cannot read expert store {path}: got version {version}, expected {VERSION}; {_REMEDY}")
    if size != expected:
        raise InputError(f"truncated expert store {path}: got {size} bytes, expected {expected}; {_REMEDY}")
    return header
