"""Carries out the controller's decisions on a GPU: the device finds the residents by itself, the host brings the rest.

Legend: T tokens, D hidden size, K top-k, L MoE layers, E experts.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from rgpu.errors import InputError, RgpuError
from rgpu.memory.slot_pool import SlotPool
from rgpu.memory.slot_table import SlotTable
from rgpu.replay.controller import Controller, Decision
from rgpu.runtime.executor import FETCH, ZERO_COPY, PoolExecutor, in_time
from rgpu.runtime.experts import PooledExperts
from rgpu.store.source import ExpertSource
from rgpu.traces.passes import PassInfo
from rgpu.transfer.device import DeviceTransfer
from rgpu.types import ExpertKey

HANDLERS = (FETCH, ZERO_COPY)
FEW = 16  # tokens up to which a kernel's buffers are kept, one set a number of tokens: graphs point into them
Step = Callable[[PooledExperts, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
Host = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]  # ids, weights and hidden states of an event, on the host
Launch = Callable[[torch.Tensor, torch.Tensor], None]  # (rows, slot of each pair on the host): queues the computation
MakeKernel = Callable[[], Any]  # -> an ExpertCompute with `wave` and `finish`


class DeviceExecutor(PoolExecutor):
    """Quantised experts from slots on a GPU, three steps an event: `hits` computes what the slot table has, without the host;
    `rest` lets the controller decide and computes what the table lacked; `combine` adds up. The result depends on none of
    it: each pair's output is kept apart and added in the order of K.

    `handler`: what serves a miss, "fetch" by copying it into a slot first, "zero_copy" by computing it from host memory and
    copying what is to stay afterwards.
    """

    def __init__(
        self, controller: Controller, pools: list[SlotPool], transfer: DeviceTransfer, kernel: MakeKernel,
        rows_of_pass: Callable[[], PassInfo | None], hidden: bool, store: ExpertSource, handler: str, device: torch.device,
    ) -> None:  # fmt: skip
        if handler not in HANDLERS:
            raise InputError(
                f"pool.miss: got {handler!r}; expected one of {', '.join(HANDLERS)} on a GPU; set pool.miss=fetch"
            )
        if handler == ZERO_COPY and not (store.in_place and store.ram_bytes):
            raise InputError(
                "pool.miss: got zero_copy with a store that does not hold every expert in memory; expected one that does; "
                "set pool.miss=fetch, or store=ram (under caps: give more memory.ram)"
            )
        self.device = device
        self.store: ExpertSource
        self.table = SlotTable(len(store.layer_ids), store.experts, device)
        self._make_kernel = kernel
        self._kernels: dict[int, Any] = {}
        self._served: dict[tuple[int, ...], torch.Tensor] = {}  # all zeros: some wave had every pair
        self.readback = Readback()
        self._broken = False
        self.step: Step = self.at_once  # changed while a step is captured or replayed
        self.transfer: DeviceTransfer
        super().__init__(controller, pools, transfer, None, rows_of_pass, hidden, store)  # type: ignore[arg-type]
        self.in_place = handler == ZERO_COPY

    def __call__(
        self, module: PooledExperts, x_TD: torch.Tensor, ids_TK: torch.Tensor, weights_TK: torch.Tensor
    ) -> torch.Tensor:
        """[T, D]: what the experts of MoE layer `module.layer` give."""
        return self.step(module, x_TD, ids_TK, weights_TK)

    def at_once(
        self, module: PooledExperts, x_TD: torch.Tensor, ids_TK: torch.Tensor, weights_TK: torch.Tensor
    ) -> torch.Tensor:
        """The three steps one after the other."""
        self.hits(module.layer, x_TD, ids_TK, weights_TK)
        self.rest(module.layer, x_TD, ids_TK, weights_TK)
        return self.combine(x_TD, weights_TK)

    def hits(self, layer: int, x_TD: torch.Tensor, ids_TK: torch.Tensor, weights_TK: torch.Tensor) -> None:
        """Queues the residents' pairs, as the table has them when the device gets there."""
        pool = self.pools[self.controller.pool_of(layer)]
        slot_TK = self.table.slots_LE[layer][ids_TK.long()]
        self.kernel(len(x_TD)).wave(x_TD, pool.buffer, slot_TK, weights_TK.float())

    def rest(
        self, layer: int, x_TD: torch.Tensor, ids_TK: torch.Tensor, weights_TK: torch.Tensor, *, host: Host | None = None,
        launch: Launch | None = None, computed: bool = False,
    ) -> None:  # fmt: skip
        """Waits for the router's choice (unless the caller has: `host`), decides, and queues copies and, unless all is
        `computed` already, what `hits` could not compute (by `launch`, where that is something else than a kernel's call)."""
        if self._broken:
            raise RgpuError(
                "cannot go on: a step of this session was cut short; close the session and open another one"
            )
        self._broken = True  # until the end: what an interrupted event has computed and decided cannot be told
        event = self._event(layer, x_TD, ids_TK, weights_TK) if host is None else self._event_of(layer, *host)
        decision = self.controller.observe(event)
        ahead, late = in_time(self.controller.ahead(), decision.pool)
        missing = (self.table.host_LE[layer, decision.experts] < 0) & (not computed)
        loads = [*ahead, *late]
        if missing.any():
            wave = _Wave(self, event.experts_TK, launch or self._launch(x_TD, weights_TK))
            if self.in_place:
                self._from_the_store(decision, missing, wave)
                loads = [decision, *loads]
            else:
                self._wave_by_wave(decision, missing, wave, ahead)
                loads = late
        elif (decision.codes >= 0).any():
            loads = [decision, *loads]
        for load in loads:
            self._submit(load)
        self.settle()
        self.table.upload()
        self._broken = False

    def combine(self, x_TD: torch.Tensor, weights_TK: torch.Tensor) -> torch.Tensor:
        """[T, D]: the sum of what `hits` and `rest` computed."""
        shape = tuple(weights_TK.shape)
        served_TK = self._served.get(shape)
        if served_TK is None:
            served_TK = torch.zeros(shape, dtype=torch.int32, device=self.device)
            if shape[0] <= FEW:
                self._served[shape] = served_TK
        out_TD: torch.Tensor = self.kernel(len(x_TD)).finish(x_TD, served_TK, weights_TK.float())
        return out_TD

    def sources(self, layer: int) -> list[torch.Tensor]:
        """The rows that members of a layer may be computed from."""
        pool_SB = self.pools[self.controller.pool_of(layer)].buffer
        return [pool_SB, self.store.rows_SB] if self.in_place else [pool_SB]

    def _launch(self, x_TD: torch.Tensor, weights_TK: torch.Tensor) -> Launch:
        kernel, weights_TK = self.kernel(len(x_TD)), weights_TK.float()

        def launch(rows_SB: torch.Tensor, slot_TK: torch.Tensor) -> None:
            kernel.wave(x_TD, rows_SB, slot_TK.to(self.device, non_blocking=True), weights_TK)

        return launch

    def _wave_by_wave(self, decision: Decision, missing: np.ndarray, wave: "_Wave", ahead: list[Decision]) -> None:
        last = len(decision.waves) - 1
        for w, members in enumerate(decision.waves):
            slots = self._load(decision, members)
            if w == last:
                for load in ahead:
                    self._submit(load)
            some = [(i, slot) for i, slot in zip(members.tolist(), slots, strict=True) if missing[i]]
            for _, slot in some:
                self.transfer.wait(decision.pool, slot)
            if some:
                with self._pinned(decision, some):
                    pool = self.pools[decision.pool]
                    wave.compute(pool.buffer, [(int(decision.experts[i]), slot) for i, slot in some])
            for i, slot in some:
                if decision.slots[i] >= 0:  # in a staging slot it stays for this wave only
                    self.table.set(ExpertKey(int(decision.layers[i]), int(decision.experts[i])), slot)

    def _from_the_store(self, decision: Decision, missing: np.ndarray, wave: "_Wave") -> None:
        members = [ExpertKey(int(decision.layers[i]), int(decision.experts[i])) for i in np.flatnonzero(missing)]
        wave.compute(self.store.rows_SB, [(key.expert, self.store.row(key)) for key in members])

    def _copy(self, key: ExpertKey, pool: int, slot: int, ahead: bool) -> None:
        before = self.pools[pool].key(slot)
        if before is not None and self.table.host_LE[before.layer, before.expert] == slot:
            self.table.set(before, -1)
        super()._copy(key, pool, slot, ahead)

    def _read(
        self, ids_TK: torch.Tensor, weights_TK: torch.Tensor, hidden_TD: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        ids_TK, weights_TK, hidden_TD = self.readback.read(ids_TK, weights_TK, hidden_TD)
        return ids_TK, weights_TK, hidden_TD

    def settle(self) -> None:
        """Puts what was copied ahead and has landed into the table: the next pass finds it without the host."""
        for pool, slot in self.transfer.landed():
            key = self.pools[pool].key(slot)
            if key is not None and slot < self.controller.slots[pool]:
                self.table.set(key, slot)

    def filled(self) -> None:
        """Waits for the initial fill."""
        for pool, slots in enumerate(self.controller.slots):
            for slot in range(slots):
                self.transfer.wait(pool, slot)
                if (key := self.pools[pool].key(slot)) is not None:
                    self.table.set(key, slot)
        self.table.upload()

    def kernel(self, tokens: int) -> Any:
        """The kernel, with its buffers, for passes of so many tokens."""
        kept = tokens if tokens <= FEW else 0
        if kept not in self._kernels:
            self._kernels[kept] = self._make_kernel()
        return self._kernels[kept]


class _Wave:
    """Computes some members of one event from some rows."""

    def __init__(self, executor: DeviceExecutor, ids_TK: np.ndarray, launch: Launch) -> None:
        self.ids_TK, self.launch = ids_TK, launch
        self._row_of_E = np.full(executor.table.host_LE.shape[1], -1, np.int32)

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
