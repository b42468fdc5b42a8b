"""`DirectStore`: experts read from the file straight into where they are wanted, past the page cache where that is possible."""

import errno
import fcntl
import mmap
import os
import threading
from pathlib import Path

import numpy as np
import torch

from rgpu.errors import InputError
from rgpu.store.source import not_here
from rgpu.store.store_file import StoreFile
from rgpu.types import ExpertKey

BLOCK = 4096  # offsets, addresses and lengths of O_DIRECT are multiples of it (of the device's block, which divides it)
_BOUNCE = 1 << 20
_UNCACHED = getattr(os, "O_DIRECT", 0)  # Linux has it
_REFUSALS = (errno.EINVAL, errno.EOPNOTSUPP)


class DirectStore(StoreFile):
    """An `ExpertSource` that holds nothing: every read is a `pread`.

    `uncached` says whether reads pass the page cache by (O_DIRECT). A filesystem that refuses is read through the cache
    and `refusal` says why. Where the file's offset and the address differ in their place within a 4096-byte block, bytes
    go through a buffer of 1 MiB a thread; with a stride of whole blocks that happens to an expert's last block only.
    """

    where = "direct"
    mapped_bytes = 0
    ram_bytes = 0
    in_place = False

    def __init__(self, path: Path, uncached: bool = True) -> None:
        super().__init__(path)
        self.uncached, self.refusal = False, "not asked for"
        self._local = threading.local()
        if uncached:
            self._try_uncached()

    def _try_uncached(self) -> None:
        try:
            if not _UNCACHED:
                raise OSError(errno.EOPNOTSUPP, "no O_DIRECT on this system")
            self._flag(_UNCACHED)
            os.preadv(self._descriptor, [self._bounce()[:BLOCK].data], 0)
            self.uncached, self.refusal = True, ""
        except OSError as error:  # an honest fault of the disk shows again at the first expert
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self._flag(0)
        self.uncached, self.refusal = False, str(error.strerror)

    def _flag(self, value: int) -> None:
        flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL)
        fcntl.fcntl(self._descriptor, fcntl.F_SETFL, flags & ~_UNCACHED | value)

    @property
    def rows_SB(self) -> torch.Tensor:
        """Never: `InputError`."""
        raise InputError(not_here(self.where))

    def row(self, key: ExpertKey) -> int:
        """Never: `InputError`."""
        raise InputError(not_here(self.where, key))

    def pin(self, key: ExpertKey) -> int | None:
        """None: see `ExpertSource`."""
        return None

    def unpin(self, key: ExpertKey) -> None:
        """See `ExpertSource`."""

    def buffer(self, key: ExpertKey) -> np.ndarray:
        """uint8 [layout.nbytes], read-only, of one expert; read anew each time."""
        data = np.empty(self.layout.nbytes, np.uint8)
        self.read_into(key, data)
        data.flags.writeable = False
        return data

    def read_into(self, key: ExpertKey, out: np.ndarray, start: int = 0) -> None:
        """See `ExpertSource`."""
        at = self.offset(key) + start
        with self._reading() as descriptor:
            if self.uncached:
                try:
                    self._read_blocks(descriptor, out, at)
                except OSError as error:
                    if error.errno not in _REFUSALS:
                        raise
                    self._give_up(error)
            if not self.uncached:
                self._read(descriptor, out, at)
            self._unchanged(descriptor)  # afterwards: whatever was written until now shows

    def _read_blocks(self, descriptor: int, out: np.ndarray, at: int) -> None:
        """As `_read`, in whole blocks at block borders."""
        address, size, done = out.ctypes.data, out.nbytes, 0
        congruent = (address - at) % BLOCK == 0
        while done < size:
            position, left = at + done, size - done
            if congruent and position % BLOCK == 0 and left >= BLOCK:
                got = os.preadv(descriptor, [out[done : done + left // BLOCK * BLOCK].data], position)
                if got:  # any part of it: the next block then goes the other way, up to a border
                    done += got
                    continue
            bounce = self._bounce()
            skip = position % BLOCK
            span = BLOCK if congruent else min(len(bounce), -(-(skip + left) // BLOCK) * BLOCK)
            got = min(os.preadv(descriptor, [bounce[:span].data], position - skip) - skip, left)
            if got <= 0:
                self._unchanged(descriptor)
                raise OSError(errno.EIO, f"short read at byte {position}")
            out[done : done + got] = bounce[skip : skip + got]
            done += got

    def _bounce(self) -> np.ndarray:
        """This thread's buffer, page-aligned."""
        if not hasattr(self._local, "bounce"):
            self._local.bounce = np.frombuffer(mmap.mmap(-1, _BOUNCE), np.uint8)
        found: np.ndarray = self._local.bounce
        return found
