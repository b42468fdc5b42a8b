"""Training of the linear probe: ridge start, ranking loss, early stopping, temperature.

Legend: N training rows, B rows of a batch, L MoE layers, H forecast rows a layer (1..horizon layers ahead, then the
next token), D hidden size, E experts, K top-k.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from tqdm import tqdm

from rgpu.predictors.base import write_atomic
from rgpu.predictors.linear_data import Rows, Whitening, map_logits, mean_recall
from rgpu.traces.split import split
from rgpu.traces.trace import Trace

LEARNT = ("weight", "bias")
TEMPERATURES = tuple(2.0 ** (i / 2) for i in range(-6, 13))
RIDGES = tuple(10.0 ** (i / 2) for i in range(4, -9, -1))  # of the mean variance; where equal the strongest wins
EXACT = 1e-6  # ridge where the relation is exact up to rounding
SPREAD = 8.0  # logits for the span of an indicator, 0 to 1


@dataclass(frozen=True, slots=True)
class Settings:
    """See `Linear`."""

    horizon: int
    epochs: int
    batch: int
    lr: float
    validation: float
    patience: int
    seed: int


def train(
    trace: Trace, settings: Settings, checkpoint: Path | None, router_LED: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Maps `weight_LHDE` and `bias_LHE` (float32) whose logits less the token's threshold are log-odds of being routed.

    1. Inputs are whitened per layer, so that one learning rate suits all directions.
    2. Maps start from ridge regression in closed form. Where router logits are known (recorded, or computed with
       `router_LED`) it is of the target layer's logits less those that its router gives on this layer's input, so that
       shrinkage leads to gate look-ahead and a short trace cannot do much worse; else of who was routed, 0 or 1.
    3. Adam minimises the Plackett-Luce likelihood of the ranked top-k (Luce 1959: drawn without replacement).
    4. Ridge and epoch are chosen for each forecast row by recall at width K, mean over layers, on held-out sequences;
       training stops when none gains.
    5. A temperature a map, fitted on the same held-out sequences, turns logits into calibrated chances.
    Inputs are held in memory as float32. `checkpoint`: state after each epoch; a killed training continues there.
    """
    rows = Rows(trace, settings.horizon)
    fit, held = _parts(trace, rows, settings)
    hidden_LND = torch.from_numpy(
        np.ascontiguousarray(trace.require("hidden", "predictor linear").transpose(1, 0, 2))
    ).float()
    white = Whitening(hidden_LND, fit)
    inputs_LND = white.inputs_LND
    known = _router_logits(trace, hidden_LND, white, fit, router_LED)
    weight, bias = _ridge_start(white, rows, fit, held, known)
    weight, bias = _descend(weight, bias, inputs_LND, rows, fit, held, settings, checkpoint)
    scale_LHE = _temperature(weight, bias, inputs_LND, rows, held).repeat_interleave(rows.experts, 1)[:, None]
    weight, bias = weight * scale_LHE, bias * scale_LHE
    weight = white.matrix_LDD @ weight  # fold whitening into the maps: they read the router's input as it is
    bias = bias - white.mean_L1D @ weight
    split_up = (rows.layers, -1, settings.horizon + 1, rows.experts)
    weight_LHDE = weight.view(split_up).transpose(1, 2).contiguous()
    return {"weight_LHDE": weight_LHDE.numpy(), "bias_LHE": bias.view(split_up)[:, 0].contiguous().numpy()}


def _parts(trace: Trace, rows: Rows, settings: Settings) -> tuple[torch.Tensor, torch.Tensor]:
    """Row numbers that train and that are held out: other documents, or the last rows where there is only one."""
    parts = split(trace, 1 - settings.validation, settings.seed)
    held = np.isin(rows.sequence_N[rows.real], parts.scored)
    if held.all():
        held = np.arange(len(held)) >= round(len(held) * (1 - settings.validation))
    if held.all() or not held.any():  # too short to hold anything out
        return torch.from_numpy(rows.real), torch.from_numpy(rows.real)
    return torch.from_numpy(rows.real[~held]), torch.from_numpy(rows.real[held])


def _router_logits(
    trace: Trace, hidden_LND: torch.Tensor, white: Whitening, fit: torch.Tensor, router_LED: np.ndarray | None
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Router logits [L, N, E] (up to a constant an expert) and routers [L, D, E]; None where neither is known."""
    if router_LED is not None:
        router_LDE = torch.from_numpy(router_LED).transpose(1, 2).contiguous()
        return hidden_LND @ router_LDE, router_LDE
    if trace.router_logits is None:
        return None
    logits_LNE = torch.from_numpy(np.ascontiguousarray(trace.router_logits.transpose(1, 0, 2))).float()
    solved = []
    for layer, logits_NE in enumerate(logits_LNE):  # a router is linear, so its logits on its own input give it away
        y_NE = logits_NE[fit] - logits_NE[fit].mean(0)
        crossed_DE = white.inputs_LND[layer, fit].T @ y_NE / len(fit)
        solved.append(white.matrix_LDD[layer] @ white.ridge(layer, crossed_DE, EXACT))
    return logits_LNE, torch.stack(solved)


def _ridge_start(
    white: Whitening, rows: Rows, fit: torch.Tensor, held: torch.Tensor,
    known: tuple[torch.Tensor, torch.Tensor] | None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Weights [L, D, H * E] and biases [L, 1, H * E] on whitened inputs, the best ridge of each forecast row."""
    count, experts, dims = rows.horizon + 1, rows.experts, white.inputs_LND.shape[2]
    prior, crossed = torch.zeros(2, rows.layers, dims, count * experts)
    bias = torch.zeros(rows.layers, 1, count * experts)
    for layer in range(rows.layers):
        for h in range(count):
            following = h == rows.horizon
            target = layer if following else layer + h + 1
            source = fit[rows.next_N[fit] >= 0] if following else fit
            if target >= rows.layers or not len(source):
                continue
            at = rows.next_N[source] if following else source
            columns, x_ND = slice(h * experts, (h + 1) * experts), white.inputs_LND[layer, source]
            if known is None:
                y_NE = SPREAD * rows.members(at, target)
            else:
                prior[layer, :, columns] = white.whitened(layer, known[1][target])
                y_NE = known[0][target, at] - x_ND @ prior[layer, :, columns]
            bias[layer, 0, columns] = y_NE.mean(0)
            crossed[layer, :, columns] = x_ND.T @ (y_NE - y_NE.mean(0)) / len(source)
    best, weight = torch.full((count,), -1.0, dtype=torch.float64), prior.clone()
    for ridge in RIDGES:
        tried = prior + torch.stack([white.ridge(layer, crossed[layer], ridge) for layer in range(rows.layers)])
        recall_H = mean_recall(tried, bias, white.inputs_LND, rows, held)
        weight = torch.where((recall_H > best).repeat_interleave(experts), tried, weight)
        best = torch.maximum(best, recall_H)
    return weight, bias


def _descend(
    weight: torch.Tensor, bias: torch.Tensor, inputs_LND: torch.Tensor, rows: Rows, fit: torch.Tensor,
    held: torch.Tensor, settings: Settings, checkpoint: Path | None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Adam with linear decay; returns, for each forecast row, the weights of its best epoch."""
    key = _key(settings, rows, inputs_LND, fit, weight)
    state = {"weight": weight.clone(), "bias": bias.clone(), "best_weight": weight.clone(), "best_bias": bias.clone()}
    state["best"] = mean_recall(weight, bias, inputs_LND, rows, held)
    state |= {f"{name}.{moment}": torch.zeros_like(state[name]) for name in LEARNT for moment in ("first", "second")}
    begin, stale = _resume(checkpoint, key, state)
    a_epoch = -(-len(fit) // settings.batch)
    step = begin * a_epoch
    bar = tqdm(total=settings.epochs, initial=begin, desc="linear", unit="epoch", disable=None)
    for epoch in range(begin, settings.epochs):
        if stale >= settings.patience:
            break
        order = torch.randperm(len(fit), generator=torch.Generator().manual_seed(settings.seed * 100_003 + epoch))
        for rows_B in fit[order].split(settings.batch):
            weight, bias = (state[name].requires_grad_() for name in LEARNT)
            loss = _plackett_luce(map_logits(weight, bias, inputs_LND, rows, rows_B), *rows.targets(rows_B))
            gradients = torch.autograd.grad(loss, (weight, bias))
            rate = settings.lr * (1 - 0.95 * step / (settings.epochs * a_epoch))
            step += 1
            for name, gradient in zip(LEARNT, gradients, strict=True):
                _adam(state, name, gradient, step, rate)
        weight, bias = state["weight"], state["bias"]
        recall_H = mean_recall(weight, bias, inputs_LND, rows, held)
        better = (recall_H > state["best"]).repeat_interleave(rows.experts)
        stale = 0 if (recall_H - state["best"]).clamp(min=0).mean() > 1e-4 else stale + 1
        state["best_weight"] = torch.where(better, weight, state["best_weight"])
        state["best_bias"] = torch.where(better, bias, state["best_bias"])
        state["best"] = torch.maximum(state["best"], recall_H)
        _keep(checkpoint, key, epoch + 1, stale, state)
        bar.update()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    bar.close()
    return state["best_weight"], state["best_bias"]


@torch.no_grad()
def _adam(state: dict[str, torch.Tensor], name: str, gradient: torch.Tensor, step: int, rate: float) -> None:
    """One step of Kingma and Ba 2015, algorithm 1 (torch.optim's costs seconds of imports, longer than this trains)."""
    first, second = state[f"{name}.first"], state[f"{name}.second"]
    first.lerp_(gradient, 0.1)
    second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
    spread = (second / (1 - 0.999**step)).sqrt_().add_(1e-8)
    state[name] = state[name].detach() - rate / (1 - 0.9**step) * first / spread


def _plackett_luce(logits_LBHE: torch.Tensor, ids_LBHK: torch.Tensor, valid_LBH: torch.Tensor) -> torch.Tensor:
    """Mean over rows of the summed negative log likelihood of the ranked top-k."""
    chosen = logits_LBHE.gather(3, ids_LBHK)
    rest = torch.logsumexp(logits_LBHE.scatter(3, ids_LBHK, -1e9), -1, keepdim=True)
    left = torch.logcumsumexp(torch.cat([rest, chosen.flip(-1)], -1), -1)[..., 1:].flip(
        -1
    )  # what each choice was among
    return ((left - chosen).sum(-1) * valid_LBH).sum() / logits_LBHE.shape[1]


@torch.no_grad()
def _temperature(
    weight: torch.Tensor, bias: torch.Tensor, inputs_LND: torch.Tensor, rows: Rows, held: torch.Tensor
) -> torch.Tensor:
    """Scale of each map's logits, least binary cross-entropy of `sigmoid(scale * (logit - threshold))`: [L, H]."""
    losses = torch.zeros(len(TEMPERATURES), rows.layers, rows.horizon + 1)
    for rows_B in held.split(2048):
        ids, valid = rows.targets(rows_B)
        logits = map_logits(weight, bias, inputs_LND, rows, rows_B)
        if rows.experts > rows.top_k:
            logits = logits - logits.topk(rows.top_k + 1, -1).values[..., -2:].mean(-1, keepdim=True)
        for i, scale in enumerate(TEMPERATURES):
            scaled = logits * scale
            loss = torch.nn.functional.softplus(scaled).sum(-1) - scaled.gather(3, ids).sum(-1)
            losses[i] += (loss * valid).sum(1)
    return torch.tensor(TEMPERATURES)[losses.argmin(0)]


def _key(settings: Settings, rows: Rows, inputs_LND: torch.Tensor, fit: torch.Tensor, start: torch.Tensor) -> str:
    """What a training state belongs to."""
    digest = hashlib.sha256(json.dumps(asdict(settings)).encode())
    for tensor in (rows.ids_LNK, rows.next_N, fit, inputs_LND[0], start):
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _keep(checkpoint: Path | None, key: str, epoch: int, stale: int, state: dict[str, torch.Tensor]) -> None:
    if checkpoint is None:
        return
    metadata = {"key": key, "epoch": str(epoch), "stale": str(stale)}
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(checkpoint, {name: tensor.numpy() for name, tensor in state.items()}, metadata)


def _resume(checkpoint: Path | None, key: str, state: dict[str, torch.Tensor]) -> tuple[int, int]:
    """Restore an interrupted training of the same data and settings; (epochs done, epochs without gain)."""
    if checkpoint is None or not checkpoint.exists():
        return 0, 0
    try:
        with safe_open(checkpoint, framework="pt") as file:
            metadata = file.metadata() or {}
        if metadata.get("key") != key:
            return 0, 0
        state.update(load_file(checkpoint))
    except (OSError, SafetensorError):
        return 0, 0
    return int(metadata["epoch"]), int(metadata["stale"])
