"""Carries out the controller's decisions on a GPU: the device finds the residents by itself, the host brings the rest.

Legend: T tokens, D hidden size, K top-k, L MoE layers, E experts.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from rgpu.errors import InputError
from rgpu.memory.slot_pool import SlotPool
from rgpu.memory.slot_table import SlotTable
from rgpu.replay.controller import Controller
from rgpu.replay.decision import Decision
from rgpu.runtime.device_events import Launch, Readback, Wave
from rgpu.runtime.executor import (
    CPU,
    FETCH,
    SPLIT,
    ZERO_COPY,
    PoolExecutor,
    as_stored,
    hits_of,
    in_time,
    key_of,
    only,
    rows_of,
    without,
)
from rgpu.runtime.experts import PooledExperts
from rgpu.runtime.host_misses import HostMisses
from rgpu.runtime.miss_choice import MissChoice
from rgpu.runtime.routed_words import packed
from rgpu.store.source import ExpertSource
from rgpu.traces.passes import PassInfo
from rgpu.transfer.device import DeviceTransfer
from rgpu.types import ExpertKey, RoutingEvent

HANDLERS = (FETCH, ZERO_COPY, CPU, SPLIT)
ON_THE_HOST = (CPU, SPLIT)  # handlers that compute misses, or some, on the processor
FEW = 16  # tokens up to which a kernel's buffers are kept, one set a number of tokens: graphs point into them
Step = Callable[[PooledExperts, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
Host = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]  # ids, weights and hidden states of an event, on the host
MakeKernel = Callable[[], Any]  # -> an ExpertCompute with `wave` and `finish`


class DeviceExecutor(PoolExecutor):
    """Quantised experts from slots on a GPU, three steps an event: `hits` computes what the slot table has, without the host;
    `rest` lets the controller decide and computes what the table lacked; `combine` adds up. The result depends on none of
    it: each pair's output is kept apart and added in the order of K.

    `handler`: what serves a miss, "fetch" by copying it into a slot first, "zero_copy" by computing it from host memory and
    copying what is to stay afterwards, "cpu" the same on the processor with `host_kernel`, "split" as `MissChoice` divides
    them between "fetch" and "cpu". Only with the last two the last bits of the result
    may depend on where a miss was computed.
    """

    def __init__(
        self, controller: Controller, pools: list[SlotPool], transfer: DeviceTransfer, kernel: MakeKernel,
        rows_of_pass: Callable[[], PassInfo | None], hidden: bool, store: ExpertSource, handler: str, device: torch.device,
        host_kernel: Any = None,
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
        self._host = HostMisses(store, host_kernel, handler) if handler in ON_THE_HOST else None
        self.reads_inputs = hidden or self._host is not None
        self.table = SlotTable(len(store.layer_ids), store.experts, device)
        self._make_kernel = kernel
        self._kernels: dict[int, Any] = {}
        self._served: dict[tuple[int, ...], torch.Tensor] = {}  # all zeros: some wave had every pair
        self.readback = Readback()
        self.step: Step = self.at_once  # changed while a step is captured or replayed
        self.transfer: DeviceTransfer
        super().__init__(controller, pools, transfer, None, rows_of_pass, hidden, store)  # type: ignore[arg-type]
        self.handler = handler
        self._choice = MissChoice(transfer.counts, slots_take_time=False) if handler == SPLIT else None

    def __call__(
        self, module: PooledExperts, x_TD: torch.Tensor, ids_TK: torch.Tensor, weights_TK: torch.Tensor
    ) -> torch.Tensor:
        """[T, D]: what the experts of MoE layer `module.layer` give."""
        return self.step(module, x_TD, ids_TK, weights_TK)

    def at_once(
        self, module: PooledExperts, x_TD: torch.Tensor, ids_TK: torch.Tensor, weights_TK: torch.Tensor
    ) -> torch.Tensor:
        """The three steps one after the other."""
        self.check()  # before the device reads slots that may be gone
        float_TK = self.hits(module.layer, x_TD, ids_TK, weights_TK)
        self.rest(module.layer, x_TD, ids_TK, weights_TK)
        return self.combine(x_TD, float_TK)

    def hits(
        self, layer: int, x_TD: torch.Tensor, ids_TK: torch.Tensor, weights_TK: torch.Tensor,
        word_P: torch.Tensor | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """Queues the residents' pairs, as the table has them when the device gets there; the weights in float32 [T, K].
        `word_P` gets the ids and weights (see `RoutedWords`)."""
        pool, kernel = self.pools[self.controller.pool_of(layer)], self.kernel(len(x_TD))
        if word_P is not None and hasattr(kernel, "route"):
            slot_TK, float_TK = kernel.route(ids_TK, weights_TK, self.table.slots_LE[layer], word_P)
        else:
            slot_TK, float_TK = self.table.slots_LE[layer][ids_TK.long()], weights_TK.float()
            if word_P is not None:
                word_P.copy_(packed(ids_TK, float_TK))
        kernel.wave(x_TD, pool.buffer, slot_TK, float_TK)
        return float_TK

    def rest(
        self, layer: int, x_TD: torch.Tensor, ids_TK: torch.Tensor, weights_TK: torch.Tensor, *, host: Host | None = None,
        launch: Launch | None = None, computed: bool = False,
    ) -> None:  # fmt: skip
        """Waits for the router's choice (unless the caller has: `host`), decides, and queues copies and, unless all is
        `computed` already, what `hits` could not compute (by `launch`, where that is something else than a kernel's call)."""
        self.check()
        self._broken = True  # until the end: what an interrupted event has computed and decided cannot be told
        if host is None:
            host = self._read(ids_TK, weights_TK, x_TD if self.reads_inputs else None)
        event = self._event_of(layer, host[0], host[1], host[2] if self.hidden else None)
        decision = self.controller.observe(event)
        ahead, late = in_time(self._ahead(event), decision.pool)
        missing = (self.table.host_LE[layer, decision.experts] < 0) & (not computed)
        loads = [*ahead, *late]
        if missing.any():
            wave = Wave(self.store.experts, event.experts_TK, launch or self._launch(x_TD, weights_TK))
            if self.handler == ZERO_COPY:
                self._over_the_link(decision, missing, wave)
                loads = [decision, *loads]
            elif self.handler == CPU:
                self._on_the_host(decision, np.flatnonzero(missing).tolist(), event, host)
                loads = [decision, *loads]
            else:
                here = self._to_compute_on_the_host(decision, missing, event)
                self._wave_by_wave(
                    decision, missing, wave, ahead, here, lambda: self._on_the_host(decision, here, event, host)
                )
                loads = late
        elif (decision.codes >= 0).any():
            loads = [decision, *loads]
        for load in loads:
            self._submit(load)
        self.settle()
        self.table.upload()
        self._broken = False

    def all_hits(self, ids_LTK: torch.Tensor, weights_LTK: torch.Tensor) -> bool:
        """Decides a pass whose experts were all in the table and are computed, in one go. False, and nothing is done, where
        that may not be what `rest` does one layer after the other."""
        info = self.rows_of_pass()
        if self.hidden or self._broken or not self.controller.can_batch():
            return False
        self._broken = True
        self.controller.observe_hits(ids_LTK.numpy(), as_stored(weights_LTK), -1 if info is None else info.pass_id)
        self.settle()
        self.table.upload()
        self._broken = False
        return True

    def entered(self, x_TD: torch.Tensor) -> None:
        """Waits for the device, which gives the state, decides, and queues the copies."""
        with self.undivided():
            super().entered(x_TD)
            self.settle()
            self.table.upload()

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
        return [pool_SB, self.store.rows_SB] if self.handler == ZERO_COPY else [pool_SB]

    def _launch(self, x_TD: torch.Tensor, weights_TK: torch.Tensor) -> Launch:
        kernel, weights_TK = self.kernel(len(x_TD)), weights_TK.float()

        def launch(rows_SB: torch.Tensor, slot_TK: torch.Tensor) -> None:
            kernel.wave(x_TD, rows_SB, slot_TK.to(self.device, non_blocking=True), weights_TK)

        return launch

    def _wave_by_wave(
        self, decision: Decision, missing: np.ndarray, wave: Wave, ahead: list[Decision], here: list[int],
        compute_here: Callable[[], None],
    ) -> None:  # fmt: skip
        """Copies and computes what is missing, but for `here`, which the host computes while the first copies are made."""
        last = len(decision.waves) - 1
        for w, members in enumerate(decision.waves):
            members = without(members, here)
            slots = self._load(decision, members)
            if w == last:  # what is to stay of `here` goes first: a later decision may give its slot away
                for load in [only(decision, here), *ahead] if here else ahead:
                    self._submit(load)
            if w == 0 and here:
                compute_here()
            some = [(i, slot) for i, slot in zip(members.tolist(), slots, strict=True) if missing[i]]
            self._arrived(decision, some, wave)

    def _arrived(self, decision: Decision, some: list[tuple[int, int]], wave: Wave) -> None:
        """Computes (member, slot) behind their copies."""
        if some:
            self.transfer.wait_for(decision.pool, [slot for _, slot in some])
            with self._pinned(decision, some):
                wave.compute(self.pools[decision.pool].buffer, [(int(decision.experts[i]), slot) for i, slot in some])
        for i, slot in some:
            if decision.slots[i] >= 0:  # in a staging slot it stays for this wave only
                self.table.set(key_of(decision, i), slot)

    def _over_the_link(self, decision: Decision, missing: np.ndarray, wave: Wave) -> None:
        keys = [key_of(decision, i) for i in np.flatnonzero(missing).tolist()]
        self.in_place += int((missing & ~hits_of(decision)).sum())
        wave.compute(self.store.rows_SB, [(key.expert, self.store.row(key)) for key in keys])

    def _on_the_host(self, decision: Decision, members: list[int], event: RoutingEvent, host: Host) -> None:
        assert self._host is not None and host[2] is not None
        keys = [key_of(decision, i) for i in members]
        self.in_place += int((~hits_of(decision)[members]).sum())
        kernel = self.kernel(len(event.experts_TK))
        self._host.compute(
            [(key.expert, self.store.row(key)) for key in keys],
            host[2],
            event.experts_TK,
            host[1],
            kernel.place,
            self._choice,
        )

    def _to_compute_on_the_host(self, decision: Decision, missing: np.ndarray, event: RoutingEvent) -> list[int]:
        if self._choice is None:
            return []
        return self._choice.divide(np.flatnonzero(missing).tolist(), rows_of(decision, event))[0]

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

    def rearranged(self) -> None:
        """See `PoolExecutor`: the table is what the controller has."""
        held: dict[ExpertKey, int] = {}
        for pool, slots in enumerate(self.controller.slots):
            held |= {key: slot for slot in range(slots) if (key := self.pools[pool].key(slot)) is not None}
        for layer, expert in np.argwhere(self.table.host_LE >= 0).tolist():
            if ExpertKey(layer, expert) not in held:
                self.table.set(ExpertKey(layer, expert), -1)
        for key, slot in held.items():
            self.table.set(key, slot)
        self.table.upload()

    def kernel(self, tokens: int) -> Any:
        """The kernel, with its buffers, for passes of so many tokens."""
        kept = tokens if tokens <= FEW else 0
        if kept not in self._kernels:
            self._kernels[kept] = self._make_kernel()
        return self._kernels[kept]
