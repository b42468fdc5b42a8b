"""Gradient descent that every trained predictor shares: minibatches by seed, early stopping, a state that resumes.

Legend: B drawn units (rows or pieces of sequences), G groups of parameters with a score of their own.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from tqdm import tqdm

from rgpu.errors import InputError
from rgpu.predictors.files import write_atomic
from rgpu.predictors.ranges import check_number

Parameters = dict[str, torch.Tensor]
OPTIMISERS = ("adamw", "sgd")
MOMENTUM = 0.9
GAIN = 1e-4  # of recall: less does not count as one


@dataclass(frozen=True, slots=True)
class Schedule:
    """`epochs` at most, `batch` units a step, `lr` falling to 5 %, `patience` epochs without gain, decoupled `decay`."""

    epochs: int = 8
    batch: int = 256
    lr: float = 0.01
    patience: int = 3
    seed: int = 0
    optimiser: str = "adamw"
    decay: float = 0.0
    device: str = "cpu"

    def check(self, who: str) -> None:
        for name, low in (("epochs", 0), ("batch", 1), ("patience", 1)):
            if getattr(self, name) < low:
                raise InputError(f"predictor {who}: got {name} {getattr(self, name)}; expected {low} or more; raise it")
        check_number(who, "lr", self.lr, 0, 100, above=True)
        check_number(who, "decay", self.decay, 0, 100)
        if self.optimiser not in OPTIMISERS:
            raise InputError(
                f"predictor {who}: got optimiser {self.optimiser!r}; expected one of {', '.join(OPTIMISERS)}; "
                "set predictor.optimiser"
            )
        if not _usable(self.device):
            raise InputError(
                f"predictor {who}: got device {self.device}; expected cpu, or a cuda that torch can use; "
                "set predictor.device=cpu"
            )


def _usable(name: str) -> bool:
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        return False
    if device.type == "cuda":
        return torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()
    return device.type == "cpu"


class Problem(Protocol):
    """What is learnt. `units` int64: what a minibatch draws from; `key`: digest of the data, so that a state left by
    another training is not taken for this one's."""

    units: torch.Tensor
    key: str

    def loss(self, parameters: Parameters, units_B: torch.Tensor) -> torch.Tensor: ...

    def score(self, parameters: Parameters) -> torch.Tensor:
        """Recall on held-out sequences: float64 [G]."""
        ...

    def merge(self, better_G: torch.Tensor, new: Parameters, best: Parameters) -> Parameters:
        """The best parameters so far: those of `new` where their group got better."""
        ...


def whole(better_G: torch.Tensor, new: Parameters, best: Parameters) -> Parameters:
    """`merge` of a problem whose parameters have one score."""
    return {name: tensor.clone() for name, tensor in new.items()} if bool(better_G.all()) else best


def descend(
    who: str, start: Parameters, problem: Problem, schedule: Schedule, checkpoint: Path | None
) -> tuple[Parameters, list[dict[str, Any]]]:
    """(best parameters on the CPU, learning curve): one row an epoch with loss, recall, best recall and seconds.

    Epoch 0 is the start, which is kept where no epoch beats it. `checkpoint` is written after each epoch; a killed
    training of the same data and settings continues there and ends in the same parameters bit for bit.
    """
    device = torch.device(schedule.device)
    key = _key(schedule, problem, start)
    now = {name: tensor.detach().to(device) for name, tensor in start.items()}
    state = {f"now.{n}": t for n, t in now.items()} | {f"best.{n}": t.clone() for n, t in now.items()}
    for moment in ("first", "second") if schedule.optimiser == "adamw" else ("first",):
        state |= {f"{moment}.{n}": torch.zeros_like(t) for n, t in now.items()}
    curve, stale = _resume(checkpoint, key, state, device)
    if not curve:
        state["score"] = problem.score(now)
        curve.append(_row(0, None, state["score"], state["score"], 0.0))
    a_epoch = -(-len(problem.units) // schedule.batch)
    bar = tqdm(total=schedule.epochs, initial=len(curve) - 1, desc=who, unit="epoch", disable=None)
    for epoch in range(len(curve), schedule.epochs + 1):
        if stale >= schedule.patience:
            break
        began, losses = perf_counter(), []
        generator = torch.Generator().manual_seed(schedule.seed * 100_003 + epoch - 1)
        order = torch.randperm(len(problem.units), generator=generator)
        for i, units_B in enumerate(problem.units[order].split(schedule.batch)):
            step = (epoch - 1) * a_epoch + i
            rate = schedule.lr * (1 - 0.95 * step / (schedule.epochs * a_epoch))
            losses.append(_step(state, problem, units_B, schedule, step + 1, rate))
        now = _named(state, "now")
        score_G = problem.score(now)
        gain = float((score_G - state["score"]).clamp(min=0).mean())
        best = problem.merge(score_G > state["score"], now, _named(state, "best"))
        state |= {f"best.{n}": t for n, t in best.items()}
        state["score"] = torch.maximum(score_G, state["score"])
        stale = 0 if gain > GAIN else stale + 1
        mean = float(torch.stack(losses).mean())
        if not math.isfinite(mean):
            raise InputError(
                f"predictor {who}: got a loss of {mean} in epoch {epoch}; expected a finite one; lower predictor.lr"
            )
        curve.append(_row(epoch, mean, score_G, state["score"], perf_counter() - began))
        _keep(checkpoint, key, state, curve, stale)
        bar.update()
        bar.set_postfix(loss=f"{mean:.3f}", recall=f"{float(score_G.mean()):.3f}", refresh=False)
    bar.close()
    return {n: t.cpu() for n, t in _named(state, "best").items()}, curve


def _named(state: Parameters, kind: str) -> Parameters:
    return {name.removeprefix(f"{kind}."): t for name, t in state.items() if name.startswith(f"{kind}.")}


def _row(epoch: int, loss: float | None, score_G: torch.Tensor, best_G: torch.Tensor, seconds: float) -> dict[str, Any]:
    recalls = {"recall": float(score_G.mean()), "best_recall": float(best_G.mean())}
    return {"epoch": epoch, "loss": loss, **recalls, "seconds": round(seconds, 3)}


def _step(
    state: Parameters, problem: Problem, units_B: torch.Tensor, schedule: Schedule, step: int, rate: float
) -> torch.Tensor:
    now = {name: t.detach().requires_grad_() for name, t in _named(state, "now").items()}
    loss = problem.loss(now, units_B)
    for (name, tensor), gradient in zip(now.items(), torch.autograd.grad(loss, list(now.values())), strict=True):
        with torch.no_grad():
            state[f"now.{name}"] = _moved(state, name, tensor.detach(), gradient, schedule, step, rate)
    return loss.detach()


def _moved(
    state: Parameters, name: str, tensor: torch.Tensor, gradient: torch.Tensor, schedule: Schedule, step: int,
    rate: float,
) -> torch.Tensor:  # fmt: skip
    """One step of AdamW (Loshchilov and Hutter 2019, algorithm 2; torch.optim's costs seconds of imports, longer than
    small predictors train) or of SGD with momentum."""
    first = state[f"first.{name}"]
    tensor = tensor * (1 - rate * schedule.decay) if schedule.decay else tensor
    if schedule.optimiser == "sgd":
        return tensor - rate * first.mul_(MOMENTUM).add_(gradient)
    first.lerp_(gradient, 0.1)
    second = state[f"second.{name}"].mul_(0.999).addcmul_(gradient, gradient, value=0.001)
    spread = (second / (1 - 0.999**step)).sqrt_().add_(1e-8)
    return tensor - rate / (1 - 0.9**step) * first / spread


def _key(schedule: Schedule, problem: Problem, start: Parameters) -> str:
    """What a training state belongs to."""
    digest = hashlib.sha256(json.dumps(asdict(schedule)).encode() + problem.key.encode())
    for name, tensor in {"units": problem.units, **start}.items():
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _keep(
    checkpoint: Path | None, key: str, state: Mapping[str, torch.Tensor], curve: list[dict[str, Any]], stale: int
) -> None:
    if checkpoint is None:
        return
    metadata = {"key": key, "curve": json.dumps(curve), "stale": str(stale)}
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, np.ndarray] = {name: tensor.cpu().numpy() for name, tensor in state.items()}
    write_atomic(checkpoint, tensors, metadata)


def _resume(
    checkpoint: Path | None, key: str, state: Parameters, device: torch.device
) -> tuple[list[dict[str, Any]], int]:
    """Restore an interrupted training of the same data and settings; (its curve so far, epochs without gain)."""
    if checkpoint is None or not checkpoint.exists():
        return [], 0
    try:
        with safe_open(checkpoint, framework="pt") as file:
            metadata = file.metadata() or {}
        if metadata.get("key") != key:
            return [], 0
        found = load_file(checkpoint)
        state |= {name: tensor if name == "score" else tensor.to(device) for name, tensor in found.items()}
        return json.loads(metadata["curve"]), int(metadata["stale"])
    except (OSError, SafetensorError, KeyError, ValueError):
        return [], 0
