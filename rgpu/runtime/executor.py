"""Carries out the controller's decisions: copies experts into slots and computes each event from them, wave by wave.

Legend: T tokens, D hidden size, K top-k, U experts of an event.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

from rgpu.contracts import TransferEngine
from rgpu.errors import InputError
from rgpu.memory.slot_pool import CopyState, SlotPool
from rgpu.policies.loop import PREFETCH
from rgpu.replay.controller import Controller, Decision
from rgpu.runtime.compute import EventCompute
from rgpu.runtime.experts import PooledExperts
from rgpu.store.source import ExpertSource
from rgpu.traces.passes import PassInfo
from rgpu.types import ExpertKey, RoutingEvent

FETCH, CPU, ZERO_COPY = "fetch", "cpu", "zero_copy"
HANDLERS = (FETCH, CPU)  # on a CPU; on a GPU see `rgpu.runtime.device_executor`
_F16_MAX = 65504.0


class PoolExecutor:
    """Computes experts modules from slot pools. `rows_of_pass` describes the forward pass being computed.

    `handler`: what serves a miss. "fetch" copies it into a slot first; "cpu" computes it where the store has it and
    copies what is to stay afterwards. `hidden`: events carry the router's input.
    """

    def __init__(
        self, controller: Controller, pools: list[SlotPool], transfer: TransferEngine, compute: EventCompute,
        rows_of_pass: Callable[[], PassInfo | None], hidden: bool, store: ExpertSource | None = None, handler: str = FETCH,
    ) -> None:  # fmt: skip
        if handler not in HANDLERS:
            raise InputError(f"pool.miss: got {handler!r}; expected one of {', '.join(HANDLERS)}; set pool.miss=fetch")
        self.controller = controller
        self.pools = pools
        self.transfer = transfer
        self.compute = compute
        self.rows_of_pass = rows_of_pass
        self.hidden = hidden
        self.store = store
        self.in_place = handler == CPU
        for fill in controller.start():
            self._submit(fill)

    def __call__(
        self, module: PooledExperts, x_TD: torch.Tensor, ids_TK: torch.Tensor, weights_TK: torch.Tensor
    ) -> torch.Tensor:
        """[T, D]: what the experts of MoE layer `module.layer` give."""
        event = self._event(module.layer, x_TD, ids_TK, weights_TK)
        decision = self.controller.observe(event)
        ahead, late = in_time(self.controller.ahead(), decision.pool)
        self.compute.begin(module, x_TD, event.experts_TK, weights_TK)
        if self.in_place:
            self._where_it_is(decision)
            late = [decision, *ahead, *late]
        else:
            last = len(decision.waves) - 1
            for w, wave in enumerate(decision.waves):
                slots = self._load(decision, wave)
                if w == last:  # earlier waves are computed: nothing of `ahead` can overwrite what they needed
                    for load in ahead:
                        self._submit(load)
                self._compute_wave(decision, wave, slots)
        for load in late:
            self._submit(load)
        return self.compute.finish()

    def filled(self) -> None:
        """Waits for the initial fill."""
        for pool, slots in enumerate(self.controller.slots):
            for slot in range(slots):
                self.transfer.wait(pool, slot)

    def _event(self, layer: int, x_TD: torch.Tensor, ids_TK: torch.Tensor, weights_TK: torch.Tensor) -> RoutingEvent:
        return self._event_of(layer, *self._read(ids_TK, weights_TK, x_TD if self.hidden else None))

    def _event_of(
        self, layer: int, ids_TK: torch.Tensor, weights_TK: torch.Tensor, hidden_TD: torch.Tensor | None
    ) -> RoutingEvent:
        info = self.rows_of_pass()
        return RoutingEvent(
            layer=layer,
            pass_id=-1 if info is None else info.pass_id,
            experts_TK=ids_TK.detach().cpu().numpy().astype(np.int16),
            weights_TK=_as_stored(weights_TK),
            hidden_TD=None if hidden_TD is None else _as_stored(hidden_TD),
            phase_T=None if info is None else info.phase_T,
            token_T=None if info is None else info.token_T,
        )

    def _read(
        self, ids_TK: torch.Tensor, weights_TK: torch.Tensor, hidden_TD: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """The same on the host."""
        return ids_TK, weights_TK, hidden_TD

    def _load(self, decision: Decision, wave: np.ndarray) -> list[int]:
        """Queues the copies of one wave; returns the slot of each of its members, staged ones behind the main slots."""
        staging = self.controller.slots[decision.pool]
        slots = []
        for i in wave.tolist():
            slot, resident = int(decision.slots[i]), int(decision.codes[i]) < 0
            if slot < 0:
                slot, resident, staging = staging, False, staging + 1
            if not resident:
                self._copy(_key(decision, i), decision.pool, slot, ahead=False)
            slots.append(slot)
        return slots

    def _submit(self, decision: Decision) -> None:
        """Queues loads that are to stay; members that stay already, pass through or were dropped have negative codes."""
        for i in (decision.codes >= 0).nonzero()[0].tolist():
            self._copy(_key(decision, i), decision.pool, int(decision.codes[i]), ahead=True)

    def _copy(self, key: ExpertKey, pool: int, slot: int, ahead: bool) -> None:
        self.transfer.submit(key, pool, slot, ahead)

    def _compute_wave(self, decision: Decision, wave: np.ndarray, slots: list[int]) -> None:
        """Members that are there are computed while the others are copied; these as they arrive, in order."""
        pool = self.pools[decision.pool]
        there: list[tuple[int, int]] = []
        rest: list[tuple[int, int]] = []
        for member in zip(wave.tolist(), slots, strict=True):
            (there if pool.state(member[1]) is CopyState.READY else rest).append(member)
        for some in [there, *([one] for one in rest)]:
            if some:
                for _, slot in some:
                    self.transfer.wait(decision.pool, slot)
                with self._pinned(decision, some):
                    self.compute.members(pool.buffer, [(int(decision.experts[i]), slot) for i, slot in some])

    def _where_it_is(self, decision: Decision) -> None:
        """Residents from their slots, everything else (also a copy that has not landed) from the store."""
        assert self.store is not None
        pool = self.pools[decision.pool]
        hits = ((decision.codes < 0) & (decision.slots >= 0)).nonzero()[0].tolist()
        there = [(i, int(decision.slots[i])) for i in hits]
        there = [(i, slot) for i, slot in there if pool.state(slot) is CopyState.READY]
        if there:
            with self._pinned(decision, there):
                self.compute.members(pool.buffer, [(int(decision.experts[i]), slot) for i, slot in there])
        found = {i for i, _ in there}
        rest = [i for i in range(len(decision.experts)) if i not in found]
        if rest:
            rows = [(int(decision.experts[i]), self.store.row(_key(decision, i))) for i in rest]
            self.compute.members(self.store.rows_SB, rows)

    @contextmanager
    def _pinned(self, decision: Decision, members: list[tuple[int, int]]) -> Iterator[None]:
        pool = self.pools[decision.pool]
        pinned = []
        try:
            for i, slot in members:
                pool.pin(slot, _key(decision, i))
                pinned.append(slot)
            yield
        finally:
            for slot in pinned:
                pool.unpin(slot)


def _key(decision: Decision, i: int) -> ExpertKey:
    return ExpertKey(int(decision.layers[i]), int(decision.experts[i]))


def in_time(loads: list[Decision], pool: int) -> tuple[list[Decision], list[Decision]]:
    """(loads that may be copied while the event is computed, loads that must wait for its end).

    A policy's own wishes (kind PREFETCH in the event's pool) may evict the event's members, so that pool waits.
    """
    wishes = any(load.pool == pool and load.kind == PREFETCH for load in loads)
    late = [load for load in loads if wishes and load.pool == pool]
    return [load for load in loads if not (wishes and load.pool == pool)], late


def _as_stored(values: torch.Tensor) -> np.ndarray:
    """float32 values as a trace stores them: clipped to and rounded to float16."""
    exact = values.detach().float().cpu().numpy()
    return np.clip(exact, -_F16_MAX, _F16_MAX).astype(np.float16).astype(np.float32)
