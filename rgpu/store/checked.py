"""Checksums of a store, so that a byte that silently went wrong on a disk is found before it is computed with.

Every `BLOCK` bytes of an expert have a CRC-32, in a file beside the store that is made when first asked for: what rotted
before is not found. Each block is summed as it is copied: half a millisecond a MiB (docs/engine.md), hence an option.
"""

import os
import zipfile
import zlib
from pathlib import Path

import numpy as np
from tqdm import tqdm

from rgpu.errors import ConsistencyError, InputError
from rgpu.store.direct import DirectStore
from rgpu.store.over import SourceOver
from rgpu.store.source import ExpertSource
from rgpu.types import ExpertKey

BLOCK = 1 << 20


def checksums(path: Path) -> np.ndarray:
    """uint32 [L * E, blocks of an expert] of the store at `path`: read from beside it, or summed now and written there.

    They belong to one size and time of change of the store: for another file at its place they are made anew."""
    beside = path.with_name(path.name + ".crc.npz")
    found = path.stat()
    stamp = np.array([found.st_size, found.st_mtime_ns])
    try:
        with np.load(beside, allow_pickle=False) as saved:
            if np.array_equal(saved["stamp"], stamp):
                sums: np.ndarray = saved["sums"]
                return sums
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass  # absent or damaged
    sums = _sum(path)
    partial = beside.with_name(f".{beside.name}.{os.getpid()}")
    try:
        with partial.open("wb") as out:
            np.savez(out, sums=sums, stamp=stamp)
        os.replace(partial, beside)
    except OSError as error:
        raise InputError(f"cannot write {beside}: {error.strerror}; open the store without checksums") from None
    finally:
        partial.unlink(missing_ok=True)
    return sums


def _sum(path: Path) -> np.ndarray:
    store = DirectStore(path, uncached=False)
    try:
        data = np.empty(store.layout.nbytes, np.uint8)
        keys = [ExpertKey(layer, expert) for layer in range(len(store.layer_ids)) for expert in range(store.experts)]
        sums = np.empty((len(keys), -(-data.nbytes // BLOCK)), np.uint32)
        for i, key in enumerate(tqdm(keys, desc="checksums", unit="expert", disable=None, delay=2)):
            store.read_into(key, data)
            sums[i] = block_sums(data)
        return sums
    finally:
        store.close()


def block_sums(data: np.ndarray) -> list[int]:
    """CRC-32 of each `BLOCK` bytes, the last of what is left."""
    return [zlib.crc32(data[start : start + BLOCK].data) for start in range(0, data.nbytes, BLOCK)]


class CheckedSource(SourceOver):
    """An `ExpertSource` whose `read_into` and `buffer` compare what `below` gave with its checksums; `InputError` where it
    differs. What is computed in place is not compared. Parts that are read begin and end at `BLOCK`s (or at the end)."""

    def __init__(self, below: ExpertSource, path: Path) -> None:
        super().__init__(below)
        self.path = path
        self._sums = checksums(path)

    def buffer(self, key: ExpertKey) -> np.ndarray:
        """See `ExpertSource`."""
        data = self.below.buffer(key)
        self._compare(key, data, 0)
        return data

    def read_into(self, key: ExpertKey, out: np.ndarray, start: int = 0) -> None:
        """See `ExpertSource`."""
        self.below.read_into(key, out, start)
        self._compare(key, out, start)

    def _compare(self, key: ExpertKey, data: np.ndarray, start: int) -> None:
        if start % BLOCK or (data.nbytes % BLOCK and start + data.nbytes != self.layout.nbytes):
            raise ConsistencyError(f"bytes {start} to {start + data.nbytes} of an expert are not whole checksum blocks")
        expected = self._sums[key.layer * self.experts + key.expert, start // BLOCK :].tolist()
        got = block_sums(data)
        if got != expected[: len(got)]:
            raise InputError(
                f"damaged expert store {self.path}: expert {key.expert} of MoE layer {key.layer} differs from its checksum; "
                "delete it and run again"
            )
