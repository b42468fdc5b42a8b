"""Time for the figures that need it: decisions once, the virtual clock for every machine and miss handler. All simulated.

Legend: P passes, S sequences.
"""

from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from rgpu.experiments.suites.published.record import NotTestableError
from rgpu.hardware import profile_of
from rgpu.policies.policy import Policy
from rgpu.replay.engine import ReplayResult, SharedEvents, replay
from rgpu.replay.pool import PoolConfig
from rgpu.replay.timing.classes import classify
from rgpu.replay.timing.cost import ModelCost, cost_of
from rgpu.replay.timing.facts import PassFacts, pass_facts
from rgpu.replay.timing.machine import Machine
from rgpu.replay.timing.result import TimingResult
from rgpu.replay.timing.simulate import DiskLoads, simulate
from rgpu.results.rows import Context
from rgpu.traces.synthetic import LABEL
from rgpu.traces.trace import Trace


def yamls(group: str) -> dict[str, Any]:
    folder = resources.files("rgpu.conf") / group
    files = [f for f in folder.iterdir() if f.name.endswith(".yaml")]
    return {f.name.removesuffix(".yaml"): OmegaConf.to_container(_parsed(f.read_text())) for f in files}


@lru_cache(maxsize=256)
def _parsed(text: str) -> Any:
    """A yaml's content; parsing one takes longer than clocking a replay."""
    return OmegaConf.create(text)


def machine(name: str) -> Machine:
    """The machine of `conf/hardware/<name>.yaml`."""
    return profile_of(yamls("hardware")[name]).machine()


def vram_bytes(name: str) -> float:
    """Device memory of `conf/hardware/<name>.yaml`; infinite for a machine without a GPU."""
    size = profile_of(yamls("hardware")[name]).vram_gb
    return np.inf if size is None else 1e9 * float(size)


def ram_bytes(name: str) -> float:
    """Host memory of `conf/hardware/<name>.yaml`."""
    return 1e9 * float(profile_of(yamls("hardware")[name]).ram_gb)


def cost_for(trace: Trace) -> ModelCost:
    """The cost of `conf/cost` that names the trace's model; raises `NotTestableError` where none does."""
    model = trace.header.model.removesuffix(f" ({LABEL})")
    for data in yamls("cost").values():
        if model in data["models"]:
            return cost_of(data, trace.layers, tuple(trace.header.expert_bytes))
    raise NotTestableError(f"got no cost of {model} in conf/cost; expected its bytes beside the experts")


@dataclass(slots=True)
class Timed:
    """A replay with its decisions, and what the clock needs to know of its trace."""

    result: ReplayResult
    facts: PassFacts
    cost: ModelCost
    top_k: int
    sequences: int
    classes: Any = None

    def on(self, where: Machine, miss: str = "fetch", disk: DiskLoads | None = None) -> TimingResult:
        log = self.result.decisions
        assert log is not None
        if self.classes is None:
            self.classes = classify(log, self.facts)
        return simulate(
            log, self.facts, where, self.cost, self.top_k, miss=miss, disk=disk, classes=self.classes or None
        )


def timed(
    trace: Trace,
    policy: Policy,
    pool: PoolConfig,
    *,
    reset: str = "sequence",
    calibration: Trace | None = None,
    shared: SharedEvents | None = None,
) -> Timed:
    """Decide once; `.on(machine)` then takes as long as the clock alone."""
    cost = cost_for(trace)
    result = replay(
        trace,
        policy,
        pool,
        reset=reset,
        calibration=calibration,
        shared=shared,
        decisions=True,
        by_sequence=reset == "sequence",
    )
    return Timed(result, pass_facts(trace, cost.window), cost, trace.header.top_k, trace.sequences)


def speed_rows(at: Context, timing: TimingResult, sequences: int) -> list[Any]:
    """`tpot` with its interval over sequences (passes go to the sequence of their first token), and `tokens_per_s`."""
    decode = timing.facts.decode
    owner = timing.facts.sequence[decode]
    seconds = np.bincount(owner, timing.seconds_P[decode], sequences)
    steps = np.bincount(owner, timing.facts.steps[decode], sequences)
    outputs = np.bincount(owner, timing.facts.outputs[decode], sequences)
    kept = steps > 0
    at = at.at(simulated=True, machine=timing.machine, miss=timing.miss)
    return [
        at.ratio("tpot", seconds[kept], steps[kept], unit="s/token", keep=False),
        at.ratio("tokens_per_s", outputs[kept], seconds[kept], unit="tokens/s", keep=False),
    ]
