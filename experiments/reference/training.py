"""Pieces of reference-model training: batches, learning-rate schedule, checkpoints without pickle, held-out loss."""

import json
import os
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

DOMAINS = ("prose", "docs", "code", "french")


def load_tokens(corpus: Path, split: str) -> dict[str, np.ndarray]:
    """uint16 token array of each domain, memory-mapped."""
    return {d: np.load(corpus / f"tokens-{d}-{split}.npy", mmap_mode="r", allow_pickle=False) for d in DOMAINS}


def batch_at(tokens: dict[str, np.ndarray], step: int, batch: int, context: int, seed: int) -> torch.Tensor:
    """int64 [batch, context + 1]: sequence i comes from domain i mod 4. A function of (seed, step): resuming repeats it."""
    rng = np.random.default_rng((seed, step))
    rows = []
    for i in range(batch):
        data = tokens[DOMAINS[i % len(DOMAINS)]]
        start = int(rng.integers(0, len(data) - context - 1))
        rows.append(np.asarray(data[start : start + context + 1], dtype=np.int64))
    return torch.from_numpy(np.stack(rows))


def learning_rate(step: int, total: int, peak: float, warmup: int, decay_fraction: float) -> float:
    """Warm-up, stable, linear decay to 2 % of the peak (Hu et al. 2024, MiniCPM, "WSD")."""
    decay_from = int(total * (1 - decay_fraction))
    if step < warmup:
        return peak * (step + 1) / warmup
    if step < decay_from:
        return peak
    return peak * (1 - 0.98 * (step - decay_from) / max(1, total - decay_from))


def save_state(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Model and optimiser in one safetensors file, replaced atomically."""
    tensors = {}
    for name, param in model.named_parameters():
        tensors[f"model.{name}"] = param.detach()
        for key, value in optimizer.state.get(param, {}).items():
            tensors[f"{key}.{name}"] = value
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata={"step": str(step)})
    os.replace(partial, path)


def load_state(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Restores what `save_state` wrote and returns the number of steps done."""
    tensors = load_file(path)
    step = 0
    with torch.no_grad():
        for name, param in model.named_parameters():
            param.copy_(tensors[f"model.{name}"])
            optimizer.state[param] = {k: tensors[f"{k}.{name}"] for k in ("step", "exp_avg", "exp_avg_sq")}
            step = int(optimizer.state[param]["step"].item())
    return step


@torch.no_grad()
def held_out_loss(model: torch.nn.Module, tokens: dict[str, np.ndarray], limit: int, context: int) -> dict[str, float]:
    """Cross-entropy in nats per token on the first `limit` held-out tokens of each domain, windows of `context`."""
    model.eval()
    losses = {}
    for domain, data in tokens.items():
        windows = min(limit, len(data) - 1) // context
        total = 0.0
        for i in range(windows):
            ids = torch.from_numpy(np.asarray(data[i * context : (i + 1) * context + 1], dtype=np.int64))[None]
            logits = model(ids[:, :-1], output_router_logits=False).logits.float()
            total += torch.nn.functional.cross_entropy(logits[0], ids[0, 1:]).item()
        losses[domain] = total / windows
    model.train()
    return losses


def append_json(path: Path, row: dict[str, float | int]) -> None:
    with path.open("a") as out:
        out.write(json.dumps(row) + "\n")
