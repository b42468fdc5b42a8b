"""The engine run live on a CPU over given tokens, from a store as it is or behind an emulated link.

Every contestant is fed the same tokens, so that all route alike and a perfect forecast is the recorded trace of an earlier
run. Legend: P decode passes, L MoE layers.
"""

import hashlib
import inspect
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from rgpu.contracts import Forecast, Planner, Predictor
from rgpu.experiments.benching.off_processor import PassWaits
from rgpu.replay.controller import Controller
from rgpu.replay.engine import LogEntry
from rgpu.runtime.architecture import Architecture, read_architecture
from rgpu.runtime.loading import load_dense
from rgpu.runtime.session import OffloadSession
from rgpu.runtime.stores import store_form
from rgpu.runtime.telemetry import Telemetry
from rgpu.store.convert import converted
from rgpu.store.source import ExpertSource
from rgpu.store.throttled import ThrottledSource
from rgpu.store.tiers import DIRECT, DISK, open_source
from rgpu.traces.trace import Trace
from rgpu.transfer.counts import TransferCounts
from rgpu.types import ExpertKey, MoEShape, RoutingEvent

CACHE_NAMES = ("cache", "past_key_values")  # the argument's name from transformers 5.24 on, and before
MOVED = ("copies", "demand_bytes", "ahead_bytes", "cancelled", "cancelled_bytes", "promoted", "busy_s", "stall_s")


@dataclass(frozen=True, slots=True)
class Link:
    """What experts come over: reads of the file past the page cache, or (`gb_per_s`) an emulated link in front of the file
    mapped from the page cache."""

    gb_per_s: float | None = None

    @property
    def label(self) -> str:
        """What tables and figures call it."""
        return "direct file reads" if self.gb_per_s is None else f"emulated link of {self.gb_per_s:g} GB/s"

    def opened(self, path: Path) -> ExpertSource:
        if self.gb_per_s is None:
            return open_source(path, DIRECT)
        return ThrottledSource(open_source(path, DISK), 1e9 * self.gb_per_s)


@dataclass(frozen=True, slots=True)
class Text:
    """Tokens that the model is fed: the first `prompt` at once, the others one a pass."""

    tokens: tuple[int, ...]
    prompt: int


@dataclass(frozen=True, slots=True)
class Host:
    """The model without its experts, shared by all runs, and the file that has them."""

    model: Any
    architecture: Architecture
    store: Path

    @classmethod
    def opened(cls, folder: Path, cache: Path | None = None) -> "Host":
        architecture = read_architecture(folder)
        path = converted(folder, store_form(architecture, torch.float32, None), cache)
        return cls(load_dense(folder, architecture, torch.float32, cache), architecture, path)

    def shape(self) -> MoEShape:
        source = open_source(self.store, DISK)
        try:
            return source.shape(self.architecture.top_k)
        finally:
            source.close()


@dataclass(slots=True)
class TimedPredictor:
    """A predictor, and the seconds that observing and forecasting took since `seconds` was last set to 0."""

    inner: Predictor
    seconds: float = 0.0
    events: int = 0
    now: Callable[[], float] = time.perf_counter

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(getattr(self.inner, "needs", ()))  # says when it is asked

    def reset(self) -> None:
        self.inner.reset()

    def observe(self, event: RoutingEvent) -> None:
        began = self.now()
        self.inner.observe(event)
        self.seconds += self.now() - began
        self.events += 1

    def predict(self) -> Forecast:
        began = self.now()
        made = self.inner.predict()
        self.seconds += self.now() - began
        return made


class TimedPlanner:
    """A planner, and the seconds that its plans took since `seconds` was last set to 0."""

    def __init__(self, inner: Planner) -> None:
        self.inner, self.seconds = inner, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)  # what only some planners have: `told`, `observe`

    def plan(self, forecast: Forecast, resident_LE: np.ndarray) -> list[ExpertKey]:
        began = time.perf_counter()
        made = self.inner.plan(forecast, resident_LE)
        self.seconds += time.perf_counter() - began
        return made


@dataclass(slots=True)
class LiveRun:
    """Of the decode passes: `wall_P` seconds, of which `waited_P` for a processor that others held, `stall_P` waiting for
    copies; `counts` of the decision loop; `moved` by the transfer engine; seconds a run spent predicting and planning.
    `printed`: the tokens that greedy decoding would take and a digest of all logits. `log`: every decision."""

    wall_P: np.ndarray
    waited_P: np.ndarray
    stall_P: np.ndarray
    counts: np.ndarray
    moved: dict[str, float]
    predict_s: float
    plan_s: float
    printed: tuple[tuple[int, ...], str]
    log: list[LogEntry]
    trace: Trace | None = field(default=None, repr=False)

    @property
    def seconds_P(self) -> np.ndarray:
        """Seconds of each decode pass without what the computing thread waited for other processes. Copies that went on
        meanwhile got that time for free, and what the copying thread waited is still in `stall_P`: neither this nor `wall_P`
        alone says what an idle machine would."""
        return np.maximum(self.wall_P - self.waited_P, 0.0)


def run_text(
    host: Host, link: Link, text: Text, controller: Callable[[MoEShape], Controller], hidden: bool, record: bool = False
) -> LiveRun:
    """Feed `text` from an empty pool. `controller` builds a new one, as for `OffloadSession`; `record`: the trace too."""
    telemetry = Telemetry()
    session = OffloadSession(
        host.model, None, host.architecture, link.opened(host.store), controller, hidden=hidden, record=record, threads=1,
        telemetry=telemetry,
    )  # fmt: skip
    try:
        waits = PassWaits(host.model)
        try:
            logits, before, timers = _feed(session, text)
        finally:
            waits.remove()
        after = session.transfer.counts()
        rows = telemetry.rows[1:]
        return LiveRun(
            np.array([row.end_s - row.begin_s for row in rows]), np.array(waits.seconds[1:]),
            np.array([row.stall_s for row in rows]), np.sum([row.counts for row in rows], axis=0), _moved(before, after),
            timers[0].seconds if timers[0] is not None else 0.0, timers[1].seconds if timers[1] is not None else 0.0,
            _printed(logits), session.log, session.trace() if record else None,
        )  # fmt: skip
    finally:
        session.close()


def _feed(session: OffloadSession, text: Text) -> tuple[list[torch.Tensor], TransferCounts, tuple[Any, Any]]:
    """(last logits of every pass, what was moved before the first decode pass, the controller's timers)."""
    ids, model, logits = torch.tensor(text.tokens)[None], session.model, []
    predictor, planner = session.controller.predictor, session.controller.planner
    timers = (
        predictor if isinstance(predictor, TimedPredictor) else None,
        planner if isinstance(planner, TimedPlanner) else None,
    )
    known = inspect.signature(type(model).forward).parameters
    held = {next(name for name in CACHE_NAMES if name in known): DynamicCache(config=model.config)}
    with torch.inference_mode():
        out = model(input_ids=ids[:, : text.prompt], use_cache=True, **held)
        logits.append(out.logits[0, -1].clone())
        for timer in timers:
            if timer is not None:
                timer.seconds = 0.0
        before = session.transfer.counts()
        for at in range(text.prompt, len(text.tokens)):
            out = model(input_ids=ids[:, at : at + 1], use_cache=True, **held)
            logits.append(out.logits[0, -1].clone())
    return logits, before, timers


def _moved(before: TransferCounts, after: TransferCounts) -> dict[str, float]:
    return {name: float(getattr(after, name) - getattr(before, name)) for name in MOVED}


def _printed(logits: list[torch.Tensor]) -> tuple[tuple[int, ...], str]:
    digest = hashlib.sha256()
    for values in logits:
        digest.update(values.numpy().tobytes())
    return tuple(int(values.argmax()) for values in logits), digest.hexdigest()[:16]
