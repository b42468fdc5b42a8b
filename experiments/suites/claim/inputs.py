"""Traces for the claims: the reference model's with every hidden state, and gpt-oss-20b's routing.

Hidden states are read back from the recorded text (`hidden.py`); texts that change topic are read here (`texts.py`).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from rgpu.errors import InputError
from rgpu.experiments.loading import load_model
from rgpu.experiments.suites.claim.hidden import with_hidden
from rgpu.experiments.suites.claim.texts import read_texts, switch_texts, texts
from rgpu.results.statistics import MIN_CLUSTERS
from rgpu.traces.split import documents_of, split
from rgpu.traces.storage import load_trace
from rgpu.traces.trace import Trace

GPT_OSS = "traces/gpt-oss-20b_decode_mixedqa_w.npz"


@dataclass(frozen=True, slots=True)
class Material:
    """A trace cut once: `calibration` and `scored` share no document. `agreement`: share of recorded experts that the
    re-read hidden states route to as well (None where nothing was re-read)."""

    name: str
    source: str
    whole: Trace
    calibration: Trace
    scored: Trace
    agreement: float | None = None


def halves(
    name: str, source: str, trace: Trace, agreement: float | None = None, sequences: int | None = None
) -> Material:
    """Calibration and scored halves by document; at most `sequences` of each."""
    parts = split(trace)
    if not len(parts.calibration) or not len(parts.scored):
        raise InputError(f"trace {name}: got too few documents to calibrate on some and score others; record more")
    calibration, scored = (trace.select(ids[:sequences]) for ids in (parts.calibration, parts.scored))
    return Material(name, source, trace, calibration, scored, agreement)


@dataclass(frozen=True, slots=True)
class Inputs:
    """What the claims are tested on. `switch`: A to B and A to B to A texts made of the reference's scored documents, each
    document in one pair only; what calibrates is the reference's calibration half. `routing` is gpt-oss-20b's trace, None
    where it is not there."""

    reference: Material
    switch: Material
    routing: Material | None


def gather(model_folder: str, traces: str, shared: str, sequences: int | None, heldout: str | None = None) -> Inputs:
    """Load and complete everything; `sequences` bounds each half of each trace (None: all). `heldout`: the folder of texts
    (default: beside the traces)."""
    model, tokenizer = load_model(model_folder)
    torch.set_num_threads(1)  # small matrices: a second thread costs more than it gives
    recorded = load_trace(Path(traces) / "reference.safetensors")
    parts = split(recorded)
    if not len(parts.calibration) or not len(parts.scored):
        raise InputError("trace reference: got too few documents to calibrate on some and score others; record more")
    free = {d for i in parts.scored for d in documents_of(recorded.header.sequences[i])}
    few = np.sort(np.concatenate([parts.calibration[:sequences], parts.scored[:sequences]]))
    whole, agreement = with_hidden(model, model_folder, recorded.select(few))
    source = "rgpu reference model, sampled continuations of held-out prompts; hidden states read back from the text"
    side = np.isin(few, parts.calibration)
    calibration, scored = (whole.select(np.flatnonzero(chosen)) for chosen in (side, ~side))
    reference = Material("reference", source, whole, calibration, scored, agreement)
    documents = texts(Path(heldout or Path(traces).parent / "heldout"), tokenizer, free)
    made = switch_texts(documents, pairs=None if sequences is None else MIN_CLUSTERS)
    moving = read_texts(model, model_folder, made, recorded.header)
    text = "rgpu reference model reading held-out text (not on-policy), one token a pass"
    switch = Material("reference_switch", text, moving, calibration, moving)
    path = Path(shared) / GPT_OSS
    routing = None
    if path.exists():
        trace = load_trace(path)
        if sequences:
            drawn = np.random.default_rng(0).permutation(trace.sequences)[: 2 * sequences]
            trace = trace.select(np.sort(drawn))
        routing = halves(
            "gpt-oss-20b",
            "openai/gpt-oss-20b decode on mixed QA, routing only, no prefill recorded "
            "(AmanPriyanshu/GPT-OSS-MoE-ExpertFingerprinting, Apache-2.0)",
            trace,
        )
    return Inputs(reference, switch, routing)
