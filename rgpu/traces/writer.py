"""Streaming writer of a trace: rows arrive pass by pass and are filed by sequence; memory stays bounded.

Legend: T rows of one append, N all rows, L MoE layers, K top-k, D hidden size.
"""

import contextlib
import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np

from rgpu.errors import InputError, TraceError
from rgpu.traces.encode import SHARD_BYTES, Source, told, write_files
from rgpu.traces.trace import OPTIONAL, REQUIRED, TraceHeader
from rgpu.traces.validate import DTYPES, id_dtype


class TraceWriter:
    """Collects rows in arrival order in raw files of a hidden folder beside `path`; `close` writes the trace.

    `header.sequences[s]` describes sequence number s; it may be filled until `close`; sequences that got no row are
    left out. Inside a `with` block an exception or Ctrl-C discards everything. The files do not depend on how the
    rows were cut into appends. Memory: one append, 16 bytes a row, and one chunk while closing.
    """

    def __init__(self, path: Path | str, header: TraceHeader, *, shard_bytes: int = SHARD_BYTES) -> None:
        self.path, self.header, self.shard_bytes = Path(path), header, shard_bytes
        if self.path.suffix != ".safetensors":
            raise TraceError(f"cannot write trace {path}: got suffix '{self.path.suffix}'; expected .safetensors")
        if self.path.is_dir():
            raise TraceError(f"cannot write trace {path}: got a folder; expected a file name; give another output path")
        with told(self.path, "write trace"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._folder = Path(tempfile.mkdtemp(prefix=f".{self.path.stem}.", dir=self.path.parent))
        self._files: dict[str, BinaryIO] = {}
        self._rows: dict[str, tuple[int, ...]] = {}  # shape of one row
        self.tokens = 0
        self.next_pass = 0  # one more than the highest pass so far
        self.closed = False

    def append(
        self,
        sequences_T: np.ndarray,
        expert_ids: np.ndarray,
        positions: np.ndarray,
        passes: np.ndarray,
        **optional: np.ndarray,
    ) -> None:
        """Add rows: `sequences_T` their sequence numbers, the arrays as in `Trace` (ids of any integer dtype, -1 for
        "not recorded"; floats are rounded to float16). Every append must bring the same arrays. Within a sequence
        rows keep their order of arrival."""
        if self.closed:
            raise InputError(
                f"cannot append to {self.path}: got a closed writer; expected an open one; make a new writer"
            )
        unknown = sorted(set(optional) - set(OPTIONAL))
        if unknown:
            raise TraceError(f"cannot append array '{unknown[0]}': expected one of {', '.join(OPTIONAL)}")
        given = {"expert_ids": self._ids(expert_ids), "positions": positions, "passes": passes, **optional}
        rows = {"sequence": np.ascontiguousarray(sequences_T, np.int64)}
        for name, array in given.items():
            rows[name] = np.ascontiguousarray(array, array.dtype if name == "expert_ids" else DTYPES[name])
            if rows[name].dtype == np.float16 and not np.isfinite(rows[name]).all():
                raise TraceError(
                    f"cannot append '{name}': got NaN or infinity; expected finite numbers; check the model"
                )
        shapes = {name: array.shape[1:] for name, array in rows.items()}
        if self._files and shapes != self._rows:
            raise TraceError(
                f"cannot append to {self.path}: got arrays {shapes}; expected those of before, {self._rows}"
            )
        wrong = [name for name, array in rows.items() if len(array) != len(sequences_T)]
        if wrong:
            raise TraceError(f"cannot append '{wrong[0]}': got {len(rows[wrong[0]])} rows; expected {len(sequences_T)}")
        with told(self.path, "write trace"):
            if not self._files:
                self._rows = shapes
                self._files = {name: (self._folder / f"{name}.raw").open("wb") for name in rows}
            for name, array in rows.items():
                self._files[name].write(array.tobytes())
        self.tokens += len(sequences_T)
        self.next_pass = max(self.next_pass, int(passes.max()) + 1 if len(passes) else 0)

    def close(self) -> Path:
        """Put the rows into sequence order, write the trace atomically, remove the raw files; returns the path.

        Raises `TraceError` when nothing was recorded or the disk is full; then no output is left.
        """
        if self.closed:
            return self.path
        try:
            if self.tokens == 0:
                raise TraceError(
                    f"cannot write trace {self.path}: got no token; expected one or more; run the model first"
                )
            with told(self.path, "write trace"):
                for file in self._files.values():
                    file.close()
            sequence = np.fromfile(self._folder / "sequence.raw", np.int64)
            order = np.argsort(sequence, kind="stable")
            numbers, counts = np.unique(sequence, return_counts=True)
            del sequence
            if self.header.sequences:
                known = len(self.header.sequences)
                self.header.sequences = [self.header.sequences[s] if s < known else {} for s in numbers.tolist()]
            offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
            sources = {"seq_offsets": Source.of(offsets)}
            for name in (*REQUIRED, *OPTIONAL):
                if name in self._files:
                    sources[name] = self._permuted(name, order)
            write_files(self.path, self.header, sources, self.shard_bytes)
        finally:
            self.abort()
        return self.path

    def abort(self) -> None:
        """Forget everything recorded; a trace already written stays."""
        self.closed = True
        for file in self._files.values():
            with contextlib.suppress(OSError):  # closing flushes, which a full disk refuses
                file.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> "TraceWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def _ids(self, ids: np.ndarray) -> np.ndarray:
        experts = self.header.num_experts
        dtype = id_dtype(experts)
        low, high = (int(ids.min()), int(ids.max())) if ids.size else (0, 0)
        if low < -1 or (high >= experts and not (ids.dtype == dtype and high == np.iinfo(dtype).max)):
            raise TraceError(f"cannot append 'expert_ids': got ids from {low} to {high}; expected -1 to {experts - 1}")
        return ids.astype(dtype)  # -1 wraps to the marker

    def _permuted(self, name: str, order: np.ndarray) -> Source:
        row = self._rows[name]
        dtype = id_dtype(self.header.num_experts) if name == "expert_ids" else np.dtype(DTYPES[name])
        raw = np.memmap(self._folder / f"{name}.raw", dtype, "r", shape=(len(order), *row))
        return Source(dtype, raw.shape, lambda start, stop: raw[order[start:stop]])
