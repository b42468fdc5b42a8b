"""Training of linear probes: ridge start, ranking loss, early stopping, temperature.

Legend: B rows of a batch, L MoE layers, H forecast rows a layer (1..horizon layers ahead, then the next token), D hidden
size, E experts, K top-k, M = H * E outputs.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rgpu.predictors.descent import Parameters, Schedule, descend
from rgpu.predictors.linear_data import Whitening
from rgpu.predictors.training_rows import HiddenRows, Rows, at_once
from rgpu.predictors.training_scores import batches, mean_recall, plackett_luce, temperature
from rgpu.traces.trace import Trace

RIDGES = tuple(10.0 ** (i / 2) for i in range(4, -9, -1))  # of the mean variance; where equal the strongest wins
EXACT = 1e-6  # ridge where the relation is exact up to rounding
SPREAD = 8.0  # logits for the span of an indicator, 0 to 1

Teacher = Callable[[torch.Tensor], torch.Tensor]  # row numbers [B] -> what the maps start from, float32 [L, B, E]
Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]  # as `plackett_luce`


def train(
    trace: Trace, horizon: int, validation: float, schedule: Schedule, checkpoint: Path | None,
    router_LED: np.ndarray | None, kept_bytes: int, parameters: dict[str, Any], who: str = "linear",
    inputs: HiddenRows | None = None, loss: Loss = plackett_luce,
) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:  # fmt: skip
    """Maps `weight_LHDE` and `bias_LHE` (float32) whose logits less the token's threshold are log-odds of being routed,
    and the learning curve.

    1. Inputs are whitened per layer, so that one learning rate suits all directions.
    2. Maps start from ridge regression in closed form. Where router logits are known (recorded, or computed with
       `router_LED`) it is of the target layer's logits less those that its router gives on this layer's input, so that
       shrinkage leads to gate look-ahead and a short trace cannot do much worse; else of who was routed, 0 or 1.
    3. Descent minimises `loss`, by default the Plackett-Luce likelihood of the ranked top-k.
    4. Ridge and epoch are chosen for each forecast row by recall at width K, mean over layers, on held-out sequences;
       training stops when none gains.
    5. A temperature a map, fitted on the same held-out sequences, turns logits into calibrated chances.

    `parameters`, all of the predictor's, tell its training states from those of others. `inputs`: what maps read instead of
    the routers' inputs; then only recorded logits count as known, and `router_LED` is what the routers would be on `inputs`.
    """
    rows = Rows(trace, horizon)
    fit, held = rows.parts(trace, validation, schedule.seed)
    hidden = HiddenRows(trace.require("hidden", "predictor linear")) if inputs is None else inputs
    white = Whitening(hidden, fit, torch.from_numpy(rows.real), kept_bytes)
    if inputs is None:
        teacher, router_LDE = _teacher(trace, rows, hidden, white, fit, router_LED)
    else:
        teacher, router_LDE = _beside(trace, rows, router_LED)
    start = _ridge_start(white, rows, fit, held, teacher, router_LDE)
    key = rows.key(who, parameters, [hidden], fit, held)
    problem = _Maps(key, white, rows, fit, held, schedule.device, loss)
    best, curve = descend(who, start, problem, schedule, checkpoint)
    weight, bias = best["weight"], best["bias"]
    problem.device = torch.device("cpu")
    scale_LH = temperature(batches(lambda rows_B: problem.logits(best, rows_B), held, problem.step), rows)
    scale_L1M = scale_LH.repeat_interleave(rows.experts, 1)[:, None]
    weight = white.matrix_LDD @ (weight * scale_L1M)  # fold whitening in: maps read the router's input as it is
    bias = bias * scale_L1M - white.mean_L1D @ weight
    split_up = (rows.layers, -1, horizon + 1, rows.experts)
    weight_LHDE = weight.view(split_up).transpose(1, 2).contiguous()
    tensors = {"weight_LHDE": weight_LHDE.numpy(), "bias_LHE": bias.view(split_up)[:, 0].contiguous().numpy()}
    return tensors, curve


class _Maps:
    """All maps at once: `weight` [L, D, M] and `bias` [L, 1, M] on whitened inputs; a score for each forecast row."""

    def __init__(
        self, key: str, white: Whitening, rows: Rows, fit: torch.Tensor, held: torch.Tensor, device: str, loss: Loss
    ) -> None:
        self.key, self.white, self.rows, self.units, self.held = key, white, rows, fit, held
        self._loss = loss
        self.device, self.step = torch.device(device), rows.together(white.matrix_LDD.shape[1])

    def logits(self, parameters: Parameters, rows_B: torch.Tensor) -> torch.Tensor:
        x_LBD = self.white.inputs(rows_B).to(self.device)
        found = torch.baddbmm(parameters["bias"], x_LBD, parameters["weight"])
        return found.view(self.rows.layers, len(rows_B), self.rows.horizon + 1, self.rows.experts)

    def loss(self, parameters: Parameters, units_B: torch.Tensor) -> torch.Tensor:
        ids, valid = self.rows.targets(units_B)
        return self._loss(self.logits(parameters, units_B), ids.to(self.device), valid.to(self.device))

    def score(self, parameters: Parameters) -> torch.Tensor:
        with torch.no_grad():
            return mean_recall(batches(lambda rows_B: self.logits(parameters, rows_B), self.held, self.step), self.rows)

    def merge(self, better_G: torch.Tensor, new: Parameters, best: Parameters) -> Parameters:
        better_M = better_G.repeat_interleave(self.rows.experts).to(self.device)
        return {name: torch.where(better_M, new[name], best[name]) for name in best}


def _teacher(
    trace: Trace, rows: Rows, hidden: HiddenRows, white: Whitening, fit: torch.Tensor, router_LED: np.ndarray | None
) -> tuple[Teacher, torch.Tensor | None]:
    """What the maps start from, and the routers [L, D, E] where router logits are known."""
    if router_LED is not None:
        router_LDE = torch.from_numpy(router_LED).transpose(1, 2).contiguous()
        return (lambda rows_B: hidden(rows_B) @ router_LDE), router_LDE
    if trace.router_logits is None:
        return (lambda rows_B: SPREAD * rows.members(rows_B)), None
    recorded = HiddenRows(trace.router_logits)
    # a router is linear, so its logits on its own input give it away
    crossed, _ = _crossed(fit, white, lambda rows_B: recorded(rows_B)[:, :, None], (rows.layers, 1, rows.experts))
    return recorded, white.matrix_LDD @ white.ridge(crossed, EXACT)


def _beside(trace: Trace, rows: Rows, router_LED: np.ndarray | None) -> tuple[Teacher, torch.Tensor | None]:
    """The same for maps of other inputs than the routers'."""
    if trace.router_logits is None:
        return (lambda rows_B: SPREAD * rows.members(rows_B)), None
    router_LDE = None if router_LED is None else torch.from_numpy(router_LED).transpose(1, 2).contiguous()
    return HiddenRows(trace.router_logits), router_LDE


def _crossed(
    source: torch.Tensor, white: Whitening, targets: Callable[[torch.Tensor], torch.Tensor], shape: tuple[int, int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Covariance [L, D, H * E] of whitened inputs with targets [L, B, H, E] over the rows, and mean targets [L, H * E]."""
    layers, count, experts = shape
    dims = white.matrix_LDD.shape[2]
    product = torch.zeros(layers, dims, count * experts)
    x_sum, y_sum = torch.zeros(layers, dims), torch.zeros(layers, count * experts)
    for rows_B in source.split(at_once(4 * layers * (dims + 2 * count * experts))):
        x_LBD, y_LBM = white.inputs(rows_B), targets(rows_B).reshape(layers, len(rows_B), -1)
        product += x_LBD.transpose(1, 2) @ y_LBM
        x_sum += x_LBD.sum(1)
        y_sum += y_LBM.sum(1)
    n = max(1, len(source))
    return product / n - (x_sum / n)[:, :, None] * (y_sum / n)[:, None], y_sum / n


def _ridge_start(
    white: Whitening, rows: Rows, fit: torch.Tensor, held: torch.Tensor, teacher: Teacher,
    router_LDE: torch.Tensor | None,
) -> Parameters:  # fmt: skip
    """Weights [L, D, H * E] and biases [L, 1, H * E] on whitened inputs, the best ridge of each forecast row."""
    count, experts, layers = rows.horizon + 1, rows.experts, rows.layers
    prior = torch.zeros(layers, white.matrix_LDD.shape[2], count * experts)
    for layer in range(layers if router_LDE is not None else 0):
        for h, target in enumerate(_target_layers(layer, rows)):
            if target is not None:
                prior[layer, :, h * experts : (h + 1) * experts] = white.whitened(layer, router_LDE[target])  # type: ignore[index]

    def residual(rows_B: torch.Tensor, following: bool) -> torch.Tensor:
        columns = slice(rows.horizon * experts, None) if following else slice(0, rows.horizon * experts)
        y_LBE = teacher(rows.next_N[rows_B] if following else rows_B)
        y = torch.zeros(layers, len(rows_B), 1 if following else rows.horizon, experts)
        if following:
            y[:, :, 0] = y_LBE
        for h in range(0 if following else min(rows.horizon, layers - 1)):
            y[: layers - h - 1, :, h] = y_LBE[h + 1 :]
        return y - (white.inputs(rows_B) @ prior[..., columns]).view(y.shape)

    followed = fit[rows.next_N[fit] >= 0]
    ahead = _crossed(fit, white, lambda rows_B: residual(rows_B, False), (layers, rows.horizon, experts))
    after = _crossed(followed, white, lambda rows_B: residual(rows_B, True), (layers, 1, experts))
    crossed, bias = torch.cat([ahead[0], after[0]], 2), torch.cat([ahead[1], after[1]], 1)[:, None]
    best, weight = torch.full((count,), -1.0, dtype=torch.float64), prior.clone()
    for ridge in RIDGES:
        tried = prior + white.ridge(crossed, ridge)

        def logits(rows_B: torch.Tensor, tried: torch.Tensor = tried) -> torch.Tensor:
            return torch.baddbmm(bias, white.inputs(rows_B), tried).view(layers, len(rows_B), count, experts)

        recall_H = mean_recall(batches(logits, held, rows.together(prior.shape[1])), rows)
        weight = torch.where((recall_H > best).repeat_interleave(experts), tried, weight)
        best = torch.maximum(best, recall_H)
    return {"weight": weight, "bias": bias}


def _target_layers(layer: int, rows: Rows) -> list[int | None]:
    """The layer that each forecast row made at `layer` speaks of; None past the last."""
    later = [layer + h if layer + h < rows.layers else None for h in range(1, rows.horizon + 1)]
    return [*later, layer]
