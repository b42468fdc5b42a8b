"""What a fitted predictor was fitted on: a model, so where it may be used, and text, so where it may be scored."""

from dataclasses import dataclass
from pathlib import Path

from rgpu.traces.split import origins
from rgpu.traces.trace import Trace
from rgpu.types import MoEShape


@dataclass(frozen=True, slots=True)
class Schema:
    """What a fitted predictor was fitted on. `hidden` 0: hidden states are not read.

    `on_policy`: whether the model wrote the text it was fitted on, or read it (teacher-forced); None: no text.
    `documents`: what the sequences it was fitted on are known again by (`traces.split.origins`); empty: not said.
    """

    model: str
    revision: str
    layers: int
    experts: int
    top_k: int
    hidden: int = 0
    trace_checksum: str = ""
    split_digest: str = ""
    on_policy: bool | None = None
    documents: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "documents", tuple(self.documents))  # JSON has lists

    @classmethod
    def of(cls, trace: Trace, part: Trace, hidden: bool = False, split_digest: str = "") -> "Schema":
        """Fitted on `part` of a trace; `hidden`: hidden states are read."""
        header, shape = trace.header, trace.shape
        return cls(
            model=header.model,
            revision=header.revision,
            layers=shape.layers,
            experts=shape.experts,
            top_k=shape.top_k,
            hidden=shape.hidden if hidden else 0,
            trace_checksum=header.checksum or trace.checksum(),
            split_digest=split_digest,
            on_policy=header.on_policy,
            documents=tuple(sorted(origins(part))),
        )

    def differs(self, expect: Trace | MoEShape) -> list[str]:
        """How this model is another one than that: in shape, and for a trace in its revision or name.

        Revisions are compared where both are known, else the last part of the model names.
        """
        shape = expect.shape if isinstance(expect, Trace) else expect
        got = {"layers": self.layers, "experts": self.experts, "top-k": self.top_k}
        want = {"layers": shape.layers, "experts": shape.experts, "top-k": shape.top_k}
        if self.hidden and shape.hidden:
            got["hidden"], want["hidden"] = self.hidden, shape.hidden
        wrong = [f"{key} {got[key]} instead of {want[key]}" for key in got if got[key] != want[key]]
        if isinstance(expect, Trace) and not wrong:
            header = expect.header
            if self.revision and header.revision:
                same = self.revision == header.revision
            else:
                same = Path(self.model).name == Path(header.model).name
            if not same:
                wrong.append(
                    f"model {self.model}@{self.revision or '?'} instead of {header.model}@{header.revision or '?'}"
                )
        return wrong
