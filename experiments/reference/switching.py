"""Topic switches as traces: held-out text of one domain, then another, fed token by token. Not on-policy, and said so."""

from collections.abc import Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from rgpu.experiments.prompts import Prompt
from rgpu.traces.recorder import TraceRecorder


def switch_prompts(documents: Mapping[str, Sequence[Prompt]], tokens: int) -> list[Prompt]:
    """A->B ("switch") and A->B->A ("switch_back") for every ordered pair of domains and each of their documents.

    Every topic lasts `tokens` tokens; the second A continues the document of the first.
    """
    made = []
    for a, b in permutations(sorted(documents), 2):
        for first, second in zip(documents[a], documents[b], strict=False):
            one, two = first.token_ids, second.token_ids
            if len(one) < 2 * tokens or len(two) < tokens:
                continue
            origin = [first.meta["document"], second.meta["document"]]
            forth = one[:tokens] + two[:tokens]
            meta = {"document": origin, "switches": [tokens]}
            made.append(Prompt(forth, {"domain": f"{a}>{b}", "kind": "switch", **meta}))
            back = {**meta, "switches": [tokens, 2 * tokens]}
            made.append(
                Prompt(forth + one[tokens : 2 * tokens], {"domain": f"{a}>{b}>{a}", "kind": "switch_back", **back})
            )
    return made


def record_stepwise(model: Any, prompts: Sequence[Prompt], out: Path, provenance: dict[str, Any]) -> Path:
    """Trace of `model` reading each prompt one token a forward pass, as decoding would."""
    with TraceRecorder(model, out, provenance=provenance, on_policy=False) as recorder, torch.inference_mode():
        for prompt in tqdm(prompts, desc="switches", unit="text", disable=None):
            recorder.sequences([prompt.meta])
            cache = None
            for token in prompt.token_ids:
                result = model(input_ids=torch.tensor([[token]]), past_key_values=cache, use_cache=True)
                cache = result.past_key_values
    return out
