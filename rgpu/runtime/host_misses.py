"""`HostMisses`: the misses of an event computed on the host, beside a GPU that computes the rest.

Legend: T tokens, D hidden size, K top-k, P = T * K pairs (token, expert), token by token, N of them.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from rgpu.errors import InputError
from rgpu.runtime.miss_choice import MissChoice
from rgpu.store.source import ExpertSource


class HostMisses:
    """Computes members from the store with a kernel of the host and puts their outputs between those of the GPU's kernel.

    `kernel`: a `CpuCompute`, say: it has `wave` and `outputs`; the GPU's has `place`. Sums are the host's, in float32, so a
    member computed here may differ in its last bits from the same member computed on the GPU.
    """

    def __init__(self, store: ExpertSource, kernel: Any, handler: str) -> None:
        if not store.in_place:
            raise InputError(
                f"pool.miss: got {handler} with a store that does not hold every expert where it could be computed; expected "
                "store=ram or store=disk; set one, or pool.miss=fetch"
            )
        if kernel is None:
            raise InputError(
                f"pool.miss: got {handler} on a GPU without a kernel for the host; expected one; open the session with "
                "host_kernel=rgpu.kernels.compute_cpu.CpuCompute"
            )
        self._store, self._kernel = store, kernel
        self._slot_of_E = np.full(store.experts, -1, np.int32)

    def compute(
        self, members: list[tuple[int, int]], x_TD: torch.Tensor, ids_TK: np.ndarray, weights_TK: torch.Tensor,
        place: Callable[[torch.Tensor, torch.Tensor], None], choice: MissChoice | None,
    ) -> None:  # fmt: skip
        """`members`: (expert, its row in the store); everything on the host. `place(pairs_N, y_ND)` takes the outputs."""
        begin_s = time.perf_counter()
        experts = [expert for expert, _ in members]
        self._slot_of_E[experts] = [row for _, row in members]
        slot_TK = self._slot_of_E[ids_TK]
        self._slot_of_E[experts] = -1
        token_N = np.flatnonzero((slot_TK >= 0).any(1))  # the others are not read
        rows = torch.from_numpy(token_N)
        own_TK = torch.from_numpy(slot_TK[token_N])
        self._kernel.wave(x_TD[rows].float(), self._store.rows_SB, own_TK, weights_TK[rows].float())
        pair_N = np.flatnonzero(own_TK.numpy() >= 0)
        y_ND = self._kernel.outputs()[torch.from_numpy(pair_N)]
        top_k = ids_TK.shape[1]
        place(torch.from_numpy(token_N[pair_N // top_k] * top_k + pair_N % top_k), y_ND)
        if choice is not None:
            count_E = np.bincount(ids_TK[ids_TK >= 0], minlength=len(self._slot_of_E))
            choice.in_place.took(count_E[experts].tolist(), time.perf_counter() - begin_s)
