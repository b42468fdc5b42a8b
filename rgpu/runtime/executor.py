"""Carries out the controller's decisions: copies experts into slots and computes each event from them, wave by wave.

Legend: T tokens, D hidden size, K top-k, U experts of an event.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch

from rgpu.contracts import TransferEngine
from rgpu.errors import InputError, RgpuError
from rgpu.memory.slot_pool import CopyState, SlotPool
from rgpu.policies.loop import PREFETCH
from rgpu.replay.controller import Controller
from rgpu.replay.decision import Decision
from rgpu.runtime.compute import EventCompute, FloatCompute
from rgpu.runtime.experts import PooledExperts
from rgpu.runtime.miss_choice import MissChoice
from rgpu.store.source import ExpertSource
from rgpu.traces.passes import PassInfo
from rgpu.types import ExpertKey, RoutingEvent

FETCH, CPU, SPLIT, ZERO_COPY = "fetch", "cpu", "split", "zero_copy"
HANDLERS = (FETCH, CPU, SPLIT)  # on a CPU; on a GPU see `rgpu.runtime.device_executor`
_F16_MAX = 65504.0


class PoolExecutor:
    """Computes experts modules from slot pools. `rows_of_pass` describes the forward pass being computed.

    `handler`: what serves a miss. "fetch" copies it into a slot first; "cpu" computes it where the store has it and copies
    what is to stay afterwards; "split" chooses for each miss (`MissChoice`). `hidden`: events carry the router's input.
    `in_place`: misses so far that were computed where the store has them.
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
        self.handler = handler
        self.in_place = 0
        self._broken = False
        self._entered_TD: np.ndarray | None = None  # what entered the newest MoE layer, where the predictor reads it
        self._owed = False  # the planner's loads after the last event wait for that of the next one
        self.enter: Callable[[torch.Tensor], None] = self.entered  # changed while a step is captured
        self._choice = MissChoice(transfer.counts) if handler == SPLIT else None  # type: ignore[attr-defined]
        for fill in controller.start():
            self._submit(fill)

    def __call__(
        self, module: PooledExperts, x_TD: torch.Tensor, ids_TK: torch.Tensor, weights_TK: torch.Tensor
    ) -> torch.Tensor:
        """[T, D]: what the experts of MoE layer `module.layer` give."""
        self.check()
        event = self._event(module.layer, x_TD, ids_TK, weights_TK)
        decision = self.controller.observe(event)
        ahead, late = in_time(self._ahead(event), decision.pool)
        self.compute.begin(module, x_TD, event.experts_TK, weights_TK)
        if self.handler == CPU:
            self._where_it_is(decision)
            late = [decision, *ahead, *late]
        else:
            rows = [] if self._choice is None else rows_of(decision, event)
            here = self._to_compute_here(decision, rows)
            last = len(decision.waves) - 1
            for w, wave in enumerate(decision.waves):
                wave = without(wave, here)
                slots = self._load(decision, wave)
                if w == last:  # earlier waves are computed: nothing of `ahead` can overwrite what they needed
                    # first what is to stay of `here`: a later decision may give its slot away
                    for load in [only(decision, here), *ahead] if here else ahead:
                        self._submit(load)
                if w == 0:  # while the first copies are made
                    self._from_the_store(decision, here, rows)
                self._compute_wave(decision, wave, slots, rows)
        for load in late:
            self._submit(load)
        return self.compute.finish()

    def check(self) -> None:
        """Raises where something was cut short that leaves what cannot be told."""
        if self._broken:
            raise RgpuError(
                "cannot go on: a step of this session, or a change of its pools, was cut short; close the session and open "
                "another one"
            )

    def cut_short(self) -> None:
        """Something did not come to its end: no step can follow."""
        self._broken = True

    @contextmanager
    def undivided(self) -> Iterator[None]:
        """What happens in here comes to its end, or no step can follow."""
        self.check()
        self._broken = True
        yield
        self._broken = False

    def entered(self, x_TD: torch.Tensor) -> None:
        """Takes what enters the next MoE layer, before its attention, and queues what is forecast from it."""
        self._entered_TD = as_stored(x_TD)
        if self._owed:
            self._owed = False
            for load in self.controller.later(self._entered_TD):
                self._submit(load)

    def _ahead(self, event: RoutingEvent) -> list[Decision]:
        """Loads that can be told now: without the planner's where its predictor waits for the next layer's state."""
        self._owed = self.controller.waits and event.pre_attention_TD is None
        return self.controller.wishes() if self._owed else self.controller.ahead()

    def filled(self) -> None:
        """Waits for the initial fill."""
        for pool, slots in enumerate(self.controller.slots):
            for slot in range(slots):
                self.transfer.wait(pool, slot)

    def rearranged(self) -> None:
        """Between passes: residents are in other slots, or have left (see `PoolSizes`). No copy is on its way."""

    def let_go(self) -> None:
        """Between passes: the pools will be in other memory, and nothing may hold what they were in."""
        self.transfer.renewed()  # type: ignore[attr-defined]
        if isinstance(self.compute, FloatCompute):
            self.compute.forget()

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
            weights_TK=as_stored(weights_TK),
            hidden_TD=None if hidden_TD is None else as_stored(hidden_TD),
            phase_T=None if info is None else info.phase_T,
            token_T=None if info is None else info.token_T,
            fresh=info is not None and info.fresh and layer == 0,
            pre_attention_TD=self._entered_TD if layer == self.controller.shape.layers - 1 else None,
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
                self._copy(key_of(decision, i), decision.pool, slot, ahead=False)
            slots.append(slot)
        return slots

    def _submit(self, decision: Decision) -> None:
        """Queues loads that are to stay; members that stay already, pass through or were dropped have negative codes."""
        for i in (decision.codes >= 0).nonzero()[0].tolist():
            self._copy(key_of(decision, i), decision.pool, int(decision.codes[i]), ahead=True)

    def _copy(self, key: ExpertKey, pool: int, slot: int, ahead: bool) -> None:
        self.transfer.submit(key, pool, slot, ahead)

    def _compute_wave(self, decision: Decision, wave: np.ndarray, slots: list[int], rows: list[int]) -> None:
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
                self._from_slots(decision, some, rows)

    def _where_it_is(self, decision: Decision) -> None:
        """Residents from their slots, everything else (also a copy that has not landed) from the store."""
        there = self._there(decision)
        self._from_slots(decision, there, [])
        found = {i for i, _ in there}
        self._from_the_store(decision, [i for i in range(len(decision.experts)) if i not in found], [])

    def _to_compute_here(self, decision: Decision, rows: list[int]) -> list[int]:
        """Members that are not in their slots and go where the store has them, by the choice that "split" makes."""
        if self._choice is None:
            return []
        found = {i for i, _ in self._there(decision)}
        return self._choice.divide([i for i in range(len(decision.experts)) if i not in found], rows)[0]

    def _there(self, decision: Decision) -> list[tuple[int, int]]:
        """(member, slot) of the hits whose copies have landed."""
        pool = self.pools[decision.pool]
        hits = hits_of(decision).nonzero()[0].tolist()
        there = [(i, int(decision.slots[i])) for i in hits]
        return [(i, slot) for i, slot in there if pool.state(slot) is CopyState.READY]

    def _from_slots(self, decision: Decision, members: list[tuple[int, int]], rows: list[int]) -> None:
        if members:
            with self._pinned(decision, members), self._timed("from_slots", [i for i, _ in members], rows):
                places = [(int(decision.experts[i]), slot) for i, slot in members]
                self.compute.members(self.pools[decision.pool].buffer, places)

    def _from_the_store(self, decision: Decision, members: list[int], rows: list[int]) -> None:
        if members:
            assert self.store is not None
            self.in_place += int((~hits_of(decision)[members]).sum())
            with self._timed("in_place", members, rows):
                places = [(int(decision.experts[i]), self.store.row(key_of(decision, i))) for i in members]
                self.compute.members(self.store.rows_SB, places)

    @contextmanager
    def _timed(self, rate: str, members: list[int], rows: list[int]) -> Iterator[None]:
        """Tells the choice, if there is one, how long these members take."""
        begin_s = time.perf_counter()
        yield
        if self._choice is not None:
            getattr(self._choice, rate).took([rows[i] for i in members], time.perf_counter() - begin_s)

    @contextmanager
    def _pinned(self, decision: Decision, members: list[tuple[int, int]]) -> Iterator[None]:
        pool = self.pools[decision.pool]
        pinned = []
        try:
            for i, slot in members:
                pool.pin(slot, key_of(decision, i))
                pinned.append(slot)
            yield
        finally:
            for slot in pinned:
                pool.unpin(slot)


def hits_of(decision: Decision) -> np.ndarray:
    """bool: members that have a slot and are not to be copied into one (decided, not landed)."""
    hit: np.ndarray = (decision.codes < 0) & (decision.slots >= 0)
    return hit


def rows_of(decision: Decision, event: RoutingEvent) -> list[int]:
    """How many rows of the event each member has."""
    count_E = np.bincount(event.experts_TK[event.experts_TK >= 0])
    return [int(count_E[expert]) for expert in decision.experts.tolist()]


def without(wave: np.ndarray, members: list[int]) -> np.ndarray:
    """The rest of a wave."""
    return wave[~np.isin(wave, members)] if members else wave


def only(decision: Decision, members: list[int]) -> Decision:
    """The same with no loads but those of `members` whose slot nobody gets later in the same event (in another wave)."""
    last = {int(code): i for i, code in enumerate(decision.codes.tolist()) if code >= 0}
    codes = np.full(len(decision.codes), -1, decision.codes.dtype)
    stay = [i for i in members if last.get(int(decision.codes[i])) == i]
    codes[stay] = decision.codes[stay]
    return replace(decision, codes=codes)


def key_of(decision: Decision, i: int) -> ExpertKey:
    return ExpertKey(int(decision.layers[i]), int(decision.experts[i]))


def in_time(loads: list[Decision], pool: int) -> tuple[list[Decision], list[Decision]]:
    """(loads that may be copied while the event is computed, loads that must wait for its end).

    A policy's own wishes (kind PREFETCH in the event's pool) may evict the event's members, so that pool waits.
    """
    wishes = any(load.pool == pool and load.kind == PREFETCH for load in loads)
    late = [load for load in loads if wishes and load.pool == pool]
    return [load for load in loads if not (wishes and load.pool == pool)], late


def as_stored(values: torch.Tensor) -> np.ndarray:
    """float32 values as a trace stores them: clipped to and rounded to float16."""
    exact = values.detach().float().cpu().numpy()
    # `np.clip` takes longer than all the rest of it for the few numbers of a decode step
    return np.maximum(np.minimum(exact, _F16_MAX), -_F16_MAX).astype(np.float16).astype(np.float32)
