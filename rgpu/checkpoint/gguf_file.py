"""The header of GGUF files and the raw bytes of their tensors, mapped and never read whole.

A file is: magic, version (2 or 3), counts of tensors and of keys, the keys with typed values, then for every tensor its
name, dimensions (the fastest first), type and offset, and after padding to `general.alignment` the tensors themselves, all
little-endian. Source: the GGUF specification in ggml's docs.
"""

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rgpu.errors import InputError

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_LONGEST = 1 << 16  # bytes of a key or a tensor's name; more means that the header is damaged


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor of a file: `shape` with the slowest dimension first, `kind` its ggml type, `offset` its first byte."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


class GgufFile:
    """`keys` (arrays are passed over: their value is None) and `tensors` of the file at `path`.

    Raises `InputError` for a file that is no GGUF of version 2 or 3 or whose header is cut off or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self._map: mmap.mmap | bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise InputError(f"cannot read {path}: got {error}; expected a GGUF file") from None
        self._data = np.frombuffer(self._map, np.uint8)
        self._at = 0
        try:
            self.keys, self.tensors = self._header()
        except (struct.error, UnicodeDecodeError, IndexError, OverflowError):
            raise InputError(
                f"cannot read {path}: got a damaged header near byte {self._at}; expected a complete GGUF file; download "
                "it again"
            ) from None

    def _take(self, layout: str) -> Any:
        values = struct.unpack_from(f"<{layout}", self._map, self._at)
        self._at += struct.calcsize(f"<{layout}")
        return values[0] if len(values) == 1 else values

    def _text(self, longest: int = _LONGEST) -> str:
        length = self._take("Q")
        if length > longest:
            raise IndexError
        text = bytes(self._map[self._at : self._at + length])
        self._at += length
        if len(text) < length:
            raise IndexError
        return text.decode()

    def _header(self) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
        magic, version = self._take("4sI")
        if magic != b"GGUF" or version not in (2, 3):
            raise InputError(
                f"cannot read {self.path}: got {magic!r} version {version}; expected a little-endian GGUF file of version "
                "2 or 3"
            )
        tensors, keys = self._take("QQ")
        found = {}
        for _ in range(keys):
            name = self._text()
            found[name] = self._value(self._take("I"))
        entries = [self._entry() for _ in range(tensors)]
        alignment = found.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment <= 0:
            raise IndexError
        start = -(-self._at // alignment) * alignment
        return found, {name: GgufTensor(name, shape, kind, start + offset) for name, shape, kind, offset in entries}

    def _entry(self) -> tuple[str, tuple[int, ...], int, int]:
        name, dimensions = self._text(), self._take("I")
        if not 0 < dimensions <= 4:
            raise IndexError
        shape = tuple(self._take("Q") for _ in range(dimensions))[::-1]
        return name, shape, self._take("I"), self._take("Q")

    def _value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self._take(_SCALARS[kind])
        if kind == _STRING:
            return self._text(len(self._data))
        if kind != _ARRAY:
            raise IndexError
        item, count = self._take("I"), self._take("Q")
        if item == _ARRAY:
            raise IndexError
        if item in _SCALARS:
            self._at += count * struct.calcsize(f"<{_SCALARS[item]}")
        else:
            for _ in range(count):
                self._value(item)
        return None

    def bytes_of(self, tensor: GgufTensor, start: int, count: int) -> np.ndarray:
        """uint8 [count]: bytes of a tensor from its byte `start` on, read-only views of the mapping. `InputError` where the
        file ends before."""
        first = tensor.offset + start
        if first + count > len(self._data):
            raise InputError(
                f"cannot read {tensor.name} in {self.path}: got a file of {len(self._data)} bytes; expected at least "
                f"{first + count}; download it again"
            )
        return self._data[first : first + count]

    def close(self) -> None:
        """Lets go of the mapping (it ends with the last view of it)."""
        self._data, self._map = np.zeros(0, np.uint8), b""
