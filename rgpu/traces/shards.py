"""States left on disk: an array-like over mapped shards, so that a trace larger than memory can be read by rows.

Legend: N tokens, L MoE layers, D hidden size.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, cast

import numpy as np


class HiddenShards:
    """Looks like a float16 array [N, L, D]; indexing by rows first, as `shards[rows]` or `shards[rows, layer]`, reads
    those rows alone. `take` gives a view of some rows in another order, nothing read."""

    dtype = np.dtype(np.float16)
    ndim = 3

    def __init__(self, parts: Sequence[np.ndarray], rows_N: np.ndarray | None = None) -> None:
        self._parts = list(parts)
        self._ends = np.cumsum([len(part) for part in self._parts])
        self._rows_N = np.arange(self._ends[-1]) if rows_N is None else rows_N
        self.shape = (len(self._rows_N), *self._parts[0].shape[1:])

    def __len__(self) -> int:
        return len(self._rows_N)

    def take(self, rows_N: np.ndarray) -> Self:
        return type(self)(self._parts, self._rows_N[rows_N])

    def __getitem__(self, key: Any) -> np.ndarray:
        rows, *rest = key if isinstance(key, tuple) else (key,)
        chosen = self._rows_N[rows]
        if np.ndim(chosen) == 0:
            shard = int(np.searchsorted(self._ends, chosen, "right"))
            return np.asarray(self._parts[shard][(int(chosen) - self._start(shard), *rest)])
        shard_N = np.searchsorted(self._ends, chosen, "right")
        found: np.ndarray | None = None
        for shard in np.unique(shard_N):
            at = np.flatnonzero(shard_N == shard)
            picked = self._parts[shard][(chosen[at] - self._start(shard), *rest)]
            if found is None:
                found = np.empty((len(chosen), *picked.shape[1:]), self.dtype)
            found[at] = picked
        return self._parts[0][(slice(0, 0), *rest)] if found is None else found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(self.dtype if dtype is None else dtype, copy=False)

    def _start(self, shard: int) -> int:
        return int(self._ends[shard]) - len(self._parts[shard])


def taken(array: Any, rows_N: np.ndarray) -> np.ndarray:
    """Those rows: mapped hidden states stay mapped."""
    found: Any = array.take(rows_N) if isinstance(array, HiddenShards) else array[rows_N]
    return cast(np.ndarray, found)


def mapped(path: Path, name: str) -> np.ndarray:
    """The float16 tensor `name` of a safetensors file as a read-only memory map; `ValueError` where it is not that."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if not 0 < size <= 1 << 24:
            raise ValueError("no safetensors header")
        about = json.loads(file.read(size))[name]
    begin, end = about["data_offsets"]
    if about["dtype"] != "F16" or 8 + size + end > path.stat().st_size:
        raise ValueError(f"dtype {about['dtype']}, or too short")
    return np.memmap(path, np.float16, "r", 8 + size + begin, tuple(about["shape"]))
