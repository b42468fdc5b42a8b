"""The contest: every arm on every text, capacity and link, in turns, checked, replayed and simulated.

A round is one text over one link at one capacity: all arms run in it one after the other, in an order of its own, so that
what disturbs the machine hits them alike. Legend: P decode passes, R repeats, S texts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from rgpu.errors import ConsistencyError
from rgpu.experiments.benching.calibrating import event_seconds
from rgpu.experiments.benching.quiet import Quiet
from rgpu.experiments.study.live_arms import Entrants, compiled
from rgpu.experiments.study.live_clock import Clock
from rgpu.experiments.study.live_engine import Host, Link, LiveRun, Text, run_text
from rgpu.experiments.study.prefetch_time import NONE, ORACLE, Arm
from rgpu.policies.loop import LOADED_BYTES, PREFETCH_HITS, PROACTIVE_LOADS, WASTED
from rgpu.policies.lru import Lru
from rgpu.replay.controller import Controller
from rgpu.replay.pool import PoolConfig
from rgpu.replay.prefetch_outcome import outcomes
from rgpu.replay.prefetching import NoPrefetch, Prefetched, RecordedForecasts, replay_prefetch
from rgpu.traces.trace import Trace
from rgpu.types import MoEShape


@dataclass(frozen=True, slots=True)
class Size:
    """How much runs: decode passes of each text, repeats, shares of the experts, links, rounds of calibration."""

    texts: int
    steps: int
    repeats: int
    shares: tuple[float, ...]
    links: tuple[Link, ...]
    rounds: int
    patience_s: float


@dataclass(frozen=True, slots=True)
class Standing:
    """One arm at one capacity over one link. float64 [S]: `seconds_S` of decode passes without waits for other processes (each
    pass with its median repeat; see `LiveRun.seconds_P`), `wall_S` with them, `simulated_S`, `steps_S`. `median_s` of all
    passes, `spread` of the repeats' own means over their mean. Sums over texts and repeats a decode pass: `per_pass`.
    Microseconds an event: `predict_us` and `plan_us` live, `decide_us` all that deciding takes, alone."""

    arm: Arm
    seconds_S: np.ndarray
    wall_S: np.ndarray
    simulated_S: np.ndarray
    steps_S: np.ndarray
    median_s: float
    spread: float
    per_pass: Mapping[str, float]
    predict_us: float
    plan_us: float
    decide_us: float


@dataclass(frozen=True, slots=True)
class Table:
    """All arms at one capacity over one link, the baseline first. Seconds over all texts: `bound_s` that no schedule can beat
    (simulated), `resident_s` with every expert in a slot (measured), `resident_wall_s` with waits for other processes."""

    link: Link
    share: float
    slots: int
    standings: tuple[Standing, ...]
    bound_s: float
    resident_s: float
    resident_wall_s: float


@dataclass
class Contest:
    """Holds `arms` against one another. `predictors`: fitted, by name."""

    host: Host
    texts: Sequence[Text]
    predictors: Mapping[str, Any]
    arms: Sequence[Arm]
    clock: Clock
    quiet: Quiet
    seed: int = 0
    recorded: list[LiveRun] = field(default_factory=list)
    resident: list[list[LiveRun]] = field(default_factory=list)  # by text

    def __post_init__(self) -> None:
        self.shape = self.host.shape()
        for predictor in self.predictors.values():
            compiled(predictor, self.shape)

    def record(self) -> None:
        """The trace of each text, which the oracle reads and replays go through, and what every run has to print."""
        for text in self.texts:
            self.recorded.append(run_text(self.host, Link(), text, self._plain, hidden=True, record=True))

    def _plain(self, shape: MoEShape) -> Controller:
        """What records: LRU with a quarter of the experts, and a predictor, not listened to, for what enters each layer."""
        pool = PoolConfig(slots=max(shape.top_k + 1, shape.experts // 4))
        reader = next((p for p in self.predictors.values() if "pre_attention" in getattr(p, "needs", ())), None)
        return Controller(Lru(), shape, pool, predictor=reader, planner=None if reader is None else NoPrefetch())

    def entrants(self, text: int, slots: int, link: Link) -> Entrants:
        trace = self.recorded[text].trace
        assert trace is not None
        return Entrants(self.predictors, trace, slots, self.clock.link_time(link, self.shape))

    def hold(self, size: Size, shares: Mapping[float, int], bar: Any = None) -> list[Table]:
        """Every round of every repeat, then the tables. `shares`: slots a layer by share of the experts."""
        if not self.recorded:
            self.record()
        rng = np.random.default_rng(self.seed)
        runs: dict[tuple[Link, float, Arm], list[list[LiveRun]]] = {}
        self.resident = [[] for _ in self.texts]
        for _ in range(size.repeats):
            for text in range(len(self.texts)):
                self.resident[text].append(self._checked(text, Link(), _resident, False, "every expert resident"))
                for share, slots in shares.items():
                    for link in size.links:
                        entrants = self.entrants(text, slots, link)
                        for at in rng.permutation(len(self.arms)):
                            arm = self.arms[int(at)]
                            kept = runs.setdefault((link, share, arm), [[] for _ in self.texts])
                            kept[text].append(self._run(text, link, arm, entrants))
                            if bar is not None:
                                bar.update()
        return [self._table(runs, link, share, slots) for link in size.links for share, slots in shares.items()]

    def _run(self, text: int, link: Link, arm: Arm, entrants: Entrants) -> LiveRun:
        said = f"{named(arm)} over {link.label} at {entrants.slots} slots"
        return self._checked(text, link, entrants.factory(arm), entrants.hidden(arm), said)

    def _checked(
        self, text: int, link: Link, factory: Callable[[MoEShape], Controller], hidden: bool, said: str
    ) -> LiveRun:
        """A run that printed what the recorded one did, logits bit for bit."""
        run = self.quiet.run(lambda: run_text(self.host, link, self.texts[text], factory, hidden))
        if run.printed != self.recorded[text].printed:
            raise ConsistencyError(f"{said} printed other tokens or logits than the recorded run")
        return run

    def _table(
        self, runs: Mapping[tuple[Link, float, Arm], list[list[LiveRun]]], link: Link, share: float, slots: int
    ) -> Table:
        found = tuple(self._standing(arm, runs[link, share, arm], link, slots) for arm in self.arms)
        machine = self.clock.machine(link, 1e-6 * found[0].decide_us, hidden=False)
        traces = [run.trace for run in self.recorded if run.trace is not None]
        bound_s = sum(self.clock.bound_s(trace, machine, slots) for trace in traces)
        resident_s = sum(float(np.median([r.seconds_P for r in runs], axis=0).sum()) for runs in self.resident)
        resident_wall_s = sum(float(np.median([r.wall_P for r in runs], axis=0).sum()) for runs in self.resident)
        return Table(link, share, slots, found, bound_s, resident_s, resident_wall_s)

    def _standing(self, arm: Arm, runs_SR: list[list[LiveRun]], link: Link, slots: int) -> Standing:
        decided, decide_s, ends = [], [], dict.fromkeys(("useful", "wasted", "pending", "harmful"), 0)
        states = False
        for text, repeats in enumerate(runs_SR):
            entrants, trace = self.entrants(text, slots, link), self.recorded[text].trace
            assert trace is not None
            states = entrants.states(arm)
            fresh = entrants.factory(arm, timed=False)(self.shape)
            decide_s.append(event_seconds(fresh, trace))
            if any(run.log != fresh.log for run in repeats):
                raise ConsistencyError(
                    f"{named(arm)} over {link.label} at {slots} slots decided live what its replay does not"
                )
            found, shadow = replayed(entrants, arm, trace)
            decided.append(found)
            if arm.planner != NONE:
                after = found.decisions.proactive[:, 0] >= trace.layers  # those submitted in decode passes
                for name, count in outcomes(found.decisions, shadow.decisions).counts(after).items():
                    ends[name] += count
        machine = self.clock.machine(link, float(np.median(decide_s)), states)
        simulated = [
            self.clock.decode_s(found.decisions, run.trace, machine)
            for found, run in zip(decided, self.recorded, strict=True)
            if run.trace is not None
        ]
        return standing(arm, runs_SR, np.array(simulated), ends, float(np.median(decide_s)), self.shape.layers)


def _resident(shape: MoEShape) -> Controller:
    """Every expert in a slot before the first token."""
    uses_LE = np.ones((shape.layers, shape.experts), np.int64)
    return Controller(Lru(), shape, PoolConfig(slots=shape.experts), uses_LE=uses_LE)


def named(arm: Arm) -> str:
    """The arm in words."""
    if arm.predictor == NONE:
        return arm.policy
    plus = " + evict" if arm.policy == "joint_forecast" else ""
    return f"{arm.predictor}, evict only" if arm.planner == NONE else f"{arm.predictor}, {arm.planner}{plus}"


def replayed(entrants: Entrants, arm: Arm, trace: Trace) -> tuple[Prefetched, Prefetched]:
    """The arm's decisions on the trace, and those of its policy with the same forecasts and no prefetch."""
    fresh = entrants.factory(arm, timed=False)
    source = entrants.source(arm)
    if source is None:
        source = entrants.source(Arm(ORACLE, NONE))  # never looked at
    elif not isinstance(source, RecordedForecasts):
        source = RecordedForecasts(source, trace)
    example = fresh(trace.shape)
    pool = PoolConfig(slots=entrants.slots)

    def planner() -> Any:
        made = fresh(trace.shape).planner
        return NoPrefetch() if made is None else made

    shadow = replay_prefetch(trace, example.policy, pool, source, NoPrefetch)
    return replay_prefetch(trace, example.policy, pool, source, planner), shadow


def standing(
    arm: Arm, runs_SR: list[list[LiveRun]], simulated_S: np.ndarray, ends: Mapping[str, int], decide_s: float, layers: int
) -> Standing:  # fmt: skip
    """Adds up an arm's runs; `ends`: of its loads ahead, over all texts (every repeat decides the same)."""
    repeats = len(runs_SR[0])
    median_SP = [np.median([run.seconds_P for run in runs], axis=0) for runs in runs_SR]
    own_R = [float(np.mean([runs[r].seconds_P.mean() for runs in runs_SR])) for r in range(repeats)]
    every = [run for runs in runs_SR for run in runs]
    passes = sum(len(run.wall_P) for run in every)
    counts = np.sum([run.counts for run in every], axis=0)
    moved = {name: sum(run.moved[name] for run in every) for name in every[0].moved}
    size = moved["demand_bytes"] + moved["ahead_bytes"]
    each = size / moved["copies"] if moved["copies"] else 0.0
    totals = {
        "stall_s": float(sum(run.stall_P.sum() for run in every)), "bytes_loaded": size,
        "bytes_decided": float(counts[LOADED_BYTES]),
        "bytes_wasted": max(0.0, counts[WASTED] * each - moved["cancelled_bytes"]),
        "loads_ahead": float(counts[PROACTIVE_LOADS]), "prefetch_hits": float(counts[PREFETCH_HITS]),
        "late": moved["promoted"], "cancelled": moved["cancelled"], "busy_s": moved["busy_s"],
        **{name: float(count * repeats) for name, count in ends.items()},
    }  # fmt: skip
    events = passes * layers
    return Standing(
        arm, np.array([p.sum() for p in median_SP]),
        np.array([np.median([run.wall_P for run in runs], axis=0).sum() for runs in runs_SR]), simulated_S,
        np.array([float(len(p)) for p in median_SP]), float(np.median(np.concatenate(median_SP))),
        float(np.std(own_R, ddof=1) / np.mean(own_R)) if repeats > 1 else 0.0,
        {name: value / passes for name, value in totals.items()},
        1e6 * sum(run.predict_s for run in every) / events, 1e6 * sum(run.plan_s for run in every) / events, 1e6 * decide_s,
    )  # fmt: skip


def standing_of(table: Table, arm: Arm) -> Standing | None:
    """Where `arm` stands; None where it did not compete."""
    return next((s for s in table.standings if s.arm == arm), None)


def pooled(first: Standing, again: Standing | None) -> Standing:
    """The mean of both runs of the baseline in a round, so that the noise of one run is not that of every comparison."""
    if again is None:
        return first
    means = {
        name: (getattr(first, name) + getattr(again, name)) / 2
        for name in ("seconds_S", "wall_S", "simulated_S", "median_s", "spread", "decide_us")
    }
    return replace(first, per_pass={n: (v + again.per_pass[n]) / 2 for n, v in first.per_pass.items()}, **means)


def pick(trace: Trace, texts: int, steps: int) -> list[Text]:
    """Sequences spread evenly over those long enough: their prompts, then `steps` tokens each."""
    tokens, phase = trace.require("token_ids", "a live run"), trace.require("phase", "a live run")
    found = []
    for begin, end in zip(trace.seq_offsets[:-1], trace.seq_offsets[1:], strict=True):
        prompt = int((phase[begin:end] == 0).sum())
        if prompt > 0 and prompt + steps <= end - begin:
            found.append(Text(tuple(int(t) for t in tokens[begin : begin + prompt + steps]), prompt))
    at = np.linspace(0, len(found) - 1, min(texts, len(found))).round().astype(int)
    return [found[i] for i in np.unique(at)]
