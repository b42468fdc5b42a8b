"""Texts that change topic, A to B and A to B to A, of documents that nothing else uses, and the reference model's routing.

Every document belongs to one pair, so that pairs are independent clusters. The model reads a text in one forward pass; the
trace has one token a pass, as decoding would. Legend: N tokens, L MoE layers.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rgpu.experiments.prompts import Prompt, read_prompts
from rgpu.experiments.suites.claim.hidden import read_hidden, route
from rgpu.traces.trace import DECODE, PROMPT, Trace, TraceHeader

TOPIC = 80  # tokens a topic lasts


def texts(folder: Path, tokenizer: Any, documents: Collection[str]) -> dict[str, list[Prompt]]:
    """The documents that are long enough for a topic and its return, by domain."""
    found: dict[str, list[Prompt]] = {}
    for prompt in read_prompts(folder, tokenizer, 2 * TOPIC):
        if prompt.meta["document"] in documents and len(prompt.token_ids) == 2 * TOPIC:
            found.setdefault(str(prompt.meta["domain"]), []).append(prompt)
    return found


def paired(by_domain: Mapping[str, Sequence[Prompt]]) -> list[tuple[Prompt, Prompt]]:
    """Pairs of documents of different domains, each document once: always of the two domains with most left."""
    left = {domain: list(prompts) for domain, prompts in sorted(by_domain.items())}
    pairs = []
    while sum(bool(prompts) for prompts in left.values()) > 1:
        a, b = sorted(left, key=lambda d: (-len(left[d]), d))[:2]
        pairs.append((left[a].pop(0), left[b].pop(0)))
    return pairs


def switch_texts(by_domain: Mapping[str, Sequence[Prompt]], pairs: int | None = None) -> list[Prompt]:
    """Of each pair (at most `pairs`): A to B, B to A ("switch"), A to B to A, B to A to B ("switch_back"); meta names the
    pair."""
    made = []
    for number, (one, two) in enumerate(paired(by_domain)[:pairs]):
        for first, second in ((one, two), (two, one)):
            a, b = first.token_ids, second.token_ids
            names = [str(p.meta["domain"]) for p in (first, second)]
            meta = {"document": [p.meta["document"] for p in (first, second)], "pair": number, "prompt_tokens": 1}
            forth = {**meta, "kind": "switch", "domain": ">".join(names), "switches": [TOPIC]}
            back = {
                **meta,
                "kind": "switch_back",
                "domain": ">".join([*names, names[0]]),
                "switches": [TOPIC, 2 * TOPIC],
            }
            made += [Prompt(a[:TOPIC] + b[:TOPIC], forth), Prompt(a[:TOPIC] + b[:TOPIC] + a[TOPIC : 2 * TOPIC], back)]
    return made


def read_texts(model: Any, folder: str, prompts: Sequence[Prompt], like: TraceHeader) -> Trace:
    """The model's routing and hidden states over the texts; the header is `like` that of another trace of the model."""
    offsets = np.cumsum([0, *(len(p.token_ids) for p in prompts)]).astype(np.int64)
    total = int(offsets[-1])
    positions = np.concatenate([np.arange(len(p.token_ids), dtype=np.int32) for p in prompts])
    header = replace(like, on_policy=False, sequences=[dict(p.meta) for p in prompts], provenance={}, checksum="")
    trace = Trace(
        header, np.zeros((total, len(like.layer_ids), like.top_k), np.uint8), offsets, positions,
        passes=np.arange(total, dtype=np.int32), phase=np.where(positions == 0, PROMPT, DECODE).astype(np.uint8),
        token_ids=np.concatenate([np.asarray(p.token_ids, np.int32) for p in prompts]),
    )  # fmt: skip
    trace.hidden = read_hidden(model, trace)
    trace.router_logits, chosen = route(folder, trace.hidden, like.top_k)
    trace.expert_ids = chosen.astype(np.uint8)
    return trace
