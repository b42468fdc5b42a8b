"""`ExpertSource`: where experts come from, whatever tier holds them."""

from typing import Protocol

import numpy as np
import torch

from rgpu.store.layout import RowLayout
from rgpu.types import ExpertKey, MoEShape


class ExpertSource(Protocol):
    """Read-only experts of one model. A layer of an `ExpertKey` counts MoE layers; `layer_ids` are the model's numbers.

    Safe to call from several threads, also `close`, after which every read raises `RgpuError`. A file that is missing,
    truncated or changed, or a disk that fails, is an `InputError`; bytes that were read then are never handed on as good.
    """

    @property
    def layer_ids(self) -> tuple[int, ...]: ...

    @property
    def experts(self) -> int: ...

    @property
    def layout(self) -> RowLayout: ...

    @property
    def nbytes(self) -> int:
        """Bytes of all experts as stored (the file's size)."""
        ...

    @property
    def mapped_bytes(self) -> int:
        """Bytes mapped from a file: page cache, never private memory."""
        ...

    @property
    def ram_bytes(self) -> int:
        """Bytes of experts held in memory of the process."""
        ...

    @property
    def in_place(self) -> bool:
        """Every expert can be computed where it lies (`rows_SB`, `row`)."""
        ...

    def shape(self, top_k: int) -> MoEShape:
        """The model's shape, with the bytes of an expert as stored here."""
        ...

    @property
    def rows_SB(self) -> torch.Tensor:
        """uint8 [rows, stride], read-only: experts where they are; `InputError` where the source holds none."""
        ...

    def row(self, key: ExpertKey) -> int:
        """The expert's row of `rows_SB`; `InputError` where the source does not hold it."""
        ...

    def pin(self, key: ExpertKey) -> int | None:
        """As `row`, but the row keeps its expert until `unpin`; None where the source does not hold it (or the rows that
        hold it are not complete). What computes in place pins first: a tier replaces its experts while copies run."""
        ...

    def unpin(self, key: ExpertKey) -> None: ...

    def buffer(self, key: ExpertKey) -> np.ndarray:
        """uint8 [layout.nbytes], read-only, of one expert."""
        ...

    def read_into(self, key: ExpertKey, out: np.ndarray, start: int = 0) -> None:
        """Bytes `start` and following of the expert into `out`, uint8 and contiguous, all of it or an exception."""
        ...

    def close(self) -> None:
        """Lets go of file and memory once the reads under way have ended; safe to call twice."""
        ...


def not_here(where: str, key: ExpertKey | None = None) -> str:
    """The line for what cannot be computed in place."""
    what = "experts" if key is None else f"expert {key.expert} of MoE layer {key.layer}"
    return (
        f"cannot compute {what} in place: got a store of kind '{where}', which does not hold every expert; serve misses "
        "with 'fetch', or use a store of kind 'disk' or 'ram'"
    )
