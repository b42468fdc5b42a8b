"""A lossy mode on a model: between router and experts, before anything else sees the routing.

Legend: T tokens, K top-k, D hidden size.
"""

import inspect
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rgpu.replay.controller import Controller
from rgpu.runtime.compute import EventCompute
from rgpu.runtime.lossy import GIVEN_UP, Lossy, Rerouted
from rgpu.store.source import ExpertSource
from rgpu.traces.moe_layers import moe_layers
from rgpu.traces.passes import PassInfo
from rgpu.traces.trace import PADDING
from rgpu.types import ExpertKey


@dataclass(slots=True)
class LossyCounts:
    """Over all MoE layers, padding left out: rows of tokens, rows of which something was changed, (token, expert)
    assignments, those changed, the share of their token's gate weight that these had, summed; missing experts that an event
    did not load for it."""

    rows: int = 0
    rows_changed: int = 0
    assignments: int = 0
    changed: int = 0
    weight: float = 0.0
    not_loaded: int = 0


@dataclass(frozen=True, slots=True)
class LowCopies:
    """Every expert in low precision: where the copies are, and what computes them."""

    store: ExpertSource
    compute: EventCompute


class Rerouter:
    """Hooks into the experts modules of `model` until `stack` closes: their input is what `mode` leaves of the routing, so
    that recorder, controller and executor see that alone; what low-precision copies give is added to their output. Attach
    before a recorder."""

    def __init__(
        self, mode: Lossy, model: Any, controller: Controller, rows_of_pass: Callable[[], PassInfo | None],
        low: LowCopies | None, stack: ExitStack,
    ) -> None:  # fmt: skip
        self.mode, self.controller, self.low, self.counts = mode, controller, low, LossyCounts()
        self._rows_of_pass = rows_of_pass
        self._layers = controller.shape.layers
        self._low_part: tuple[torch.Tensor, np.ndarray, torch.Tensor] | None = None
        layers = moe_layers(model)
        mode.prepare([_rows_of(layer.router, layer.num_experts) for layer in layers], controller.shape.top_k)
        for index, layer in enumerate(layers):
            self._hook(index, layer.experts, stack)

    def section(self) -> dict[str, Any]:
        """The mode's settings and what it did so far, in all and for each token (of all layers together)."""
        counts, did = self.counts, self.mode.did
        tokens = counts.rows / self._layers
        return self.mode.settings() | {
            "tokens": round(tokens),
            "assignments": counts.assignments,
            did: counts.changed,
            f"{did}_per_token": round(counts.changed / max(1, tokens), 3),
            "not_loaded": counts.not_loaded,
            "not_loaded_per_token": round(counts.not_loaded / max(1, tokens), 3),
            "rows_changed": round(counts.rows_changed / max(1, counts.rows), 4),
            "gate_weight": round(counts.weight / max(1, counts.rows), 4),
        }

    def per_pass(self) -> dict[str, int]:
        """Counts that telemetry takes the difference of."""
        return {self.mode.did: self.counts.changed, "not_loaded": self.counts.not_loaded}

    def _hook(self, index: int, experts: Any, stack: ExitStack) -> None:
        names = list(inspect.signature(experts.forward).parameters)[:3]

        def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            x_TD, ids_TK, weights_TK = (args[i] if i < len(args) else kwargs[name] for i, name in enumerate(names))
            rest = {name: value for name, value in kwargs.items() if name not in names}
            return (x_TD, *self._reroute(index, x_TD, ids_TK, weights_TK)), rest

        def after(module: Any, _args: Any, out_TD: torch.Tensor) -> torch.Tensor:
            low, self._low_part = self._low_part, None
            return out_TD if low is None else out_TD + self._low(module, index, *low)

        stack.callback(experts.register_forward_pre_hook(before, with_kwargs=True).remove)
        if self.low is not None:
            stack.callback(experts.register_forward_hook(after).remove)

    def _reroute(
        self, layer: int, x_TD: torch.Tensor, ids_TK: torch.Tensor, weights_TK: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What the event is computed with instead of `ids_TK` and `weights_TK`."""
        self._low_part = None
        chosen_TK, gate_TK = ids_TK.numpy(), weights_TK.detach().float().numpy()
        resident_E = self.controller.resident_E(layer)
        made = self.mode.reroute(layer, chosen_TK, gate_TK, resident_E)
        self._count(chosen_TK, gate_TK, resident_E, made)
        if made is None:
            return ids_TK, weights_TK
        left_TK = torch.from_numpy(made.ids_TK)
        gone_TK = left_TK == GIVEN_UP
        kept_TK = weights_TK.masked_fill(gone_TK, 0)
        if self.mode.renormalise:
            kept_TK = kept_TK * (weights_TK.sum(1, keepdim=True) / kept_TK.sum(1, keepdim=True))
        if self.low is not None:
            low_TK = np.where(made.changed_TK, chosen_TK, GIVEN_UP).astype(np.int16)
            self._low_part = x_TD, low_TK, weights_TK
        return left_TK, kept_TK

    def _low(
        self, module: Any, layer: int, x_TD: torch.Tensor, ids_TK: np.ndarray, weights_TK: torch.Tensor
    ) -> torch.Tensor:
        """[T, D]: what the low-precision copies give."""
        assert self.low is not None
        store, compute = self.low.store, self.low.compute
        compute.begin(module, x_TD, ids_TK, weights_TK)
        members = [(e, store.row(ExpertKey(layer, e))) for e in np.unique(ids_TK).tolist() if e != GIVEN_UP]
        compute.members(store.rows_SB, members)
        return compute.finish()

    def _count(self, chosen_TK: np.ndarray, gate_TK: np.ndarray, resident_E: np.ndarray, made: Rerouted | None) -> None:
        counts, info = self.counts, self._rows_of_pass()
        padding_T = None if info is None or info.phase_T.max() != PADDING else info.phase_T == PADDING
        rows = len(chosen_TK) - (0 if padding_T is None else int(padding_T.sum()))
        counts.rows += rows
        counts.assignments += rows * chosen_TK.shape[1]
        if made is None:
            return
        avoided = chosen_TK[made.changed_TK & ~resident_E[chosen_TK]].tolist()
        counts.not_loaded += len(set(avoided).difference(made.ids_TK.reshape(-1).tolist()))  # sets: as quick as it gets
        changed_TK = made.changed_TK if padding_T is None else made.changed_TK & ~padding_T[:, None]
        counts.changed += int(np.count_nonzero(changed_TK))
        counts.rows_changed += int(np.count_nonzero(changed_TK.any(1)))
        counts.weight += float(((gate_TK * changed_TK).sum(1) / np.maximum(gate_TK.sum(1), 1e-12)).sum())


def _rows_of(router: Any, experts: int) -> np.ndarray | None:
    """float32 [E, D]: a router's weight; None where it has none of one row an expert."""
    weight = getattr(router, "weight", None)
    if weight is None or weight.dim() != 2 or len(weight) != experts:
        return None
    rows_ED: np.ndarray = weight.detach().float().cpu().numpy()
    return rows_ED
