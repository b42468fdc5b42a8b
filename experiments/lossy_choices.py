"""What the choices of conf/lossy are: a mode, and how its cost is measured."""

from dataclasses import dataclass

from rgpu.errors import InputError
from rgpu.runtime.lossy import LARGEST, Lossy, LowPrecision, Skip, Substitute


@dataclass(frozen=True, slots=True)
class LossyChoice:
    """`report`: whether the cost is measured, on `tokens` tokens of `text`, a file or a folder of files."""

    mode: Lossy
    report: bool
    text: str
    tokens: int

    def __post_init__(self) -> None:
        if self.report and self.tokens < 1:
            raise InputError(
                f"lossy.tokens: got {self.tokens}; expected 1 or more; set lossy.tokens=256, or lossy.report=false"
            )


def skip(
    threshold: float = 0.3, relative: str = LARGEST, hits: bool = False, renormalise: bool = False, report: bool = True,
    text: str = "assets/heldout", tokens: int = 256,
) -> LossyChoice:  # fmt: skip
    """See `Skip`."""
    return LossyChoice(Skip(threshold, relative, hits, renormalise), report, text, tokens)


def substitute(
    similarity: float = 0.0, threshold: float | None = 0.3, relative: str = LARGEST, report: bool = True,
    text: str = "assets/heldout", tokens: int = 256,
) -> LossyChoice:  # fmt: skip
    """See `Substitute`."""
    return LossyChoice(Substitute(similarity, threshold, relative), report, text, tokens)


def low_precision(
    threshold: float = 0.5, relative: str = LARGEST, format: str = "int4", group: int | None = 32, report: bool = True,
    text: str = "assets/heldout", tokens: int = 256,
) -> LossyChoice:  # fmt: skip
    """See `LowPrecision`."""
    return LossyChoice(LowPrecision(threshold, relative, format, group), report, text, tokens)
