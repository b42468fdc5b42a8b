"""Carries out the controller's decisions: copies experts into slots and computes each event from them, wave by wave.

Legend: T tokens, D hidden size, K top-k, U experts of an event, I expert width.
"""

from collections.abc import Callable

import numpy as np
import torch

from rgpu.contracts import TransferEngine
from rgpu.memory.slot_pool import SlotPool
from rgpu.policies.loop import PREFETCH
from rgpu.replay.controller import Controller, Decision
from rgpu.runtime.experts import PooledExperts
from rgpu.traces.passes import PassInfo
from rgpu.types import ExpertKey, RoutingEvent

_F16_MAX = 65504.0


class PoolExecutor:
    """Computes experts modules from slot pools. `rows_of_pass` describes the forward pass being computed.

    Bit-identical to transformers' `eager` experts on the same device: the same operations on the same groups of rows
    (an expert sees all its rows in one call), the outputs summed in ascending order of experts whatever wave made them.
    `hidden`: events carry the router's input.
    """

    def __init__(
        self, controller: Controller, pools: list[SlotPool], transfer: TransferEngine,
        rows_of_pass: Callable[[], PassInfo | None], hidden: bool,
    ) -> None:  # fmt: skip
        self.controller = controller
        self.pools = pools
        self.transfer = transfer
        self.rows_of_pass = rows_of_pass
        self.hidden = hidden
        for fill in controller.start():
            self._submit(fill)

    def __call__(
        self, module: PooledExperts, x_TD: torch.Tensor, ids_TK: torch.Tensor, weights_TK: torch.Tensor
    ) -> torch.Tensor:
        """[T, D]: what the experts of MoE layer `module.layer` give."""
        event = self._event(module.layer, x_TD, ids_TK, weights_TK)
        decision = self.controller.observe(event)
        ahead, late = in_time(self.controller.ahead(), decision.pool)
        groups = row_groups(event.experts_TK)
        outputs: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        last = len(decision.waves) - 1
        for w, wave in enumerate(decision.waves):
            slots = self._load(decision, wave)
            if w == last:  # earlier waves are computed: nothing of `ahead` can overwrite what they needed
                for load in ahead:
                    self._submit(load)
            for i, slot in zip(wave.tolist(), slots, strict=True):
                expert = int(decision.experts[i])
                token_N, rank_N = groups[expert]
                y_ND = self._compute(module, ExpertKey(module.layer, expert), slot, x_TD[token_N])
                y_ND = y_ND * weights_TK[token_N, rank_N, None]
                outputs[expert] = token_N, y_ND.to(x_TD.dtype)
        for load in late:
            self._submit(load)
        out_TD = torch.zeros_like(x_TD)
        for expert in sorted(outputs):
            out_TD.index_add_(0, *outputs[expert])
        return out_TD

    def _event(self, layer: int, x_TD: torch.Tensor, ids_TK: torch.Tensor, weights_TK: torch.Tensor) -> RoutingEvent:
        info = self.rows_of_pass()
        return RoutingEvent(
            layer=layer,
            pass_id=-1 if info is None else info.pass_id,
            experts_TK=ids_TK.detach().cpu().numpy().astype(np.int16),
            weights_TK=_as_stored(weights_TK),
            hidden_TD=_as_stored(x_TD) if self.hidden else None,
            phase_T=None if info is None else info.phase_T,
        )

    def _load(self, decision: Decision, wave: np.ndarray) -> list[int]:
        """Queues the copies of one wave; returns the slot of each of its members, staged ones behind the main slots."""
        staging = self.controller.slots[decision.pool]
        slots = []
        for i in wave.tolist():
            slot, resident = int(decision.slots[i]), int(decision.codes[i]) < 0
            if slot < 0:
                slot, resident, staging = staging, False, staging + 1
            if not resident:
                self.transfer.submit(ExpertKey(int(decision.layers[i]), int(decision.experts[i])), decision.pool, slot)
            slots.append(slot)
        return slots

    def _submit(self, decision: Decision) -> None:
        """Queues proactive loads; members that stay or were dropped have negative codes."""
        for i in (decision.codes >= 0).nonzero()[0].tolist():
            key = ExpertKey(int(decision.layers[i]), int(decision.experts[i]))
            self.transfer.submit(key, decision.pool, int(decision.codes[i]))

    def _compute(self, module: PooledExperts, key: ExpertKey, slot: int, x_ND: torch.Tensor) -> torch.Tensor:
        pool = self.controller.pool_of(key.layer)
        self.transfer.wait(pool, slot)
        gate_up, down = self.pools[pool].pin(slot, key)
        try:
            h_NI = module.apply_gate(torch.nn.functional.linear(x_ND, gate_up))
            return torch.nn.functional.linear(h_NI, down)
        finally:
            self.pools[pool].unpin(slot)


def in_time(loads: list[Decision], pool: int) -> tuple[list[Decision], list[Decision]]:
    """(loads that may be copied while the event is computed, loads that must wait for its end).

    A policy's own wishes (kind PREFETCH in the event's pool) may evict the event's members, so that pool waits.
    """
    wishes = any(load.pool == pool and load.kind == PREFETCH for load in loads)
    late = [load for load in loads if wishes and load.pool == pool]
    return [load for load in loads if not (wishes and load.pool == pool)], late


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


def _as_stored(values: torch.Tensor) -> np.ndarray:
    """float32 values as a trace stores them: clipped to and rounded to float16."""
    stored: np.ndarray = values.detach().clamp(-_F16_MAX, _F16_MAX).to(torch.float16).float().cpu().numpy()
    return stored
