"""What the figures are computed on: recorded traces, and calibrated synthetic ones that extend the scale.

Each is cut once into a calibration and a scored half by document; every figure scores the same half.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rgpu.results.rows import Context
from rgpu.traces.split import split
from rgpu.traces.storage import load_trace
from rgpu.traces.synthetic import LABEL, Fit, Targets, calibrated
from rgpu.traces.trace import Trace

GPT_OSS = "traces/gpt-oss-20b_decode_mixedqa_w.npz"
DECAY = (0.351 - 0.190) / (0.438 - 0.190)  # of reuse beyond popularity, what is left at lag 8: gpt-oss-20b's full trace


@dataclass(frozen=True, slots=True)
class Subject:
    """A trace and its halves. `fit`: what a synthetic trace reached of its targets."""

    name: str
    source: str
    whole: Trace
    calibration: Trace
    scored: Trace
    synthetic: bool = False
    fit: Fit | None = None
    targets: Targets | None = None

    def context(self, figure: str, provenance: dict[str, Any], **columns: Any) -> Context:
        return Context(
            experiment=figure,
            model=self.scored.header.model,
            trace=self.name,
            source=self.source,
            trace_tokens=self.scored.tokens,
            synthetic=self.synthetic,
            provenance=provenance,
        ).at(**columns)


@dataclass(frozen=True, slots=True)
class Model:
    """A model known by its counts. `alone`: reuse of independent draws, from the counts' own sidecar."""

    name: str
    title: str
    counts: str
    top_k: int
    reuse: float
    reuse_source: str
    alone: float
    expert_bytes: int
    sequences: int
    tokens: int

    def targets(self) -> Targets:
        far = self.alone + DECAY * (self.reuse - self.alone)
        return Targets(
            self.reuse,
            round(far, 4),
            f"lag 1: {self.reuse_source}; lag 8: {DECAY:.2f} of what exceeds independent draws ({self.alone}) is kept, as in "
            "gpt-oss-20b's decode trace (reuse 0.438 at lag 1, 0.351 at lag 8, 0.190 if independent)",
        )


MODELS = (
    Model(
        "qwen3-30b-synthetic",
        "Qwen3-30B-A3B",
        "qwen3-30b-a3b_iq3xxs_decode.npz",
        8,
        0.380,
        "previous-token recall of Qwen3-30B-A3B in BigMoeOnEdge's route traces",
        0.1412,
        2_850_000,
        40,
        112,
    ),
    Model(
        "qwen3-next-synthetic",
        "Qwen3-Next-80B-A3B",
        "qwen3-next-80b-a3b_iq3xxs_decode.npz",
        10,
        0.38,
        "previous-token recall reported for Qwen3.8-Flash-Next, of the same shape (512 experts, top-10)",
        0.0391,
        1_770_000,
        36,
        80,
    ),
)


def halves(name: str, source: str, trace: Trace, sequences: int | None = None, **more: Any) -> Subject:
    """Both halves by document; at most `sequences` of each."""
    parts = split(trace)
    known, scored = (trace.select(ids[:sequences]) for ids in (parts.calibration, parts.scored))
    return Subject(name, source, trace, known, scored, **more)


def recorded(traces: Path, shared: Path, quick: bool) -> tuple[list[Subject], list[str]]:
    """(subjects, reasons for what is left out)."""
    reference = load_trace(traces / "reference.safetensors")
    found = [
        halves(
            "reference",
            "rgpu reference model, sampled continuations of held-out prompts",
            reference,
            10 if quick else None,
        )
    ]
    path = shared / GPT_OSS
    if not path.exists():
        return found, ["gpt-oss-20b: its trace was not there (shared folder)"]
    source = (
        "openai/gpt-oss-20b decode on mixed QA, no prefill recorded (AmanPriyanshu/GPT-OSS-MoE-ExpertFingerprinting)"
    )
    trace = load_trace(path)
    if quick:
        trace = trace.select(np.sort(np.random.default_rng(0).permutation(trace.sequences)[:24]))
    return [*found, halves("gpt-oss-20b", source, trace)], []


def synthetic(shared: Path, quick: bool, seed: int) -> tuple[list[Subject], list[str]]:
    """(calibrated synthetic subjects, reasons for what is left out). The counts are read where they are, never copied."""
    found, missing = [], []
    for model in MODELS[:1] if quick else MODELS:
        path = shared / "popularity" / model.counts
        if not path.exists():
            missing.append(f"{model.title}, {LABEL}: its popularity counts were not there (shared folder)")
            continue
        with np.load(path, allow_pickle=False) as counts:
            counts_LE = counts["heat"]
        found.append(
            synthesise(
                model,
                counts_LE[:12] if quick else counts_LE,
                12 if quick else model.sequences,
                48 if quick else model.tokens,
                seed,
            )
        )
    return found, missing


def synthesise(model: Model, counts_LE: np.ndarray, sequences: int, tokens: int, seed: int) -> Subject:
    targets = model.targets()
    trace, fit = calibrated(
        model.title,
        counts_LE,
        model.top_k,
        targets,
        sequences=sequences,
        tokens=tokens,
        seed=seed,
        expert_bytes=model.expert_bytes,
    )
    source = (
        f"{LABEL}: popularity of {model.title} (counts of doramirdor/mbolt, MIT), correlation "
        f"{fit.popularity_correlation:.3f}; reuse at lag 1 {fit.near:.3f} (target {targets.near:.3f}), "
        f"at lag 8 {fit.far:.3f} (target {targets.far:.3f})"
    )
    return halves(model.name, source, trace, synthetic=True, fit=fit, targets=targets)
