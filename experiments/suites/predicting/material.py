"""What predictors are fitted and scored on: the reference traces with hidden states and router logits, text that the model
only read, the same texts through its int4 self, and gpt-oss-20b's routing where the shared folder has it.

Hidden states are not shipped for the whole reference trace; they and the states before attention are had again by giving the
model the tokens it made, whole sequences at once, and cut into the passes of the original. Where that changes an expert, the
suite stops.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from rgpu.errors import ConsistencyError, InputError
from rgpu.experiments.loading import load_model
from rgpu.experiments.prompts import Prompt, read_prompts
from rgpu.experiments.record import record
from rgpu.experiments.suites.published.subjects import GPT_OSS, Subject, halves
from rgpu.quant.int4 import Int4
from rgpu.traces.moe_layers import moe_layers
from rgpu.traces.split import origins, sharing
from rgpu.traces.storage import load_trace
from rgpu.traces.trace import DECODE, PROMPT, Trace

GROUP = 32  # columns that share a scale in the int4 self
QUICK_SEQUENCES, QUICK_TOKENS = 8, 72  # of each half
READ = "rgpu reference model, sampled continuations of held-out prompts, read again for hidden states and router logits"


@dataclass(frozen=True, slots=True)
class Material:
    """A subject, the model behind it ("" where there is none here), and further traces of it by name: `text` (documents it
    read), `int4` (the sequences of the subject through its int4 self), `switch` (topic switches)."""

    subject: Subject
    model: str = ""
    more: dict[str, Trace] = field(default_factory=dict)


def gather(cfg: DictConfig, folder: Path, further: bool = True) -> tuple[list[Material], list[str]]:
    """(materials, what is left out and why). Forced traces are kept in `folder` while the run lasts; `further`: the
    traces beside the subject, too."""
    source = Path(cfg.traces) / "reference.safetensors"
    if not source.is_file() or not Path(cfg.model).is_dir() or not Path(cfg.heldout).is_dir():
        raise InputError(
            f"reproduce: got no {source}, {cfg.model} or {cfg.heldout}; expected the shipped ones; run from the "
            "repository's root"
        )
    torch.set_num_threads(1)  # small matrices: a second thread costs more than it gives
    folder.mkdir(parents=True, exist_ok=True)
    whole = load_trace(source)
    if cfg.quick:
        part = halves("reference", "", whole, QUICK_SEQUENCES)
        whole = window(only(whole, documents(part.calibration) | documents(part.scored)), 0, QUICK_TOKENS)
    model, tokenizer = load_model(cfg.model)
    reader = Reader(model, tokenizer, folder)
    forced = read_again(reader, whole, "reference")
    same_routing(forced, whole)
    more: dict[str, Trace] = {}
    if further and not cfg.quick:
        longest = int(np.diff(whole.seq_offsets).max())
        texts = [replace(p, meta={**p.meta, "kind": "text"}) for p in read_prompts(cfg.heldout, tokenizer, longest)]
        more["text"] = read_stepwise(reader, texts, "text")
        switch = load_trace(Path(cfg.traces) / "reference_switch.safetensors")
        more["switch"] = read_again(reader, switch, "switch")
        rounded_to_int4(model)
        more["int4"] = read_again(reader, whole, "int4", quantisation="int4")
    del model, reader
    found = [Material(halves("reference", READ, forced), str(cfg.model), more)]
    trace = shared_trace(cfg)
    if trace is None:
        return found, ["gpt-oss-20b: its trace was not there (shared folder)"]
    said = "openai/gpt-oss-20b decode on mixed QA, no prefill recorded (AmanPriyanshu/GPT-OSS-MoE-ExpertFingerprinting)"
    return [*found, Material(halves("gpt-oss-20b", said, trace))], []


def shared_trace(cfg: DictConfig) -> Trace | None:
    """gpt-oss-20b's trace from the shared folder, some sequences of it; None where it is not there."""
    path = Path(cfg.shared) / GPT_OSS
    if not path.exists():
        return None
    trace = load_trace(path)
    few = np.sort(np.random.default_rng(cfg.seed).permutation(trace.sequences)[: 8 if cfg.quick else 80])
    return window(trace.select(few), 0, QUICK_TOKENS if cfg.quick else 320)


@dataclass(frozen=True, slots=True)
class Reader:
    """A model that reads given texts, and where what it did is kept, so that a killed run continues."""

    model: Any
    tokenizer: Any
    folder: Path

    def read(self, prompts: Sequence[Prompt], name: str) -> Trace:
        """One call a text, with hidden states, states before attention and router logits."""
        out = self.folder / f"{name}.safetensors"
        if not out.exists():
            arrays: dict[str, Any] = {"hidden": True, "router_logits": True, "pre_attention": True}
            record(self.model, self.tokenizer, prompts, out, mode="prompt", **arrays)
        return load_trace(out)


def read_again(reader: Reader, trace: Trace, name: str, quantisation: str = "none") -> Trace:
    """The tokens of a batch-1 trace read, in the passes of the trace. A model rounded to `quantisation` did not write them."""
    tokens = trace.require("token_ids", "reading a trace again")
    spans = zip(trace.seq_offsets[:-1], trace.seq_offsets[1:], trace.header.sequences, strict=True)
    prompts = [Prompt(tuple(int(t) for t in tokens[a:b]), dict(meta)) for a, b, meta in spans]
    made = reader.read(prompts, name)
    made.header.on_policy = trace.header.on_policy and quantisation == trace.header.quantisation
    made.header.quantisation = quantisation
    return replace(made, passes=trace.passes, phase=trace.phase)


def same_routing(read: Trace, original: Trace) -> None:
    """`ConsistencyError` where reading the tokens of `original` again chose other experts."""
    if not (np.sort(read.expert_ids, 2) == np.sort(original.expert_ids, 2)).all():
        raise ConsistencyError("reading the reference trace's tokens again routed some of them to other experts")


def read_stepwise(reader: Reader, prompts: Sequence[Prompt], name: str) -> Trace:
    """Texts as if the model had decoded every token after the first (it did not: not on-policy)."""
    made = reader.read(prompts, name)
    phase = np.full(made.tokens, DECODE, np.uint8)
    phase[made.seq_offsets[:-1]] = PROMPT
    return replace(made, passes=np.arange(made.tokens, dtype=np.int32), phase=phase)


def rounded_to_int4(model: Any, group: int = GROUP) -> None:
    """Replace every expert weight of a float model by what its int4 form stands for (`quantize=int4 group=32`)."""
    fmt = Int4(group)
    for layer in moe_layers(model):
        for parameter in layer.experts.parameters():
            for expert in range(len(parameter)):
                parameter.data[expert] = fmt.unpack(fmt.quantize(parameter.data[expert].float())).to(parameter.dtype)


def window(trace: Trace, first: int, last: int) -> Trace:
    """Tokens `first` to `last` (excluded) of every sequence of a batch-1 trace that has any there."""
    sizes = np.diff(trace.seq_offsets)
    trace = trace.select(np.flatnonzero(sizes > first))
    sizes = np.diff(trace.seq_offsets)
    place_N = np.arange(trace.tokens) - np.repeat(trace.seq_offsets[:-1], sizes)
    kept = np.flatnonzero((place_N >= first) & (place_N < last))
    offsets = np.concatenate([[0], np.cumsum(np.minimum(sizes, last) - first)]).astype(np.int64)
    arrays = {name: array[kept] for name, array in trace.arrays().items() if name != "seq_offsets"}
    header = replace(trace.header, checksum="")
    return Trace(header=header, seq_offsets=offsets, **arrays)


def without(trace: Trace, known: set[str]) -> Trace:
    """Sequences that share no document or content with `known`, the `documents` of other traces."""
    return trace.select(np.flatnonzero(~sharing(trace, known)))


def only(trace: Trace, known: set[str]) -> Trace:
    """Sequences that share a document or their content with `known`."""
    return trace.select(np.flatnonzero(sharing(trace, known)))


def documents(trace: Trace) -> set[str]:
    """What the trace's sequences can be known again by elsewhere (`origins`)."""
    return origins(trace)
