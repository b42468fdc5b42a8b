"""How near a run is to another model that was fed the same tokens: logits, probabilities, greedy choices.

Legend: B prompts, N new tokens, V vocabulary, R rows: tokens of all prompts up to the end of their text.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel

from rgpu.runtime.generation import Generation, run_greedy, text_ends


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far a run may be from its reference: the most of each error, the least agreement (see `Fidelity`)."""

    logit_error_max: float
    logit_error_mean: float
    kl_mean: float
    greedy_agreement: float


# float32: sums in another order. 16 bits: the reference rounds between its operations where kernels do not; a router that
# then decides between two nearly equal experts the other way moves a few rows far, so that the mean is what tells.
TOLERANCES = {
    torch.float32: Tolerance(1e-3, 1e-4, 1e-5, 0.99),
    torch.float16: Tolerance(0.2, 1e-2, 1e-3, 0.95),
    torch.bfloat16: Tolerance(0.5, 6e-2, 2e-2, 0.90),
}


@dataclass(frozen=True, slots=True)
class Fidelity:
    """Over R rows: the norm of the difference of the logits over the norm of the reference's, at most and on average; mean
    KL divergence of the run's probabilities from the reference's, in nats; share of rows with the same first choice."""

    rows: int
    logit_error_max: float
    logit_error_mean: float
    kl_mean: float
    greedy_agreement: float

    def within(self, allowed: Tolerance) -> bool:
        """Whether nothing differs by more (of the choices, whole ones: one may differ however few there are). Anything that
        is no number is more."""
        errors = ("logit_error_max", "logit_error_mean", "kl_mean")
        small = all(getattr(self, name) <= getattr(allowed, name) for name in errors)
        others = round(self.rows * (1 - self.greedy_agreement))
        return small and others <= math.ceil(self.rows * (1 - allowed.greedy_agreement))

    def section(self, dtype: torch.dtype) -> dict[str, Any]:
        """The figures, what is allowed in `dtype` and whether they are within it, as plain data."""
        allowed = TOLERANCES[dtype]
        return asdict(self) | {"tolerance": asdict(allowed), "within_tolerance": self.within(allowed)}


def compare_with(reference: PreTrainedModel, made: Generation, pad: int) -> Fidelity:
    """`made` against the logits of `reference`, which makes the same passes over the same tokens, whatever it would say."""
    tokens_BN = made.tokens_BN.cpu()
    inputs = {name: value.cpu() for name, value in made.inputs.items()}
    told = LogitsProcessorList([Told(tokens_BN, inputs["input_ids"].shape[1])])
    _, logits = run_greedy(reference, inputs, tokens_BN.shape[1], pad, logits_processor=told)
    ends = text_ends(tokens_BN, reference)
    ours, theirs = _rows(made.logits, ends), _rows(logits, ends)
    return compared(ours, theirs)


def compared(ours_RV: torch.Tensor, theirs_RV: torch.Tensor) -> Fidelity:
    """Figures of logits beside the logits they should be."""
    ours_RV, theirs_RV = ours_RV.double(), theirs_RV.double()
    error_R = (ours_RV - theirs_RV).norm(dim=1) / theirs_RV.norm(dim=1)
    ours_log_RV, theirs_log_RV = ours_RV.log_softmax(1), theirs_RV.log_softmax(1)
    kl_R = (theirs_log_RV.exp() * (theirs_log_RV - ours_log_RV)).sum(1)
    agree_R = (ours_RV.argmax(1) == theirs_RV.argmax(1)).double()
    return Fidelity(
        len(error_R), float(error_R.max()), float(error_R.mean()), max(0.0, float(kl_R.mean())), float(agree_R.mean())
    )


def _rows(logits: tuple[torch.Tensor, ...], ends: list[int]) -> torch.Tensor:
    """[R, V] of one [B, V] a step."""
    logits_BNV = torch.stack([step.cpu() for step in logits], dim=1)
    return torch.cat([row_NV[:end] for row_NV, end in zip(logits_BNV, ends, strict=True)])


class Told(LogitsProcessor):  # type: ignore[misc]
    """Makes given tokens the only choice."""

    def __init__(self, tokens_BN: torch.Tensor, prompt: int) -> None:
        self.tokens_BN, self.prompt = tokens_BN, prompt

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        step = input_ids.shape[1] - self.prompt
        only_BV = torch.full_like(scores, -torch.inf)
        return only_BV.scatter_(1, self.tokens_BN[:, step, None], 0.0)
