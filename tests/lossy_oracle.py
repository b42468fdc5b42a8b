"""Lossy modes as plain loops over tokens and ranks, and the stock model run with them through a hook.

Legend: T tokens, K top-k, E experts, D hidden size.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from rgpu.replay.controller import Controller
from rgpu.traces.moe_layers import moe_layers
from rgpu.types import RoutingEvent

Change = Callable[[int, np.ndarray, np.ndarray, np.ndarray], np.ndarray]  # layer, ids, weights, residents -> ids or -1


def light(weights_K: np.ndarray, rank: int, threshold: float, relative: str) -> bool:
    if rank == int(np.argmax(weights_K)):
        return False
    return bool(
        weights_K[rank] < np.float32(threshold) * (weights_K.max() if relative == "largest" else weights_K.sum())
    )


def skipped(
    ids_TK: np.ndarray, weights_TK: np.ndarray, resident_E: np.ndarray, threshold: float, relative: str, hits: bool
) -> np.ndarray:
    """Ids, -1 where nothing is computed."""
    tokens, k = ids_TK.shape
    out_TK = ids_TK.copy()
    for t in range(tokens):
        for r in range(k):
            if hits:
                out_TK[t, r] = -1 if light(weights_TK[t], r, threshold, relative) else ids_TK[t, r]
            elif not resident_E[ids_TK[t, r]]:
                users = [(s, q) for s in range(tokens) for q in range(k) if ids_TK[s, q] == ids_TK[t, r]]
                if all(light(weights_TK[s], q, threshold, relative) for s, q in users):
                    out_TK[t, r] = -1
    return out_TK


def substituted(
    ids_TK: np.ndarray, weights_TK: np.ndarray, resident_E: np.ndarray, router_ED: np.ndarray, similarity: float,
    threshold: float | None, relative: str,
) -> np.ndarray:  # fmt: skip
    """Ids, replaced by the nearest resident that the token does not use."""
    tokens, k = ids_TK.shape
    unit_ED = router_ED / np.linalg.norm(router_ED, axis=1, keepdims=True)
    cosine_EE = (unit_ED @ unit_ED.T).astype(np.float32)
    missing = {int(e) for e in ids_TK.reshape(-1) if not resident_E[e]}
    if threshold is not None:
        for t in range(tokens):
            for r in range(k):
                if not light(weights_TK[t], r, threshold, relative):
                    missing.discard(int(ids_TK[t, r]))
    out_TK, loaded = ids_TK.copy(), set()
    for t in range(tokens):
        used = set(ids_TK[t].tolist())
        for r in range(k):
            if ids_TK[t, r] in missing:
                there = [e for e in range(len(resident_E)) if resident_E[e] and e not in used]
                best = max(there, key=lambda e: cosine_EE[ids_TK[t, r], e], default=-1)
                if best < 0 or cosine_EE[ids_TK[t, r], best] < similarity:
                    loaded.add(int(ids_TK[t, r]))
                else:
                    out_TK[t, r] = best
                    used.add(best)
    return np.where(np.isin(ids_TK, list(loaded)), ids_TK, out_TK)


def hooked(
    model: Any, controller: Controller, change: Change, renormalise: bool = False, low: Any = None
) -> list[np.ndarray]:
    """Makes a stock model compute what `change` leaves of each event, which `controller` decides; returns the ids of the
    events so far. What is left out is computed by the experts of the model `low`, if given, and by nothing else."""
    seen: list[np.ndarray] = []
    for index, layer in enumerate(moe_layers(model)):
        left: list[torch.Tensor] = []
        copy = None if low is None else moe_layers(low)[index].experts

        def before(
            module: Any, args: tuple[Any, ...], index: int = index, left: list[torch.Tensor] = left
        ) -> tuple[Any, ...]:
            x_TD, ids_TK, weights_TK = args
            made_TK = change(index, ids_TK.numpy(), weights_TK.float().numpy(), controller.resident_LE()[index])
            controller.observe(RoutingEvent(index, 0, made_TK.astype(np.int16), weights_TK.float().numpy()))
            seen.append(made_TK)
            gone_TK = torch.from_numpy(made_TK < 0)
            kept_TK = weights_TK * ~gone_TK
            if renormalise and bool(gone_TK.any()):
                kept_TK = kept_TK * (weights_TK.sum(1, keepdim=True) / kept_TK.sum(1, keepdim=True))
            nothing = module.num_experts  # the id of an expert that is computed elsewhere
            left[:] = [x_TD, torch.where(gone_TK, ids_TK, nothing), weights_TK]
            return x_TD, torch.from_numpy(np.where(made_TK < 0, nothing, made_TK)), kept_TK

        def after(
            module: Any, args: Any, out_TD: torch.Tensor, left: list[torch.Tensor] = left, copy: Any = copy
        ) -> torch.Tensor:
            return out_TD if copy is None else out_TD + copy(*left)

        layer.experts.register_forward_pre_hook(before)
        layer.experts.register_forward_hook(after)
    return seen
