"""Run a MoE model on prompts and write down its routing as a trace."""

from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from tqdm import tqdm

from rgpu.errors import InputError
from rgpu.experiments.command import command
from rgpu.experiments.loading import load_model
from rgpu.experiments.prompts import Prompt, read_prompts
from rgpu.traces.recorder import TraceRecorder
from rgpu.traces.storage import load_trace
from rgpu.traces.trace import DECODE, PROMPT, SHARDED, Trace

MODES = ("generate", "prompt")


def record(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    out: Path | str,
    *,
    mode: str = "generate",
    batch: int = 1,
    max_new_tokens: int = 128,
    min_new_tokens: int = 0,
    temperature: float = 0.0,
    seed: int = 0,
    hidden: bool = False,
    router_logits: bool = False,
    pre_attention: bool = False,
    padding: bool = False,
    provenance: dict[str, Any] | None = None,
) -> Path:
    """Write the trace of `model` on `prompts` to `out`: continued (`generate`) or only read (`prompt`, not on-policy).

    Greedy at temperature 0, else sampled with a generator seeded by (seed, first prompt of the batch); the caller's
    random state is left alone. Raises `InputError` for an unknown mode and for texts beyond the model's context.
    """
    _check(model, prompts, mode, batch, max_new_tokens, temperature)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (tokenizer.eos_token_id or 0)
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature > 0 else {"do_sample": False}
    made = {"mode": mode, "batch": batch, "temperature": temperature, "seed": seed, **(provenance or {})}
    options: dict[str, Any] = {
        "hidden": hidden,
        "router_logits": router_logits,
        "pre_attention": pre_attention,
        "padding": padding,
        "on_policy": mode == "generate",
    }
    with (
        TraceRecorder(model, out, provenance=made, **options) as recorder,
        torch.inference_mode(),
        torch.random.fork_rng(),
    ):
        for start in tqdm(range(0, len(prompts), batch), desc="record", unit="batch", disable=None):
            group = prompts[start : start + batch]
            ids, mask = _pad([p.token_ids for p in group], pad, left=mode == "generate")
            ids, mask = ids.to(model.device), mask.to(model.device)
            recorder.sequences([{"kind": "generation" if mode == "generate" else "prompt", **p.meta} for p in group])
            if mode == "prompt":
                model(input_ids=ids, attention_mask=mask, use_cache=False)
                continue
            torch.manual_seed(seed * 1_000_003 + start)
            lengths = {"max_new_tokens": max_new_tokens, "min_new_tokens": min_new_tokens or None}
            model.generate(ids, attention_mask=mask, pad_token_id=pad, **lengths, **sampling)
    return Path(out)


def summary(trace: Trace, path: Path) -> dict[str, Any]:
    """What `rgpu record` says of a trace: sizes, bytes on disk with the shards, what it is of."""
    phase = np.zeros(0) if trace.phase is None else trace.phase
    shards = {
        name: sum(f.stat().st_size for f in path.parent.glob(f"{path.stem}.{name}-*.safetensors")) for name in SHARDED
    }
    return {
        "trace": str(path),
        "model": trace.header.model,
        "sequences": trace.sequences,
        "tokens": trace.tokens,
        "prompt_tokens": int((phase == PROMPT).sum()),
        "decode_tokens": int((phase == DECODE).sum()),
        "layers": trace.layers,
        "experts": trace.header.num_experts,
        "top_k": trace.header.top_k,
        "arrays": [*trace.arrays(), *(name for name, size in shards.items() if size)],
        "bytes": path.stat().st_size + sum(shards.values()),
    }


@command("record")
def run(cfg: DictConfig) -> dict[str, Any]:
    begin = perf_counter()
    out = Path(cfg.out)
    if cfg.mode not in MODES:
        raise InputError(f"cannot record: got mode={cfg.mode}; expected one of {', '.join(MODES)}")
    model, tokenizer = load_model(cfg.model, cfg.dtype)
    prompts = read_prompts(cfg.prompts, tokenizer, cfg.prompt_tokens, cfg.limit)
    keys = (
        "mode",
        "batch",
        "max_new_tokens",
        "min_new_tokens",
        "temperature",
        "seed",
        "hidden",
        "router_logits",
        "pre_attention",
        "padding",
    )
    made = {"prompts": Path(cfg.prompts).name, "prompt_tokens": cfg.prompt_tokens, "max_new_tokens": cfg.max_new_tokens}
    record(model, tokenizer, prompts, out, provenance=made, **{key: cfg[key] for key in keys})
    return summary(load_trace(out, hidden=False), out) | {"seconds": round(perf_counter() - begin, 2)}


def _check(model: Any, prompts: Sequence[Prompt], mode: str, batch: int, new: int, temperature: float) -> None:
    if mode not in MODES:
        raise InputError(f"cannot record: got mode={mode}; expected one of {', '.join(MODES)}")
    if batch < 1 or new < 1 or temperature < 0 or not prompts:
        got = f"batch={batch}, max_new_tokens={new}, temperature={temperature}, {len(prompts)} prompts"
        raise InputError(
            f"cannot record: got {got}; expected batch, max_new_tokens and prompts >= 1 and temperature >= 0"
        )
    context = getattr(model.config, "max_position_embeddings", None)
    longest = max(len(p.token_ids) for p in prompts) + (new if mode == "generate" else 0)
    if context is not None and longest > context:
        raise InputError(
            f"cannot record: got {longest} tokens of text; expected at most {context}; "
            "lower prompt_tokens or max_new_tokens"
        )


def _pad(rows: list[tuple[int, ...]], pad: int, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, mask), both int64 [batch, longest]."""
    width = max(len(row) for row in rows)
    ids, mask = torch.full((len(rows), width), pad), torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        span = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i, span], mask[i, span] = torch.tensor(row), 1
    return ids, mask


if __name__ == "__main__":
    run.main()
