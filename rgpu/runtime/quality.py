"""A lossy session beside an exact one that reads the same text: perplexity, KL divergence, loads and speed.

Both are told every token, the text's own, one a pass after a prompt; what they would have said is compared.

Legend: T tokens of a text, R of them after its prompt, V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

import torch
from transformers import LogitsProcessorList

from rgpu.policies.loop import DEMAND_LOADS, FILL_LOADS, PROACTIVE_LOADS
from rgpu.runtime.fidelity import Told
from rgpu.runtime.generation import run_greedy
from rgpu.runtime.session import OffloadSession

_ROWS = 32  # of logits in float64 at a time


@dataclass(frozen=True, slots=True)
class Text:
    """`tokens_T` int64, of which the first `prompt` are read in one pass."""

    name: str
    tokens_T: torch.Tensor
    prompt: int


@dataclass(frozen=True, slots=True)
class Compared:
    """One text, over its R tokens: negative log likelihood in nats, seconds of each pass of one token and loads of all of
    them, exact and lossy; KL of the lossy probabilities from the exact ones; tokens with the same first choice."""

    name: str
    tokens: int
    nll: tuple[float, float]
    kl: float
    same: int
    seconds: tuple[list[float], list[float]]
    loads: tuple[int, int]


@dataclass(frozen=True, slots=True)
class _Read:
    logits_RV: torch.Tensor
    seconds: list[float]
    loads: int


@dataclass(slots=True)
class Quality:
    """Texts that both read; figures over all of them."""

    texts: list[Compared] = field(default_factory=list)

    def section(self) -> dict[str, object]:
        """As plain data: `perplexity`, `tpot_s` and `loads_per_token` of both runs, `perplexity_ratio` (lossy over exact),
        `kl_mean` in nats a token, `same_first_choice`, `speedup` (exact over lossy seconds), all of them and by text. Seconds
        are the median pass of one token: other work on the machine comes in bursts."""
        return _figures(self.texts) | {"by_text": {text.name: _figures([text]) for text in self.texts}}


def compare_on(exact: OffloadSession, lossy: OffloadSession, texts: Sequence[Text]) -> Quality:
    """Both read every text, in turn: exact first, then lossy first, and so on. A first short one is not counted: kernels
    are compiled in it."""
    for session in (exact, lossy):
        _read(session, Text("", texts[0].tokens_T[: texts[0].prompt + 3], texts[0].prompt))
    quality = Quality()
    for number, text in enumerate(texts):
        order = (exact, lossy) if number % 2 == 0 else (lossy, exact)
        read = {id(session): _read(session, text) for session in order}
        quality.texts.append(_compared(text, read[id(exact)], read[id(lossy)]))
    return quality


def _read(session: OffloadSession, text: Text) -> _Read:
    session.telemetry.clear()
    told_BR = text.tokens_T[None, text.prompt :]
    prompt_BQ = text.tokens_T[None, : text.prompt]
    inputs = {"input_ids": prompt_BQ, "attention_mask": torch.ones_like(prompt_BQ)}
    _, logits = run_greedy(
        session.model, inputs, told_BR.shape[1], 0, logits_processor=LogitsProcessorList([Told(told_BR, text.prompt)])
    )
    later = session.telemetry.rows[1:]
    loads = sum(int(row.counts[[DEMAND_LOADS, PROACTIVE_LOADS, FILL_LOADS]].sum()) for row in later)
    return _Read(torch.cat(logits), [row.end_s - row.begin_s for row in later], loads)


def _compared(text: Text, exact: _Read, lossy: _Read) -> Compared:
    told_R = text.tokens_T[text.prompt :][: len(exact.logits_RV)]
    nll, kl, same = [0.0, 0.0], 0.0, 0
    for start in range(0, len(told_R), _ROWS):
        rows = slice(start, start + _ROWS)
        logs = [read.logits_RV[rows].double().log_softmax(1) for read in (exact, lossy)]
        for i, log_RV in enumerate(logs):
            nll[i] -= float(log_RV.gather(1, told_R[rows, None]).sum())
        kl += float((logs[0].exp() * (logs[0] - logs[1])).sum())
        same += int((logs[0].argmax(1) == logs[1].argmax(1)).sum())
    return Compared(
        text.name, len(told_R), (nll[0], nll[1]), max(0.0, kl), same, (exact.seconds, lossy.seconds),
        (exact.loads, lossy.loads),
    )  # fmt: skip


def _figures(texts: Sequence[Compared]) -> dict[str, object]:
    tokens = sum(text.tokens for text in texts)
    nll, loads = ([sum(getattr(text, name)[i] for text in texts) for i in (0, 1)] for name in ("nll", "loads"))
    seconds = [[second for text in texts for second in text.seconds[i]] for i in (0, 1)]
    tpot_s = [median(run) if run else 0.0 for run in seconds]
    passes = max(1, len(seconds[0]))
    both = ("exact", "lossy")
    return {
        "tokens": tokens,
        "perplexity": {name: round(math.exp(total / tokens), 4) for name, total in zip(both, nll, strict=True)},
        "perplexity_ratio": round(math.exp((nll[1] - nll[0]) / tokens), 5),
        "kl_mean": sum(text.kl for text in texts) / tokens,
        "same_first_choice": round(sum(text.same for text in texts) / tokens, 4),
        "tpot_s": {name: round(second, 6) for name, second in zip(both, tpot_s, strict=True)},
        "speedup": round(tpot_s[0] / tpot_s[1], 3) if tpot_s[1] else None,
        "loads_per_token": {name: round(total / passes, 3) for name, total in zip(both, loads, strict=True)},
    }
