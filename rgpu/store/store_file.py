"""`StoreFile`: one store file held open, where each expert lies in it, and the guard against files that change."""

import errno
import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from rgpu.errors import InputError, RgpuError
from rgpu.store.header import DATA_START, header_of
from rgpu.store.layout import layout_of
from rgpu.types import ExpertKey, MoEShape


class StoreFile:
    """What every tier over a file shares.

    The descriptor stays open, so that the file may be replaced by rename or deleted: the experts stay those of the file
    that was opened. `check` finds out that this very file was truncated or written to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise InputError(f"cannot read expert store {path}: {error.strerror}; delete it and run again") from None
        self._finalize = weakref.finalize(self, os.close, descriptor)
        self._descriptor = descriptor
        self._users = 0
        self._closed = False
        self._guard = threading.Lock()
        try:
            found = os.fstat(descriptor)
            self._seen = found.st_size, found.st_mtime_ns
            self.header: dict[str, Any] = header_of(descriptor, path)
            self.layer_ids: tuple[int, ...] = tuple(self.header["layer_ids"])
            self.experts = int(self.header["experts"])
            self.layout = layout_of(self.header["layout"])
        except OSError as error:
            self._finalize()
            raise self._failed(error) from None
        except BaseException:
            self._finalize()
            raise

    @property
    def nbytes(self) -> int:
        """Size of the file."""
        return self._seen[0]

    def shape(self, top_k: int) -> MoEShape:
        """The model's shape, with the bytes of an expert as stored here."""
        layers = len(self.layer_ids)
        sizes = (self.layout.payload_bytes,) * layers
        return MoEShape(layers, self.experts, top_k, self.layout.hidden, sizes, self.layer_ids)

    def index(self, key: ExpertKey) -> int:
        """The expert's place in the file, counted in experts."""
        if not (0 <= key.layer < len(self.layer_ids) and 0 <= key.expert < self.experts):
            raise InputError(
                f"no expert {key.expert} in MoE layer {key.layer}: the store holds {len(self.layer_ids)} layers "
                f"of {self.experts} experts"
            )
        return key.layer * self.experts + key.expert

    def offset(self, key: ExpertKey) -> int:
        """Byte of the file at which the expert begins."""
        return DATA_START + self.index(key) * self.layout.stride

    def check(self) -> None:
        """`InputError` when the open file is no longer the one that was opened (its size or time of change differs)."""
        with self._reading() as descriptor:
            self._unchanged(descriptor)

    def close(self) -> None:
        """Closes the file once the reads under way have ended."""
        with self._guard:
            self._closed = True
            self._close_unused()

    @contextmanager
    def _reading(self) -> Iterator[int]:
        """The descriptor, kept open meanwhile: its number could otherwise come to mean another file."""
        with self._guard:
            if self._closed:
                raise RgpuError(f"expert store {self.path} is closed")
            self._users += 1
        try:
            yield self._descriptor
        except OSError as error:
            raise self._failed(error) from error
        finally:
            with self._guard:
                self._users -= 1
                self._close_unused()

    def _close_unused(self) -> None:
        if self._closed and not self._users:
            self._finalize()

    def _unchanged(self, descriptor: int) -> None:
        found = os.fstat(descriptor)
        if found.st_size < self._seen[0]:
            raise InputError(
                f"truncated expert store {self.path}: got {found.st_size} bytes while it is in use, expected "
                f"{self._seen[0]}; delete it and run again"
            )
        if (found.st_size, found.st_mtime_ns) != self._seen:
            raise InputError(
                f"expert store {self.path} was written to while in use: expected a file that stays as it is; delete it and "
                "run again"
            )

    def _read(self, descriptor: int, out: np.ndarray, at: int) -> None:
        """Bytes `at` and following of the file into `out`; a read may come in parts."""
        done = 0
        while done < out.nbytes:
            got = os.preadv(descriptor, [out[done:].data], at + done)
            if got == 0:
                self._unchanged(descriptor)
                raise OSError(errno.EIO, f"short read at byte {at + done}")
            done += got

    def _failed(self, error: OSError) -> InputError:
        return InputError(
            f"cannot read expert store {self.path}: {error.strerror}; check the disk it is on, or delete it and run again"
        )
