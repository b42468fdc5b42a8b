"""Greedy generation with figures, and the two checks of a live run: against the resident model and against replay.

Legend: B prompts, Q prompt tokens after left padding, N new tokens, V vocabulary.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from rgpu.errors import InputError
from rgpu.replay.controller import Controller, replay_events
from rgpu.replay.engine import replay
from rgpu.replay.pool import PoolConfig
from rgpu.replay.resizing import Resizes
from rgpu.replay.stream import routing_events
from rgpu.runtime.architecture import Architecture
from rgpu.runtime.block_cache import cache_name
from rgpu.runtime.loading import load_resident
from rgpu.traces.trace import Trace


@dataclass(frozen=True, slots=True)
class Generation:
    """`inputs` as given to the model; `tokens_BN` int64 new tokens, rows that ended early padded; `new_tokens` those
    before padding in all; `logits` one [B, V] a step, where kept; `texts` the continuations."""

    inputs: dict[str, torch.Tensor]
    tokens_BN: torch.Tensor
    new_tokens: int
    logits: tuple[torch.Tensor, ...] = field(repr=False)
    texts: list[str]
    seconds: float


def encoded(
    tokenizer: PreTrainedTokenizerBase | None, prompts: Sequence[str], name: str, chat: bool = False
) -> dict[str, torch.Tensor]:
    """`input_ids` and `attention_mask` [B, Q] of all prompts as one left-padded batch; with `chat` each is the user's turn
    in the tokenizer's chat template. `InputError` for no tokenizer (of the model `name`), no template, prompts without
    tokens."""
    if tokenizer is None:
        raise InputError(f"cannot generate: got no tokenizer in {name}; expected tokenizer.json beside the weights")
    if chat:
        prompts = [_turn(tokenizer, prompt, name) for prompt in prompts]
    made = tokenizer(
        list(prompts), return_tensors="pt", padding=True, return_token_type_ids=False, add_special_tokens=not chat
    )
    inputs = {key: made[key].long() for key in ("input_ids", "attention_mask")}
    if int(inputs["attention_mask"].sum(1).min()) == 0:
        raise InputError("cannot generate: got an empty prompt; expected some text; set prompt=")
    return inputs


def check_length(inputs: dict[str, torch.Tensor], max_new_tokens: int, longest: int | None) -> int:
    """Tokens of prompt and text of a row; `InputError` where they are more than the model reads (`longest`)."""
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens: got {max_new_tokens}; expected 1 or more; set max_new_tokens=48")
    wanted = inputs["input_ids"].shape[1] + max_new_tokens
    if longest is not None and wanted > longest:
        raise InputError(
            f"cannot generate: got {wanted} tokens of prompt and text; expected at most {longest}; lower max_new_tokens"
        )
    return wanted


def generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, inputs: dict[str, torch.Tensor], max_new_tokens: int, *,
    logits: bool = True, streamer: BaseStreamer | None = None, cache: str | Cache | None = None,
) -> Generation:  # fmt: skip
    """Continue all rows of `inputs` greedily. Without `logits` none are kept (they take 4 V bytes a token and row).
    `streamer`: gets the tokens of a single row as they come. `cache`: transformers' `cache_implementation`, or an empty
    cache."""
    inputs = {name: value.to(model.device) for name, value in inputs.items()}
    pad = int(tokenizer.pad_token_id or 0)
    began = time.perf_counter()
    options: dict[str, Any] = {} if cache is None else {"cache_implementation": cache}
    if isinstance(cache, Cache):
        options = {cache_name(model): cache}
    tokens_BN, kept = run_greedy(model, inputs, max_new_tokens, pad, logits=logits, streamer=streamer, **options)
    seconds = time.perf_counter() - began
    ends = text_ends(tokens_BN, model)
    texts = [
        str(tokenizer.decode(row[:end], skip_special_tokens=True)) for row, end in zip(tokens_BN, ends, strict=True)
    ]
    return Generation(inputs, tokens_BN, sum(ends), kept, texts, seconds)


def run_greedy(
    model: PreTrainedModel, inputs: dict[str, torch.Tensor], max_new_tokens: int, pad: int, *, logits: bool = True,
    streamer: BaseStreamer | None = None, **options: Any,
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:  # fmt: skip
    """(new tokens [B, N], logits of every step or none); `options` go to transformers' `generate`."""
    made: Any = model.generate(  # type: ignore[operator]
        **inputs, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1, pad_token_id=pad, output_logits=logits,
        return_dict_in_generate=True, streamer=streamer, **options,
    )  # fmt: skip
    return made.sequences[:, inputs["input_ids"].shape[1] :], made.logits or ()


def text_ends(tokens_BN: torch.Tensor, model: PreTrainedModel) -> list[int]:
    """New tokens of each row up to its end of text, that token included."""
    ids = model.generation_config.eos_token_id
    stops = torch.tensor([] if ids is None else ids, device=tokens_BN.device).reshape(-1)
    ends = []
    for row in tokens_BN:
        found = torch.isin(row, stops).nonzero()
        ends.append(int(found[0]) + 1 if len(found) else len(row))
    return ends


def _turn(tokenizer: PreTrainedTokenizerBase, prompt: str, name: str) -> str:
    if tokenizer.chat_template is None:
        raise InputError(
            f"chat: got true for {name}, whose tokenizer has no chat template; expected chat_template.jinja beside it "
            "(instruct models have one); set chat=false"
        )
    turns = [{"role": "user", "content": prompt}]
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))


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

    Without a predictor or a hot profile the bulk replay decides again, else `fresh`, a controller built as the live one was;
    `fresh` also where pools changed their size, which the trace says.
    """
    resizes = Resizes.of(trace)
    if not resizes and live.predictor is None and not live.warm and live.feature == live.policy.traits.feature:
        again = replay(trace, live.policy, pool, calibration=calibration, seed=seed, log=True)
        log, hits = again.log, again.hits
    else:
        replay_events(fresh, routing_events(trace), resizes)
        log, hits = fresh.log, fresh.hits
    return {
        "identical_decisions": log == live.log and hits == live.hits,
        "decisions": len(live.log),
        "replay_hits": hits,
    }
