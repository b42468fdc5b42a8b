"""Prefetching judged in time: predictor x planner x capacity x machine, decided once and clocked. All times simulated.

The reference model is small, so its routing is timed with the layers of a real model of its shape (32 experts, top-4): bytes
and operations of `conf/cost`, labelled in the trace's name. Legend: S sequences, P passes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from rgpu.contracts import Planner
from rgpu.experiments.study.predicting_time import Work
from rgpu.experiments.study.time_saved import MARGIN, worded
from rgpu.experiments.suites.published.clock import machine, yamls
from rgpu.planning.adaptive_width import AdaptiveWidth
from rgpu.planning.budgeted import Budgeted
from rgpu.planning.expected_value import ExpectedValue
from rgpu.planning.link_time import LinkTime, link_time
from rgpu.planning.multi_horizon import MultiHorizon
from rgpu.planning.percentile import Percentile
from rgpu.planning.threshold import Threshold
from rgpu.planning.top_k import TopK
from rgpu.policies.belady_bypass import BeladyBypass
from rgpu.policies.joint_forecast import JointForecast
from rgpu.policies.loop import HITS
from rgpu.policies.lru import Lru
from rgpu.policies.policy import Policy
from rgpu.predictors.oracle import Oracle
from rgpu.replay.engine import replay
from rgpu.replay.pool import PoolConfig
from rgpu.replay.prediction import evaluate
from rgpu.replay.prefetch_outcome import outcomes
from rgpu.replay.prefetching import NoPrefetch, Prefetched, RecordedForecasts, replay_prefetch
from rgpu.replay.scores import over_layers
from rgpu.replay.timing.bound import time_bound
from rgpu.replay.timing.cost import ModelCost, cost_of
from rgpu.replay.timing.facts import PassFacts, pass_facts
from rgpu.replay.timing.result import TimingResult
from rgpu.replay.timing.simulate import simulate
from rgpu.results.pairs import samples_for
from rgpu.results.rows import Context
from rgpu.results.statistics import PAIR_SAMPLES, Interval, holm, paired_difference
from rgpu.traces.trace import Trace

MACHINES = ("rtx4060_laptop", "rtx3060", "rtx5060ti", "rtx4090", "rtx5090", "h200")
FEW = ("rtx4060_laptop", "rtx4090", "h200")
COST = "gpt_oss_20b"  # 32 experts, top-4, like the reference model
SHARE = 0.25
NONE, ORACLE = "none", "oracle"
TIMED = ("budgeted", "expected_value")  # planners whose decisions depend on the machine
POLICIES: dict[str, Policy] = {"lru": Lru(), "joint_forecast": JointForecast()}
ENDS = ("useful", "late", "wasted", "cancelled", "pending")


@dataclass(frozen=True, slots=True)
class Arm:
    """What decides: names of a predictor, a planner and a policy. `NONE` plans nothing (and LRU then needs no predictor)."""

    predictor: str
    planner: str
    policy: str = "lru"


BASELINE = Arm(NONE, NONE)
FREE = Arm("gate_lookahead", "top_k")  # untrained look-ahead as systems ship it


def planner_of(arm: Arm, top_k: int, time: LinkTime) -> Callable[[], Planner]:
    """Makes the planner of an arm, at widths that fit a model's top-k."""
    us = {name: 1e6 * seconds for name, seconds in asdict(time).items()}
    link: dict[str, Any] = {name.replace("_s", "_us"): value for name, value in us.items()}
    joint = arm.policy == "joint_forecast"
    made: dict[str, Callable[[], Planner]] = {
        NONE: NoPrefetch,
        "top_k": lambda: TopK(top_k),
        "threshold": lambda: Threshold(0.5, width=2 * top_k),
        "percentile": lambda: Percentile(75.0, width=4 * top_k),
        "multi_horizon": lambda: MultiHorizon(width=top_k, horizon=3),
        "adaptive_width": lambda: AdaptiveWidth(width=2 * top_k, start=top_k),
        "budgeted": lambda: Budgeted(**link, width=top_k),
        "expected_value": lambda: ExpectedValue(**link, width=2 * top_k, joint=joint),
    }
    return made[arm.planner]


@dataclass
class Court:
    """One scored trace with its fitted predictors; decisions and timings are kept, so that arms share them.

    `predicting`: seconds that observing and forecasting one event take, by predictor; none where it is not said.
    """

    trace: Trace
    predictors: dict[str, Any]
    costs: tuple[str, ...] = (COST,)
    predicting: Mapping[str, Work] = field(default_factory=dict)
    _kept: dict[Any, Any] = field(default_factory=dict)

    @cached_property
    def forecasts(self) -> dict[str, Any]:
        made: dict[str, Any] = {n: RecordedForecasts(p, self.trace) for n, p in self.predictors.items()}
        perfect = RecordedForecasts(Oracle().fit(self.trace), self.trace)
        return made | {ORACLE: perfect, NONE: perfect}  # where nothing is loaded it is never looked at

    def policy(self, arm: Arm) -> Policy:
        return POLICIES[arm.policy]

    def cost(self, name: str) -> tuple[ModelCost, PassFacts]:
        return self._once(("cost", name), lambda: self._cost(name))

    def _cost(self, name: str) -> tuple[ModelCost, PassFacts]:
        cost = cost_of(yamls("cost")[name], self.trace.layers)
        return cost, pass_facts(self.trace, cost.window)

    def decided(self, arm: Arm, slots: int, where: str, cost: str) -> Prefetched:
        key = (arm, slots, *((where, cost) if arm.planner in TIMED else ()))
        return self._once(("decided", key), lambda: self._decide(arm, slots, where, cost))

    def _decide(self, arm: Arm, slots: int, where: str, cost: str) -> Prefetched:
        context = float(np.diff(self.trace.seq_offsets).mean()) / 2
        time = link_time(machine(where), self.cost(cost)[0], self.trace.header.top_k, context)
        planner = planner_of(arm, self.trace.header.top_k, time)
        pool, source = PoolConfig(slots=slots), self.forecasts[arm.predictor]
        return replay_prefetch(self.trace, self.policy(arm), pool, source, planner)

    def timed(self, arm: Arm, slots: int, where: str, cost: str) -> TimingResult:
        def make() -> TimingResult:
            log = self.decided(arm, slots, where, cost).decisions
            model, facts = self.cost(cost)
            return simulate(log, facts, machine(where), model, self.trace.header.top_k)

        return self._once(("timed", arm, slots, where, cost), make)

    def predict_s(self, arm: Arm, where: str, cost: str) -> float:
        """Seconds a forward pass that predicting takes, as if the device waited for a CPU to do it."""
        work = self.predicting.get(arm.predictor)
        return self.trace.layers * work.seconds(machine(where), self.cost(cost)[0], self.trace) if work else 0.0

    def seconds(
        self, arm: Arm, slots: int, where: str, cost: str, predicting: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """float64 [S]: seconds of a sequence's generated tokens, and how many these are; with what predicting takes."""
        found = self.timed(arm, slots, where, cost)
        decode = found.facts.decode
        owner, count = found.facts.sequence[decode], self.trace.sequences
        extra = self.predict_s(arm, where, cost) if predicting else 0.0
        return (
            np.bincount(owner, found.seconds_P[decode] + extra, count),
            np.bincount(owner, found.facts.steps[decode], count),
        )

    def tpot(self, arm: Arm, slots: int, where: str, cost: str, predicting: bool = False) -> float:
        """Seconds per output token."""
        seconds_S, steps_S = self.seconds(arm, slots, where, cost, predicting)
        return float(seconds_S.sum() / steps_S.sum())

    def saved(
        self, arm: Arm, other: Arm, slots: int, where: str, cost: str, *, margin: float = 0.0, predicting: bool = False,
        samples: int = PAIR_SAMPLES,
    ) -> tuple[Interval, float]:  # fmt: skip
        """TPOT of `other` less that of `arm` on the same resampled sequences, and the p-value of "within `margin`"."""
        one, two = (self.seconds(a, slots, where, cost, predicting) for a in (other, arm))
        kept = (one[1] > 0) & (two[1] > 0)
        pair = (one[0][kept], one[1][kept], two[0][kept], two[1][kept])
        return paired_difference(*pair, margin=margin, samples=samples)

    def bound_s(self, slots: int, where: str, cost: str) -> float:
        """Seconds of the whole trace that no schedule with the same slots, fetching its misses, can beat."""

        def loads() -> int:
            return replay(self.trace, BeladyBypass(), PoolConfig(slots=slots), reset="sequence").demand_loads

        model, facts = self.cost(cost)
        least = self._once(("least", slots), loads) * float(model.expert_bytes[0])
        events = self.decided(BASELINE, slots, where, cost).decisions.events
        top_k = self.trace.header.top_k
        return time_bound(events, facts, machine(where), model, top_k, least, ("fetch",)).seconds

    def recall(self, name: str) -> float:
        """Share of the experts of the next layer that are among the K most likely."""
        if name == ORACLE:
            return 1.0

        def make() -> float:
            rows = over_layers(evaluate(self.predictors[name], self.trace, [self.trace.header.top_k], 1))
            return float(next(r["value"] for r in rows if r["metric"] == "recall" and r["case"] == "layer"))

        return self._once(("recall", name), make)

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]


def slots_of(trace: Trace, share: float) -> int:
    """Slots of a layer's pool that hold about this share of its experts, at least top-k and one."""
    return max(trace.header.top_k + 1, round(share * trace.header.num_experts))


def arms_of(names: Sequence[str], quick: bool) -> list[Arm]:
    """The grid: every planner under LRU, and with eviction by the same forecast those that can use it."""
    plain = ("top_k", "budgeted", "expected_value")
    planners = (
        ("top_k", "expected_value") if quick else (*plain, "threshold", "percentile", "multi_horizon", "adaptive_width")
    )
    arms = [BASELINE]
    for name in names:
        arms += [Arm(name, planner) for planner in planners]
        joint = ("expected_value",) if quick else (NONE, *plain)
        arms += [Arm(name, planner, "joint_forecast") for planner in joint]
    return arms


def rows(
    court: Court, context: Context, arms: Sequence[Arm], shares: Sequence[float], machines: Sequence[str], bar: Any = None
) -> list[pa.Table]:  # fmt: skip
    """TPOT of every arm, what it saves against LRU without prefetch, ends of its bytes a pass, and its distance from the
    bound; experiment `prefetch_time`. Predicting takes no time here: rows `predicting` say what it would take. Each machine
    at each share is one table of differences, Holm-corrected over its arms."""
    tables: list[pa.Table] = []
    for cost in court.costs:
        for share in shares:
            slots = slots_of(court.trace, share)
            for arm in arms:
                for where in machines:
                    court.timed(arm, slots, where, cost)
                if bar is not None:
                    bar.update()
            for where in machines:
                gains = _gains(court, [a for a in arms if a != BASELINE], slots, where, cost)
                for arm in arms:
                    tables += _arm_rows(court, context, arm, slots, where, cost, gains.get(arm))
    return tables


def _gains(
    court: Court, arms: Sequence[Arm], slots: int, where: str, cost: str
) -> dict[Arm, tuple[Interval, float, str]]:
    """By arm: time saved against LRU, Holm-adjusted p, and "better", "worse" or "cannot tell"."""
    margin = MARGIN * court.tpot(BASELINE, slots, where, cost)
    samples = samples_for(len(arms))
    found = [court.saved(arm, BASELINE, slots, where, cost, margin=margin, samples=samples) for arm in arms]
    adjusted = holm([p for _, p in found])
    return {
        arm: (gain, float(p), worded(gain, float(p), margin, court.trace.sequences))
        for arm, (gain, _), p in zip(arms, found, adjusted, strict=True)
    }


def _arm_rows(
    court: Court, context: Context, arm: Arm, slots: int, where: str, cost: str, against: tuple[Interval, float, str] | None
) -> list[pa.Table]:  # fmt: skip
    found = court.timed(arm, slots, where, cost)
    decided = court.decided(arm, slots, where, cost)
    (model, facts), summary = court.cost(cost), found.summary()
    passes = len(facts.decode)  # a token each, a prompt one: bytes are counted of prompts too
    at = context.at(
        experiment="prefetch_time", trace=named(context.trace, cost), policy=arm.policy, predictor=arm.predictor,
        case=arm.planner, kind="demand" if arm.planner == NONE else "proactive", scope="layer", reset="sequence", slots=slots,
        capacity_share=slots / court.trace.header.num_experts, machine=where, miss="fetch", simulated=True,
    )  # fmt: skip
    seconds_S, steps_S = court.seconds(arm, slots, where, cost)
    kept = steps_S > 0
    bound = court.bound_s(slots, where, cost)
    hits, accesses = int(decided.counts[:, HITS].sum()), len(decided.decisions.codes)
    tables = [
        at.ratio("tpot", seconds_S[kept], steps_S[kept], unit="s/token", keep=False),
        at.rows("bound_share", "share", bound / found.seconds, numerator=bound, denominator=found.seconds),
        at.rows("hit_rate", "share", hits / accesses, numerator=hits, denominator=accesses),
    ]
    loaded = sum(float(summary[f"bytes_{name}"]) for name in ("demand", "fill", "proactive"))
    tables.append(at.rows("bytes_loaded", "bytes/pass", loaded / passes))
    if against is None:
        return tables
    gain, p, said = against
    stalled = court.timed(BASELINE, slots, where, cost).summary()["tpot_exposed_s"] - summary["tpot_exposed_s"]
    tables.append(at.rows("stall_saved", "s/token", stalled, baseline="lru"))
    if arm.predictor in court.predicting:
        tables.append(at.rows("predicting", "s/token", court.predict_s(arm, where, cost)))
    known = arm.predictor in (*court.predictors, ORACLE)
    tables.append(
        at.rows("tpot_saved", "s/token", gain.estimate, lo=gain.lo, hi=gain.hi, p_value=p, baseline="lru", verdict=said,
                x=court.recall(arm.predictor) if known else None)
    )  # fmt: skip
    if arm.planner != NONE:
        shadow = court.decided(Arm(arm.predictor, NONE, arm.policy), slots, where, cost).decisions
        harmful = outcomes(decided.decisions, shadow).counts()["harmful"] * float(model.expert_bytes[0])
        ends = {name: float(summary[f"bytes_{name}"]) for name in ENDS} | {"harmful": harmful}
        tables += [at.rows(f"bytes_{name}", "bytes/pass", value / passes) for name, value in ends.items()]
    return tables


def named(trace: str, cost: str) -> str:
    """The trace's name with whose layers it is timed with."""
    return f"{trace}, timed as {cost.replace('_', '-')}"
