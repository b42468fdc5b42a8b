"""`SourceOver`: a source that is another one but for what its subclasses change."""

import numpy as np
import torch

from rgpu.store.layout import RowLayout
from rgpu.store.source import ExpertSource
from rgpu.types import ExpertKey, MoEShape


class SourceOver:
    """An `ExpertSource` that asks `below` for everything."""

    def __init__(self, below: ExpertSource) -> None:
        self.below = below

    @property
    def layer_ids(self) -> tuple[int, ...]:
        """See `ExpertSource`."""
        return self.below.layer_ids

    @property
    def experts(self) -> int:
        """See `ExpertSource`."""
        return self.below.experts

    @property
    def layout(self) -> RowLayout:
        """How an expert lies in its bytes."""
        return self.below.layout

    @property
    def nbytes(self) -> int:
        """See `ExpertSource`."""
        return self.below.nbytes

    @property
    def mapped_bytes(self) -> int:
        """See `ExpertSource`."""
        return self.below.mapped_bytes

    @property
    def ram_bytes(self) -> int:
        """See `ExpertSource`."""
        return self.below.ram_bytes

    @property
    def in_place(self) -> bool:
        """See `ExpertSource`."""
        return self.below.in_place

    @property
    def rows_SB(self) -> torch.Tensor:
        """See `ExpertSource`."""
        return self.below.rows_SB

    def shape(self, top_k: int) -> MoEShape:
        """See `ExpertSource`."""
        return self.below.shape(top_k)

    def row(self, key: ExpertKey) -> int:
        """See `ExpertSource`."""
        return self.below.row(key)

    def pin(self, key: ExpertKey) -> int | None:
        """See `ExpertSource`."""
        return self.below.pin(key)

    def unpin(self, key: ExpertKey) -> None:
        """See `ExpertSource`."""
        self.below.unpin(key)

    def buffer(self, key: ExpertKey) -> np.ndarray:
        """See `ExpertSource`."""
        return self.below.buffer(key)

    def read_into(self, key: ExpertKey, out: np.ndarray, start: int = 0) -> None:
        """See `ExpertSource`."""
        self.below.read_into(key, out, start)

    def close(self) -> None:
        """See `ExpertSource`."""
        self.below.close()
