"""Training of the linear probe: whitening, ridge start, ranking loss, early stopping map by map, temperature.

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
from rgpu.traces.split import split
from rgpu.traces.trace import PADDING, Trace

TEMPERATURES = tuple(2.0 ** (i / 2) for i in range(-6, 13))
FLOOR = 1e-4  # of the mean eigenvalue: keeps whitening finite along directions without variance


@dataclass(frozen=True, slots=True)
class Settings:
    """See `Linear`."""

    horizon: int
    epochs: int
    batch: int
    lr: float
    ridge: float
    validation: float
    patience: int
    seed: int


class Rows:
    """Rows of a trace as training pairs: input (row, layer), target experts `h + 1` layers or one token later."""

    def __init__(self, trace: Trace, horizon: int) -> None:
        self.horizon, self.layers, self.top_k = horizon, trace.layers, trace.header.top_k
        self.experts, self.missing = trace.header.num_experts, trace.missing
        self.ids_LNK = torch.from_numpy(trace.expert_ids.astype(np.int64)).transpose(0, 1).contiguous()
        sequence_N = np.repeat(np.arange(trace.sequences), np.diff(trace.seq_offsets))
        real_N = np.ones(trace.tokens, bool) if trace.phase is None else trace.phase != PADDING
        follows = np.zeros(trace.tokens, bool)
        follows[:-1] = (sequence_N[1:] == sequence_N[:-1]) & real_N[1:]
        self.next_N = torch.from_numpy(np.where(follows, np.arange(trace.tokens) + 1, -1))
        self.real, self.sequence_N = np.flatnonzero(real_N), sequence_N

    def targets(self, rows_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Experts int64 [L, B, H, K] in rank order and bool [L, B, H]: whether that target exists and was recorded."""
        ids = torch.full((self.layers, len(rows_B), self.horizon + 1, self.top_k), self.missing, dtype=torch.int64)
        for h in range(min(self.horizon, self.layers - 1)):
            ids[: self.layers - h - 1, :, h] = self.ids_LNK[h + 1 :, rows_B]
        after_B = self.next_N[rows_B]
        ids[:, after_B >= 0, -1] = self.ids_LNK[:, after_B[after_B >= 0]]
        valid = (ids < self.experts).all(-1)
        return torch.where(valid[..., None], ids, 0), valid


def train(trace: Trace, settings: Settings, checkpoint: Path | None) -> dict[str, np.ndarray]:
    """Maps `weight_LHDE` and `bias_LHE` (float32) whose logits less the token's threshold are log-odds of being routed.

    1. Inputs are whitened per layer, so that one learning rate suits all directions.
    2. Where the trace has router logits, the maps start from the ridge regression on the target layer's logits: far
       more is known about a router from its logits than from its choices. Otherwise they start from zero.
    3. Adam minimises the Plackett-Luce likelihood of the ranked top-k (Luce 1959: drawn without replacement).
    4. Each map keeps the epoch with the best recall at width K on held-out sequences; training stops when none gains.
    5. A temperature a map, fitted on the same held-out sequences, turns logits into calibrated chances.
    Inputs are held in memory as float32. `checkpoint`: state after each epoch; a killed training continues there.
    """
    rows = Rows(trace, settings.horizon)
    fit, held = _parts(trace, rows, settings)
    hidden_LND = torch.from_numpy(np.ascontiguousarray(trace.require("hidden", "predictor linear").transpose(1, 0, 2)))
    inputs_LND, mean_L1D, whiten_LDD = _whiten(hidden_LND.float(), fit)
    shape = (rows.layers, inputs_LND.shape[2], (settings.horizon + 1) * rows.experts)
    weight, bias = torch.zeros(shape), torch.zeros(shape[0], 1, shape[2])
    if trace.router_logits is not None:
        _ridge(weight, bias, inputs_LND, rows, fit, trace.router_logits, settings.ridge)
    weight, bias = _descend(weight, bias, inputs_LND, rows, fit, held, settings, checkpoint)
    scale_LHE = _temperature(weight, bias, inputs_LND, rows, held).repeat_interleave(rows.experts, 1)[:, None]
    weight, bias = weight * scale_LHE, bias * scale_LHE
    weight = whiten_LDD @ weight  # fold whitening into the maps: they read the router's input as it is
    bias = bias - mean_L1D @ weight
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


def _whiten(hidden_LND: torch.Tensor, fit: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    mean_L1D = hidden_LND[:, fit].mean(1, keepdim=True)
    centred = hidden_LND - mean_L1D
    covariance = centred[:, fit].transpose(1, 2) @ centred[:, fit] / len(fit)
    values_LD, vectors_LDD = torch.linalg.eigh(covariance.double())
    floor = FLOOR * values_LD.mean(1, keepdim=True) + 1e-12
    whiten = (vectors_LDD / torch.sqrt(values_LD.clamp(min=0) + floor)[:, None]).float()
    return centred @ whiten, mean_L1D, whiten


def _ridge(
    weight: torch.Tensor, bias: torch.Tensor, inputs_LND: torch.Tensor, rows: Rows, fit: torch.Tensor,
    logits_NLE: np.ndarray, ridge: float,
) -> None:  # fmt: skip
    """Least squares on the target layer's router logits, written into `weight` and `bias`."""
    dims, experts = inputs_LND.shape[2], rows.experts
    for layer in range(rows.layers):
        for h in range(rows.horizon + 1):
            following = h == rows.horizon
            target = layer if following else layer + h + 1
            if target >= rows.layers:
                continue
            source = fit[rows.next_N[fit] >= 0] if following else fit
            if not len(source):
                continue
            at = rows.next_N[source] if following else source
            y_NE = torch.from_numpy(logits_NLE[at.numpy(), target].astype(np.float32))
            x_ND, mean_E = inputs_LND[layer, source], y_NE.mean(0)
            gram = x_ND.T @ x_ND + ridge * len(source) * torch.eye(dims)
            columns = slice(h * experts, (h + 1) * experts)
            weight[layer, :, columns] = torch.linalg.solve(gram, x_ND.T @ (y_NE - mean_E))
            bias[layer, 0, columns] = mean_E


def _descend(
    weight: torch.Tensor, bias: torch.Tensor, inputs_LND: torch.Tensor, rows: Rows, fit: torch.Tensor,
    held: torch.Tensor, settings: Settings, checkpoint: Path | None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Adam with linear decay; returns, for each map, the weights of its best epoch."""
    weight, bias = weight.requires_grad_(), bias.requires_grad_()
    optimizer = torch.optim.Adam([weight, bias], lr=settings.lr)
    key = _key(settings, rows, inputs_LND, fit)
    state = {"best_weight": weight.detach().clone(), "best_bias": bias.detach().clone()}
    state["best"] = _recall(weight, bias, inputs_LND, rows, held)
    begin = _resume(checkpoint, key, weight, bias, optimizer, state)
    steps = settings.epochs * -(-len(fit) // settings.batch)
    step, stale = begin[0] * -(-len(fit) // settings.batch), begin[1]
    bar = tqdm(total=settings.epochs, initial=begin[0], desc="linear", unit="epoch", disable=None)
    for epoch in range(begin[0], settings.epochs):
        if stale >= settings.patience:
            break
        order = torch.randperm(len(fit), generator=torch.Generator().manual_seed(settings.seed * 100_003 + epoch))
        for rows_B in fit[order].split(settings.batch):
            for group in optimizer.param_groups:
                group["lr"] = settings.lr * (1 - 0.95 * step / steps)
            loss = _plackett_luce(_logits(weight, bias, inputs_LND, rows, rows_B), *rows.targets(rows_B))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
        recall_LH = _recall(weight, bias, inputs_LND, rows, held)
        better_LH = recall_LH > state["best"]
        stale = 0 if (recall_LH - state["best"]).clamp(min=0).mean() > 1e-4 else stale + 1
        columns = better_LH.repeat_interleave(rows.experts, 1)[:, None]
        state["best_weight"] = torch.where(columns, weight.detach(), state["best_weight"])
        state["best_bias"] = torch.where(columns, bias.detach(), state["best_bias"])
        state["best"] = torch.maximum(state["best"], recall_LH)
        _keep(checkpoint, key, epoch + 1, stale, weight, bias, optimizer, state)
        bar.update()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    bar.close()
    return state["best_weight"], state["best_bias"]


def _logits(
    weight: torch.Tensor, bias: torch.Tensor, inputs_LND: torch.Tensor, rows: Rows, rows_B: torch.Tensor
) -> torch.Tensor:
    """float32 [L, B, H, E]."""
    return torch.baddbmm(bias, inputs_LND[:, rows_B], weight).view(
        rows.layers, len(rows_B), rows.horizon + 1, rows.experts
    )


def _plackett_luce(logits_LBHE: torch.Tensor, ids_LBHK: torch.Tensor, valid_LBH: torch.Tensor) -> torch.Tensor:
    """Mean over rows of the summed negative log likelihood of the ranked top-k."""
    chosen = logits_LBHE.gather(3, ids_LBHK)
    rest = torch.logsumexp(logits_LBHE.scatter(3, ids_LBHK, -1e9), -1, keepdim=True)
    left = torch.logcumsumexp(torch.cat([rest, chosen.flip(-1)], -1), -1)[..., 1:].flip(
        -1
    )  # what each choice was among
    return ((left - chosen).sum(-1) * valid_LBH).sum() / logits_LBHE.shape[1]


@torch.no_grad()
def _recall(
    weight: torch.Tensor, bias: torch.Tensor, inputs_LND: torch.Tensor, rows: Rows, held: torch.Tensor
) -> torch.Tensor:
    """Recall at width K of each map on the held-out rows: float64 [L, H]."""
    hits = torch.zeros(rows.layers, rows.horizon + 1, dtype=torch.float64)
    count = torch.zeros_like(hits)
    for rows_B in held.split(2048):
        ids, valid = rows.targets(rows_B)
        top = _logits(weight, bias, inputs_LND, rows, rows_B).topk(rows.top_k, -1).indices
        found = (top[..., None] == ids[..., None, :]).any(-1).sum(-1)
        hits += (found * valid).sum(1)
        count += valid.sum(1) * rows.top_k
    return hits / count.clamp(min=1)


@torch.no_grad()
def _temperature(
    weight: torch.Tensor, bias: torch.Tensor, inputs_LND: torch.Tensor, rows: Rows, held: torch.Tensor
) -> torch.Tensor:
    """Scale of each map's logits, least binary cross-entropy of `sigmoid(scale * (logit - threshold))`: [L, H]."""
    losses = torch.zeros(len(TEMPERATURES), rows.layers, rows.horizon + 1)
    for rows_B in held.split(2048):
        ids, valid = rows.targets(rows_B)
        logits = _logits(weight, bias, inputs_LND, rows, rows_B)
        if rows.experts > rows.top_k:
            logits = logits - logits.topk(rows.top_k + 1, -1).values[..., -2:].mean(-1, keepdim=True)
        for i, scale in enumerate(TEMPERATURES):
            scaled = logits * scale
            loss = torch.nn.functional.softplus(scaled).sum(-1) - scaled.gather(3, ids).sum(-1)
            losses[i] += (loss * valid).sum(1)
    return torch.tensor(TEMPERATURES)[losses.argmin(0)]


def _key(settings: Settings, rows: Rows, inputs_LND: torch.Tensor, fit: torch.Tensor) -> str:
    """What a training state belongs to."""
    digest = hashlib.sha256(json.dumps(asdict(settings)).encode())
    for tensor in (rows.ids_LNK, rows.next_N, fit, inputs_LND[0]):
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _keep(
    checkpoint: Path | None, key: str, epoch: int, stale: int, weight: torch.Tensor, bias: torch.Tensor,
    optimizer: torch.optim.Adam, state: dict[str, torch.Tensor],
) -> None:  # fmt: skip
    if checkpoint is None:
        return
    tensors = {"weight": weight.detach(), "bias": bias.detach(), **state}
    for name, parameter in (("weight", weight), ("bias", bias)):
        tensors |= {f"{name}.{k}": v for k, v in optimizer.state[parameter].items()}
    metadata = {"key": key, "epoch": str(epoch), "stale": str(stale)}
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(checkpoint, {name: tensor.numpy() for name, tensor in tensors.items()}, metadata)


def _resume(
    checkpoint: Path | None, key: str, weight: torch.Tensor, bias: torch.Tensor, optimizer: torch.optim.Adam,
    state: dict[str, torch.Tensor],
) -> tuple[int, int]:  # fmt: skip
    """Restore an interrupted training of the same data and settings; (epochs done, epochs without gain)."""
    if checkpoint is None or not checkpoint.exists():
        return 0, 0
    try:
        with safe_open(checkpoint, framework="pt") as file:
            metadata = file.metadata() or {}
        if metadata.get("key") != key:
            return 0, 0
        tensors = load_file(checkpoint)
    except (OSError, SafetensorError):
        return 0, 0
    with torch.no_grad():
        for name, parameter in (("weight", weight), ("bias", bias)):
            parameter.copy_(tensors[name])
            moments = ("step", "exp_avg", "exp_avg_sq")
            optimizer.state[parameter] = {k: tensors[f"{name}.{k}"] for k in moments}
    for name in state:
        state[name] = tensors[name]
    return int(metadata["epoch"]), int(metadata["stale"])
