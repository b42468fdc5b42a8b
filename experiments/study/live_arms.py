"""Who competes live: predictor, planner and policy, made anew for every run from what was fitted once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rgpu.experiments.study.live_engine import TimedPlanner, TimedPredictor
from rgpu.experiments.study.prefetch_time import BASELINE, FREE, NONE, ORACLE, POLICIES, Arm, planner_of
from rgpu.experiments.study.prefetch_verdict import DEFAULT
from rgpu.planning.link_time import LinkTime
from rgpu.predictors.oracle import Oracle
from rgpu.replay.controller import Controller
from rgpu.replay.pool import PoolConfig
from rgpu.replay.prefetching import RecordedForecasts
from rgpu.runtime.session import sample_event
from rgpu.traces.trace import Trace
from rgpu.types import MoEShape

AGAIN = Arm(NONE, NONE, "lru again")  # the baseline once more: half of it, and what a difference of nothing looks like
EVICTS = Arm(DEFAULT.predictor, NONE, DEFAULT.policy)
PERFECT = (Arm(ORACLE, FREE.planner), Arm(ORACLE, NONE, DEFAULT.policy), Arm(ORACLE, DEFAULT.planner, DEFAULT.policy))


def arms_of(names: Sequence[str], quick: bool) -> list[Arm]:
    """LRU twice; each predictor as look-ahead is shipped (`top_k`, LRU) and with the default's planner and policy. The quick
    form has two arms of predictors, where `names` has those."""
    if quick:
        return [BASELINE, AGAIN, *(arm for arm in (FREE, DEFAULT) if arm.predictor in names), PERFECT[-1]]
    arms = [BASELINE, AGAIN]
    for name in names:
        arms += [Arm(name, FREE.planner), Arm(name, DEFAULT.planner, DEFAULT.policy)]
    return [*arms, *([EVICTS] if EVICTS.predictor in names else []), *PERFECT]


@dataclass
class Entrants:
    """Builds controllers. `predictors` fitted, by name; `trace` of the text that is about to run, which the oracle reads."""

    predictors: Mapping[str, Any]
    trace: Trace
    slots: int
    time: LinkTime

    def hidden(self, arm: Arm) -> bool:
        """Whether the arm's events carry the router's input."""
        return "hidden" in getattr(self.predictors.get(arm.predictor), "needs", ())

    def states(self, arm: Arm) -> bool:
        """Whether the arm reads a state of each layer, the router's input or another."""
        return not {"hidden", "pre_attention"}.isdisjoint(getattr(self.predictors.get(arm.predictor), "needs", ()))

    def source(self, arm: Arm) -> Any:
        """What forecasts: a fitted predictor, or a lookup of what the recorded run did next; None where nothing looks at it."""
        if arm.predictor == ORACLE:
            return RecordedForecasts(Oracle().fit(self.trace), self.trace)
        return self.predictors.get(arm.predictor)

    def factory(self, arm: Arm, timed: bool = True) -> Callable[[MoEShape], Controller]:
        """Makes controllers of the arm; `timed`: with stopwatches around predictor and planner."""
        policy = POLICIES[arm.policy.partition(" ")[0]]
        source, plan = self.source(arm), planner_of(arm, self.trace.header.top_k, self.time)

        def make(shape: MoEShape) -> Controller:
            pool = PoolConfig(slots=self.slots)
            if source is None:
                return Controller(policy, shape, pool)
            predictor, planner = (TimedPredictor(source), TimedPlanner(plan())) if timed else (source, plan())
            return Controller(policy, shape, pool, predictor=predictor, planner=planner)  # type: ignore[arg-type]

        return make


def compiled(predictor: Any, shape: MoEShape) -> Any:
    """The predictor after its first forecast, which compiles."""
    needs = getattr(predictor, "needs", ())
    predictor.check(shape).observe(sample_event(shape, "hidden" in needs, "pre_attention" in needs))
    predictor.predict()
    predictor.reset()
    return predictor
