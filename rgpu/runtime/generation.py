"""Greedy generation with figures, and the two checks of a live run: against the resident model and against replay.

Legend: B prompts, Q prompt tokens after left padding, N new tokens, V vocabulary.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rgpu.errors import InputError
from rgpu.replay.controller import Controller, replay_events
from rgpu.replay.engine import replay
from rgpu.replay.pool import PoolConfig
from rgpu.replay.stream import routing_events
from rgpu.runtime.architecture import Architecture
from rgpu.runtime.loading import load_resident
from rgpu.traces.trace import Trace


@dataclass(frozen=True, slots=True)
class Generation:
    """`inputs` as given to the model; `tokens_BN` int64 new tokens, rows that ended early padded; `new_tokens` those
    before padding in all; `logits` one [B, V] a step; `texts` the continuations."""

    inputs: dict[str, torch.Tensor]
    tokens_BN: torch.Tensor
    new_tokens: int
    logits: tuple[torch.Tensor, ...] = field(repr=False)
    texts: list[str]
    seconds: float


def generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, prompts: Sequence[str], max_new_tokens: int
) -> Generation:
    """Continue all prompts as one left-padded batch, greedily. Raises `InputError` for prompts that make no tokens or
    go beyond the model's context."""
    if tokenizer is None:
        raise InputError(
            f"cannot generate: got no tokenizer in {model.name_or_path}; expected tokenizer.json beside the weights"
        )
    if not prompts or max_new_tokens < 1:
        raise InputError(
            f"cannot generate: got {len(prompts)} prompts and max_new_tokens={max_new_tokens}; expected 1 or more"
        )
    encoded = tokenizer(list(prompts), return_tensors="pt", padding=True, return_token_type_ids=False)
    inputs = {name: encoded[name].long() for name in ("input_ids", "attention_mask")}
    if int(inputs["attention_mask"].sum(1).min()) == 0:
        raise InputError("cannot generate: got an empty prompt; expected some text; set prompt=")
    context, wanted = (
        getattr(model.config, "max_position_embeddings", None),
        inputs["input_ids"].shape[1] + max_new_tokens,
    )
    if context is not None and wanted > context:
        raise InputError(
            f"cannot generate: got {wanted} tokens of prompt and text; expected at most {context}; lower max_new_tokens"
        )
    began = time.perf_counter()
    tokens_BN, logits = run_greedy(model, inputs, max_new_tokens, int(tokenizer.pad_token_id or 0))
    seconds = time.perf_counter() - began
    ends = _ends(tokens_BN, model)
    texts = [
        str(tokenizer.decode(row[:end], skip_special_tokens=True)) for row, end in zip(tokens_BN, ends, strict=True)
    ]
    return Generation(inputs, tokens_BN, sum(ends), logits, texts, seconds)


def run_greedy(
    model: PreTrainedModel, inputs: dict[str, torch.Tensor], max_new_tokens: int, pad: int
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """(new tokens [B, N], logits of every step)."""
    made: Any = model.generate(  # type: ignore[operator]
        **inputs, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1, pad_token_id=pad, output_logits=True,
        return_dict_in_generate=True,
    )  # fmt: skip
    return made.sequences[:, inputs["input_ids"].shape[1] :], made.logits


def _ends(tokens_BN: torch.Tensor, model: PreTrainedModel) -> list[int]:
    """New tokens of each row up to its end of text, that token included."""
    ids = model.generation_config.eos_token_id
    stops = torch.tensor([] if ids is None else ids).reshape(-1)
    ends = []
    for row in tokens_BN:
        found = torch.isin(row, stops).nonzero()
        ends.append(int(found[0]) + 1 if len(found) else len(row))
    return ends


def compare_with_resident(
    model_dir: Path, architecture: Architecture, dtype: torch.dtype, made: Generation, pad: int
) -> dict[str, bool]:
    """The same generation by the stock resident model: whether tokens, and every logit bit for bit, are identical."""
    model = load_resident(model_dir, architecture, dtype)
    tokens_BN, logits = run_greedy(model, made.inputs, made.tokens_BN.shape[1], pad)
    same = len(logits) == len(made.logits) and all(torch.equal(a, b) for a, b in zip(logits, made.logits, strict=True))
    return {"identical_tokens": torch.equal(tokens_BN, made.tokens_BN), "identical_logits": same}


def compare_with_replay(
    live: Controller, trace: Trace, pool: PoolConfig, fresh: Controller, calibration: Trace | None, seed: int
) -> dict[str, Any]:
    """Replay a live run's own trace: whether every code and victim of every decision agrees.

    Without a predictor or a hot profile the bulk replay decides again, else `fresh`, a controller built as the live one was.
    """
    if live.predictor is None and not live.warm and live.feature == live.policy.traits.feature:
        again = replay(trace, live.policy, pool, calibration=calibration, seed=seed, log=True)
        log, hits = again.log, again.hits
    else:
        replay_events(fresh, routing_events(trace))
        log, hits = fresh.log, fresh.hits
    return {
        "identical_decisions": log == live.log and hits == live.hits,
        "decisions": len(live.log),
        "replay_hits": hits,
    }
