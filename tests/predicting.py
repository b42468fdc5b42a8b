"""A tiny model whose routing its hidden states explain, as a trace and as a checkpoint directory."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

import rgpu.conf
from rgpu.replay.prediction import evaluate
from rgpu.traces.trace import DECODE, PROMPT, Trace, TraceHeader

FOLDER = Path(rgpu.conf.__file__).parent / "predictor"
LAYERS, EXPERTS, TOP_K, HIDDEN = 4, 8, 2, 12
PROMPT_TOKENS = 4


def routers() -> np.ndarray:
    """float32 [L, E, D], values that bfloat16 holds exactly."""
    weights = np.random.default_rng(7).integers(-4, 5, (LAYERS, EXPERTS, HIDDEN))
    return (weights / 4).astype(np.float32)


def learnable_trace(seed: int = 0, sequences: int = 6, tokens: int = 30, logits: bool = False) -> Trace:
    """Hidden states drift from token to token and from layer to layer; a prompt is one pass. What enters a layer is its
    router's input before something is added and it is scaled."""
    rng = np.random.default_rng(seed)
    n = sequences * tokens
    hidden = np.empty((n, LAYERS, HIDDEN), np.float32)
    for t in range(n):
        fresh = rng.normal(size=HIDDEN)
        hidden[t, 0] = fresh if t % tokens == 0 else 0.8 * hidden[t - 1, 0] + 0.6 * fresh
        for layer in range(1, LAYERS):
            hidden[t, layer] = 0.95 * hidden[t, layer - 1] + 0.3 * rng.normal(size=HIDDEN)
    stored = hidden.astype(np.float16)
    apart = np.random.default_rng(seed + 1000)  # what enters a layer: most of its router's input, at a size of its own
    entering = (hidden + 0.3 * apart.normal(size=hidden.shape)) * apart.uniform(0.5, 4, (n, LAYERS, 1))
    scores = np.einsum("nld,led->nle", stored.astype(np.float32), routers())
    ids = np.argsort(-scores, axis=2, kind="stable")[:, :, :TOP_K]
    chosen = np.exp(np.take_along_axis(scores, ids, 2))
    step = np.maximum(np.arange(tokens) - PROMPT_TOKENS + 1, 0)
    passes = np.concatenate([step + s * (tokens - PROMPT_TOKENS + 1) for s in range(sequences)])
    phase = np.tile(np.where(np.arange(tokens) < PROMPT_TOKENS, PROMPT, DECODE), sequences)
    metas: list[dict[str, Any]] = [{"domain": "toy", "document": f"d{s}"} for s in range(sequences)]
    return Trace(
        TraceHeader("toy", EXPERTS, TOP_K, list(range(LAYERS)), expert_bytes=[64] * LAYERS, sequences=metas),
        ids.astype(np.uint8), np.arange(sequences + 1, dtype=np.int64) * tokens,
        np.tile(np.arange(tokens, dtype=np.int32), sequences), passes.astype(np.int32),
        weights=(chosen / chosen.sum(2, keepdims=True)).astype(np.float16), phase=phase.astype(np.uint8), hidden=stored,
        router_logits=scores.astype(np.float16) if logits else None,
        token_ids=stored[:, 0, :6].argmax(1).astype(np.int32),  # says something about the routing
        pre_attention=entering.astype(np.float16),
    )  # fmt: skip


def write_checkpoint(folder: Path, dtype: torch.dtype = torch.bfloat16, shards: bool = False) -> Path:
    """A transformers checkpoint directory with the routers of `routers` among other tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"num_experts_per_tok": TOP_K}))
    tensors = {f"model.layers.{i}.mlp.gate.weight": torch.from_numpy(w).to(dtype) for i, w in enumerate(routers())}
    tensors["model.layers.0.mlp.gate_proj.weight"] = torch.zeros(3, 2)
    if not shards:
        save_file(tensors, folder / "model.safetensors")
        return folder
    where = {}
    for number, (name, tensor) in enumerate(tensors.items()):
        where[name] = f"model-{number:05}.safetensors"
        save_file({name: tensor}, folder / where[name])
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return folder


def write_whole_checkpoint(folder: Path, shared: bool = False) -> Path:
    """As `write_checkpoint`, with norms, experts and, where asked for, a gated shared expert."""
    write_checkpoint(folder)
    rng = np.random.default_rng(8)
    tensors = load_file(folder / "model.safetensors")
    for layer in range(LAYERS):
        before = f"model.layers.{layer}."
        tensors[before + "post_attention_layernorm.weight"] = torch.from_numpy(
            rng.integers(2, 7, HIDDEN) / 4
        ).bfloat16()
        for name in [f"mlp.experts.{e}" for e in range(EXPERTS)] + (["mlp.shared_expert"] if shared else []):
            for part, shape in (("gate", (6, HIDDEN)), ("up", (6, HIDDEN)), ("down", (HIDDEN, 6))):
                weight = torch.from_numpy(rng.integers(-4, 5, shape) / 8)
                tensors[f"{before}{name}.{part}_proj.weight"] = weight.bfloat16()
        if shared:
            tensors[before + "mlp.shared_expert_gate.weight"] = torch.from_numpy(
                rng.normal(size=(1, HIDDEN))
            ).bfloat16()
    save_file(tensors, folder / "model.safetensors")
    return folder


def make(name: str, folder: Path, **overrides: Any) -> Any:
    """The predictor of conf/predictor/<name>.yaml; one that reads a model is given a tiny checkpoint."""
    cfg = OmegaConf.load(FOLDER / f"{name}.yaml")
    if "model" in cfg:
        cfg.model = str(write_checkpoint(folder / "checkpoint"))
    if "epochs" in cfg:
        cfg.epochs = min(cfg.epochs, 6)  # a tiny trace
    return instantiate(cfg, **overrides)


def routing_trace(
    ids: np.ndarray, experts: int, length: int, tokens: np.ndarray | None = None, domains: list[str] | None = None
) -> Trace:
    """Given ids [N, L, K] in sequences of `length` tokens, each its own decode pass."""
    count, layers, top_k = ids.shape
    domains = domains or ["toy"] * (count // length)
    metas: list[dict[str, Any]] = [{"domain": d, "document": f"d{s}"} for s, d in enumerate(domains)]
    return Trace(
        TraceHeader("toy", experts, top_k, list(range(layers)), expert_bytes=[64] * layers, sequences=metas),
        ids.astype(np.uint8), np.arange(count // length + 1, dtype=np.int64) * length,
        np.tile(np.arange(length, dtype=np.int32), count // length), np.arange(count, dtype=np.int32),
        phase=np.full(count, DECODE, np.uint8), token_ids=None if tokens is None else tokens.astype(np.int32),
    )  # fmt: skip


def choices(rng: np.random.Generator, count: int, experts: int, top_k: int) -> np.ndarray:
    """[N, K]: different experts, uniformly at random."""
    return rng.permuted(np.tile(np.arange(experts), (count, 1)), axis=1)[:, :top_k]


def recall_at_k(predictor: Any, trace: Trace) -> dict[int, float]:
    """By horizon (0: next token), over all layers."""
    rows = [r for r in evaluate(predictor, trace) if r["metric"] == "recall" and r["width"] == trace.header.top_k]
    sums = {h: [r for r in rows if r["horizon"] == h] for h in {r["horizon"] for r in rows}}
    return {
        h: float(sum(r["numerators"].sum() for r in some) / sum(r["denominators"].sum() for r in some))
        for h, some in sums.items()
    }
