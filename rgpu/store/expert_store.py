"""`ExpertStore`: every routed expert of a model in one file, memory-mapped read-only or held in RAM."""

import json
import mmap
import struct
from pathlib import Path
from typing import Any

import numpy as np

from rgpu.errors import InputError
from rgpu.store.layout import DTYPES, ExpertLayout
from rgpu.types import ExpertKey, MoEShape

MAGIC = b"rgpustr1"
DATA_START = 4096


class ExpertStore:
    """Read-only experts of one model: `buffer(key)` is one expert's bytes as `layout` describes them.

    `where="disk"` maps the file (pages come and go with the kernel's page cache, never as private memory);
    `where="ram"` reads it once. A layer of an `ExpertKey` counts MoE layers; `layer_ids` are the model's numbers.
    """

    def __init__(self, path: Path, where: str = "disk") -> None:
        if where not in ("disk", "ram"):
            raise InputError(f"unknown store '{where}': expected disk or ram")
        self.path = path
        self.where = where
        self.header = read_header(path)
        self.layer_ids: tuple[int, ...] = tuple(self.header["layer_ids"])
        self.experts = int(self.header["experts"])
        self.layout = ExpertLayout(
            int(self.header["intermediate"]), int(self.header["hidden"]), DTYPES[self.header["dtype"]]
        )
        self._bytes = self._read() if where == "ram" else self._map()

    def _map(self) -> np.ndarray:
        with self.path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return np.frombuffer(mapped, np.uint8)

    def _read(self) -> np.ndarray:
        data = np.fromfile(self.path, np.uint8)
        data.flags.writeable = False
        return data

    @property
    def nbytes(self) -> int:
        """Size of the file."""
        return int(self._bytes.nbytes)

    @property
    def mapped_bytes(self) -> int:
        """Bytes mapped from the file (0 when held in RAM)."""
        return self.nbytes if self.where == "disk" else 0

    def shape(self, top_k: int) -> MoEShape:
        """The model's shape, with the bytes of an expert as stored here."""
        layers = len(self.layer_ids)
        sizes = (self.layout.payload_bytes,) * layers
        return MoEShape(layers, self.experts, top_k, self.layout.hidden, sizes, self.layer_ids)

    def buffer(self, key: ExpertKey) -> np.ndarray:
        """uint8 [layout.nbytes], read-only, of one expert."""
        if not (0 <= key.layer < len(self.layer_ids) and 0 <= key.expert < self.experts):
            raise InputError(
                f"no expert {key.expert} in MoE layer {key.layer}: the store holds {len(self.layer_ids)} layers "
                f"of {self.experts} experts"
            )
        start = DATA_START + (key.layer * self.experts + key.expert) * self.layout.stride
        return self._bytes[start : start + self.layout.nbytes]

    def close(self) -> None:
        """Lets go of the mapping (it ends with the last view of it)."""
        self._bytes = np.zeros(0, np.uint8)


def write_header(header: dict[str, Any]) -> bytes:
    """Magic, length, JSON, zero padding: `DATA_START` bytes."""
    text = json.dumps(header).encode()
    head = MAGIC + struct.pack("<Q", len(text)) + text
    if len(head) > DATA_START:
        raise InputError(f"store header of {len(head)} bytes does not fit in {DATA_START}: too many layers")
    return head.ljust(DATA_START, b"\0")


def read_header(path: Path) -> dict[str, Any]:
    """The store's header; `InputError` when the file is not a complete store."""
    remedy = "delete it and run again"
    try:
        with path.open("rb") as file:
            head = file.read(DATA_START)
            size = file.seek(0, 2)
    except OSError as error:
        raise InputError(f"cannot read expert store {path}: {error.strerror}; {remedy}") from None
    if len(head) < DATA_START or head[: len(MAGIC)] != MAGIC:
        raise InputError(f"cannot read expert store {path}: got another kind of file; {remedy}")
    (length,) = struct.unpack_from("<Q", head, len(MAGIC))
    try:
        header: dict[str, Any] = json.loads(head[len(MAGIC) + 8 : len(MAGIC) + 8 + length])
        expected = int(header["file_bytes"])
    except (ValueError, KeyError):
        raise InputError(f"cannot read expert store {path}: got a damaged header; {remedy}") from None
    if size != expected:
        raise InputError(f"truncated expert store {path}: got {size} bytes, expected {expected}; {remedy}")
    return header
