"""How the members of one event are computed, set of rows by set of rows: in the model's own float arithmetic, or by kernels
over quantised slots.

Legend: T tokens, D hidden size, K top-k, N rows of one expert, S rows of a buffer, B bytes of a row.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch

from rgpu.errors import InputError
from rgpu.quant.layout import SlotLayout
from rgpu.runtime.architecture import Architecture
from rgpu.runtime.experts import PooledExperts
from rgpu.store.layout import ExpertLayout, ExpertWeights
from rgpu.store.source import ExpertSource
from rgpu.types import Gate

ALONE = 1 << 18  # weights: fewer are multiplied with one row sooner than torch's threads are woken
Kernel = Callable[[SlotLayout, Gate, int], Any]  # (layout, gate, threads) -> an ExpertCompute with `wave` and `finish`
Members = Sequence[tuple[int, int]]  # (expert, row of the buffer that holds it)


class EventCompute(Protocol):
    """`begin` an event, `members` of it from any buffers in any order, each expert once, then `finish`: [T, D]. Nothing is
    computed for an id of -1.

    The result never depends on how the members were divided or which buffer held them."""

    def begin(
        self, module: PooledExperts, x_TD: torch.Tensor, experts_TK: np.ndarray, weights_TK: torch.Tensor
    ) -> None: ...

    def members(self, rows_SB: torch.Tensor, members: Members) -> None: ...

    def finish(self) -> torch.Tensor: ...


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many threads of torch in here (a setting of the calling thread; changing it takes less than a microsecond)."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class FloatCompute:
    """Bit-identical to transformers' `eager` experts on the same device: the same operations on the same groups of rows
    (an expert sees all its rows in one call), the outputs summed in ascending order of experts."""

    def __init__(self, layout: ExpertLayout) -> None:
        self.layout = layout
        self._views: dict[tuple[int, int], ExpertWeights] = {}
        # in float32 the number of threads may change the last bits of a product, here and in the model's eager forward
        self._small = layout.dtype.itemsize < 4 and 2 * layout.intermediate * layout.hidden <= ALONE

    def begin(
        self, module: PooledExperts, x_TD: torch.Tensor, experts_TK: np.ndarray, weights_TK: torch.Tensor
    ) -> None:
        """See `EventCompute`."""
        self._module, self._x_TD, self._weights_TK = module, x_TD, weights_TK
        self._one = len(experts_TK) == 1
        groups = {} if self._one else row_groups(experts_TK)
        self._groups = {e: (token_N.to(x_TD.device), rank_N.to(x_TD.device)) for e, (token_N, rank_N) in groups.items()}
        self._ranks = {expert: rank for rank, expert in enumerate(experts_TK[0].tolist())} if self._one else {}
        self._outputs: dict[int, tuple[torch.Tensor | None, torch.Tensor]] = {}

    def members(self, rows_SB: torch.Tensor, members: Members) -> None:
        """See `EventCompute`."""
        if self._one and self._small:
            with threads(1):
                self._compute(rows_SB, members)
        else:
            self._compute(rows_SB, members)

    def _compute(self, rows_SB: torch.Tensor, members: Members) -> None:
        for expert, row in members:
            weights, token_N = self._of(rows_SB, row), None
            if self._one:  # nothing to gather: the token is every expert's only row
                rank = self._ranks[expert]
                x_ND, weight_N1 = self._x_TD, self._weights_TK[:, rank : rank + 1]
            else:
                token_N, rank_N = self._groups[expert]
                x_ND, weight_N1 = self._x_TD[token_N], self._weights_TK[token_N, rank_N, None]
            h_NI = self._module.apply_gate(self._product(x_ND, weights.gate_up, weights.gate_up_bias))
            y_ND = self._product(h_NI, weights.down, weights.down_bias) * weight_N1
            self._outputs[expert] = token_N, y_ND.to(self._x_TD.dtype)

    def finish(self) -> torch.Tensor:
        """See `EventCompute`."""
        out_TD = torch.zeros_like(self._x_TD)
        for expert in sorted(self._outputs):
            token_N, y_ND = self._outputs[expert]
            if token_N is None:
                out_TD.add_(y_ND)  # the same sum: `index_add_` would wake torch's threads for it, 0.3 ms a member
            else:
                out_TD.index_add_(0, token_N, y_ND)
        self._outputs = {}
        return out_TD

    def forget(self) -> None:
        """Pools are in other memory: views must not hold what they were in."""
        self._views.clear()

    def _of(self, rows_SB: torch.Tensor, row: int) -> ExpertWeights:
        key = rows_SB.data_ptr(), row
        if key not in self._views:
            self._views[key] = self.layout.views(rows_SB[row])
        return self._views[key]

    def _product(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """As the model's eager forward has it, down to the order of operations."""
        if not self.layout.transposed:
            return torch.nn.functional.linear(x, weight, bias)
        return x @ weight if bias is None else x @ weight + bias


class SlotCompute:
    """Quantised experts by a kernel that computes pairs now and adds them up at the end (`CpuCompute`, `TritonCompute`)."""

    def __init__(self, kernel: Any, experts: int) -> None:
        self.kernel = kernel
        self._row_of_E = np.full(experts + 1, -1, np.int32)  # the last is that of the id -1

    def begin(
        self, module: PooledExperts, x_TD: torch.Tensor, experts_TK: np.ndarray, weights_TK: torch.Tensor
    ) -> None:
        """See `EventCompute`."""
        self._x_TD, self._experts_TK, self._weights_TK = x_TD, experts_TK, weights_TK.float().contiguous()

    def members(self, rows_SB: torch.Tensor, members: Members) -> None:
        """See `EventCompute`."""
        for expert, row in members:
            self._row_of_E[expert] = row
        slot_TK = torch.from_numpy(self._row_of_E[self._experts_TK])
        for expert, _ in members:
            self._row_of_E[expert] = -1
        self.kernel.wave(self._x_TD, rows_SB, slot_TK, self._weights_TK)

    def finish(self) -> torch.Tensor:
        """See `EventCompute`."""
        served_TK = torch.from_numpy(np.minimum(self._experts_TK, 0).astype(np.int32))
        out_TD: torch.Tensor = self.kernel.finish(self._x_TD, served_TK, self._weights_TK)
        return out_TD


def event_compute(store: ExpertSource, architecture: Architecture, kernel: Kernel | None, threads: int) -> EventCompute:
    """What computes the experts that `store` holds."""
    layout = store.layout
    if isinstance(layout, ExpertLayout):
        return FloatCompute(layout)
    assert isinstance(layout, SlotLayout)
    if kernel is None:
        raise no_kernel(layout, "compute_cpu.CpuCompute")
    assert architecture.gate is not None
    return SlotCompute(kernel(layout, architecture.gate, threads), store.experts)


def no_kernel(layout: SlotLayout, name: str) -> InputError:
    """The error for a session that needs a kernel and was given none."""
    return InputError(
        f"cannot compute {layout.format.name} experts: got no kernel; expected one for quantised slots; open the session "
        f"with kernel=rgpu.kernels.{name}"
    )


def row_groups(experts_TK: np.ndarray) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    """(tokens, ranks) of each expert in the order of transformers' `eager` forward: by rank, then by token."""
    tokens = experts_TK.shape[0]
    flat_KT = experts_TK.T.reshape(-1)
    order = np.argsort(flat_KT, kind="stable")
    experts, starts = np.unique(flat_KT[order], return_index=True)
    groups = {}
    for expert, rows in zip(experts.tolist(), np.split(order, starts[1:]), strict=True):
        groups[expert] = torch.from_numpy(rows % tokens), torch.from_numpy(rows // tokens)
    return groups
