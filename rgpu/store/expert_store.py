"""`ExpertStore`: every routed expert of a model in one file, memory-mapped read-only or held in RAM."""

import mmap
import warnings
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from rgpu.errors import InputError, RgpuError
from rgpu.store.header import DATA_START as DATA_START
from rgpu.store.header import MAGIC as MAGIC
from rgpu.store.header import VERSION as VERSION
from rgpu.store.header import read_header as read_header
from rgpu.store.header import write_header as write_header
from rgpu.store.store_file import StoreFile
from rgpu.types import ExpertKey


class ExpertStore(StoreFile):
    """An `ExpertSource`: `buffer(key)` is one expert's bytes as `layout` describes them.

    `where="disk"` maps the file (pages come and go with the kernel's page cache, never as private memory);
    `where="ram"` reads it once. A mapped page behind the end of a truncated file kills the process, so that every access
    looks at the file's size first; a disk that fails under a mapping cannot be caught at all (the kind "direct" can).
    """

    def __init__(self, path: Path, where: str = "disk") -> None:
        if where not in ("disk", "ram"):
            raise InputError(f"unknown store '{where}': expected disk or ram")
        super().__init__(path)
        self.where = where
        self._gone = False
        try:
            self._bytes = self._whole() if where == "ram" else self._map()
        except BaseException:
            super().close()
            raise
        if where == "ram":
            super().close()  # nothing more is read from it

    def _map(self) -> np.ndarray:
        with self._reading() as descriptor:
            return np.frombuffer(mmap.mmap(descriptor, self.nbytes, access=mmap.ACCESS_READ), np.uint8)

    def _whole(self) -> np.ndarray:
        try:
            data = np.empty(self.nbytes, np.uint8)
        except MemoryError:
            raise InputError(
                f"cannot hold expert store {self.path} in RAM: got no memory for {self.nbytes} bytes; use store 'disk'"
            ) from None
        with self._reading() as descriptor:
            self._read(descriptor, data, 0)
            self._unchanged(descriptor)
        data.flags.writeable = False
        return data

    @property
    def mapped_bytes(self) -> int:
        """Bytes mapped from the file (0 when held in RAM)."""
        return self.nbytes if self.where == "disk" else 0

    @property
    def ram_bytes(self) -> int:
        """Bytes held in RAM (0 when mapped)."""
        return self.nbytes - self.mapped_bytes

    @property
    def in_place(self) -> bool:
        """See `ExpertSource`."""
        return True

    def check(self) -> None:
        """See `StoreFile.check`; what is held in RAM cannot change."""
        if self._gone:
            raise RgpuError(f"expert store {self.path} is closed")
        if self.where == "disk":
            super().check()

    @cached_property
    def rows_SB(self) -> torch.Tensor:
        """uint8 [L * E, stride], read-only: every expert's buffer, where it is."""
        held = self._bytes  # taken before the look at whether it is closed: see `close`
        self.check()
        rows = held[DATA_START:].reshape(-1, self.layout.stride)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of memory that must not be written to
            return torch.from_numpy(rows)

    def row(self, key: ExpertKey) -> int:
        """The expert's row of `rows_SB`."""
        self.check()
        return self.index(key)

    def pin(self, key: ExpertKey) -> int | None:
        """The same: no expert ever leaves."""
        return self.row(key)

    def unpin(self, key: ExpertKey) -> None:
        """See `ExpertSource`."""

    def buffer(self, key: ExpertKey) -> np.ndarray:
        """uint8 [layout.nbytes], read-only, of one expert, where it is."""
        held = self._bytes  # taken before the look at whether it is closed: see `close`
        self.check()
        start = self.offset(key)
        return held[start : start + self.layout.nbytes]

    def read_into(self, key: ExpertKey, out: np.ndarray, start: int = 0) -> None:
        """See `ExpertSource`."""
        np.copyto(out, self.buffer(key)[start : start + out.nbytes])
        self.check()  # a write meanwhile would have mixed two files

    def close(self) -> None:
        """Lets go of the mapping (it ends with the last view of it)."""
        self._gone = True  # before the bytes go
        self.__dict__.pop("rows_SB", None)
        self._bytes = np.zeros(0, np.uint8)
        super().close()
