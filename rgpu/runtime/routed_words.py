"""`RoutedWords`: where a GPU leaves what its routers chose, and how the host reads it as soon as it is there.

A word a pair, as `rgpu.kernels.route` writes them: the expert's id above the bits of its float32 weight.
Legend: L MoE layers, P pairs of a pass (tokens x top-k).
"""

import time
from typing import Any

import numpy as np
import torch

UNSEEN = -1  # a word that was not written yet
_LOOKS = 256  # at the words between two looks at the device
_TURN = 8  # looks after which other threads, which may be reading experts, get the interpreter


class RoutedWords:
    """Words of every layer of one captured step, in page-locked memory: `LP` for the device, all `UNSEEN` before it runs."""

    def __init__(self, layers: int, tokens: int, top_k: int) -> None:
        self.LP = torch.full((layers, tokens * top_k), UNSEEN, pin_memory=torch.cuda.is_available())
        self._host_LP = self.LP.numpy()
        self._shape = tokens, top_k

    def take(self, layer: int, stream: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """(ids int64 [T, K], weights float32 [T, K]) of a layer once the device has written them, which queued work of `stream`
        will. Words are `UNSEEN` again afterwards. Raises what the device raises."""
        word_P = self._host_LP[layer]
        looks = 0
        while (word_P == UNSEEN).any():
            looks += 1
            if looks % _TURN == 0:
                time.sleep(0)
            if looks % _LOOKS == 0 and stream.query():  # all is done: whatever is there now stays; a fault raises
                break
        ids_TK, weights_TK = unpacked(word_P)
        word_P.fill(UNSEEN)
        return ids_TK.reshape(self._shape), weights_TK.reshape(self._shape)


def packed(ids_TK: torch.Tensor, float_TK: torch.Tensor) -> torch.Tensor:
    """int64 [P]: the words of ids and float32 weights."""
    bits = float_TK.contiguous().view(torch.int32).long() & 0xFFFFFFFF
    return ((ids_TK.long() << 32) | bits).flatten()


def unpacked(word_P: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids int64 [P], weights float32 [P]) of words."""
    weights = (word_P & 0xFFFFFFFF).astype(np.uint32).view(np.float32)
    return torch.from_numpy(word_P >> 32), torch.from_numpy(weights)
