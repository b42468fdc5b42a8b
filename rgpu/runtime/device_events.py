"""One event between the host and a GPU: what is read of it, and some of its members computed.

Legend: T tokens, K top-k, E experts of a layer, S rows of experts, B bytes of one.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

Launch = Callable[[torch.Tensor, torch.Tensor], None]  # (rows, slot of each pair on the host): queues the computation


class Wave:
    """Computes some members of one event (`ids_TK`, of a layer with so many `experts`) from some rows."""

    def __init__(self, experts: int, ids_TK: np.ndarray, launch: Launch) -> None:
        self.ids_TK, self.launch = ids_TK, launch
        self._row_of_E = np.full(experts, -1, np.int32)

    def compute(self, rows_SB: torch.Tensor, members: list[tuple[int, int]]) -> None:
        """`members`: (expert, its row of `rows_SB`)."""
        for expert, row in members:
            self._row_of_E[expert] = row
        self.launch(rows_SB, torch.from_numpy(self._row_of_E[self.ids_TK]))
        for expert, _ in members:
            self._row_of_E[expert] = -1


class Readback:
    """Small tensors brought to the host in one go, through page-locked memory that is kept and grows when needed."""

    def __init__(self) -> None:
        self._room: dict[tuple[int, torch.dtype], torch.Tensor] = {}

    def read(self, *tensors: Any) -> list[Any]:
        """The tensors on the host (None stays), valid until the next call."""
        out = [self._copy(number, tensor) for number, tensor in enumerate(tensors)]
        if any(tensor is not None and tensor.is_cuda for tensor in tensors):
            torch.cuda.current_stream().synchronize()
        return out

    def _copy(self, number: int, tensor: torch.Tensor | None) -> torch.Tensor | None:
        if tensor is None:
            return None
        room = self._room.get((number, tensor.dtype))
        if room is None or room.numel() < tensor.numel():
            room = torch.empty(tensor.numel(), dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._room[number, tensor.dtype] = room
        return room[: tensor.numel()].view(tensor.shape).copy_(tensor, non_blocking=True)
