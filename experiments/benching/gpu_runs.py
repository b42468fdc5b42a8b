"""Runs of `gpu_engine` decided again: the trace that forced routing gave a run, its replay, and what the row counted.

Legend: N rows of ids, L MoE layers, K top-k, B sequences, P passes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from rgpu.errors import InputError
from rgpu.planning.model_facts import ModelFacts
from rgpu.policies.loop import HIT
from rgpu.policies.lru import Lru
from rgpu.policies.on_demand import OnDemand
from rgpu.policies.policy import Policy
from rgpu.replay.engine import replay
from rgpu.replay.log import DecisionLog
from rgpu.replay.pool import PoolConfig
from rgpu.replay.timing.cost import ModelCost
from rgpu.replay.timing.facts import PassFacts, pass_facts
from rgpu.traces.trace import DECODE, PROMPT, Trace, TraceHeader

FIRST = 5  # passes before those that a row counts: the prompt's and `engine_run.SETTLED` of decode
PROMPT_ROWS = 32  # of each sequence
STAGING = 1
POLICIES: dict[str, Policy] = {"lru": Lru(), "on_demand": OnDemand()}


@dataclass(frozen=True, slots=True)
class GpuRun:
    """A row with its decisions made again. `hit_rate` and `misses` a pass as the row rounds them, over the same passes;
    `resident`: the pool holds every expert and was filled before the first token, so that nothing waits for decisions."""

    row: Mapping[str, str]
    resident: bool
    hit_rate: float
    misses: float
    log: DecisionLog
    facts: PassFacts
    cost: ModelCost
    top_k: int

    @property
    def same(self) -> bool:
        """Whether hits and misses are the row's, to the digits it has."""
        return self.hit_rate == float(self.row["hit_rate"]) and self.misses == float(self.row["misses_per_token"])

    @property
    def fused(self) -> bool:
        return self.row["fused"] == "True"

    @property
    def measured_s(self) -> float:
        """Median pass."""
        return 1e-3 * float(self.row["tpot_ms_p50"])

    @property
    def spread(self) -> float:
        """Half of what lies between the 20th and the 80th percentile of passes, as a share of the median."""
        return (float(self.row["tpot_ms_p80"]) - float(self.row["tpot_ms_p20"])) / 2 / float(self.row["tpot_ms_p50"])

    @property
    def timed(self) -> slice:
        """The passes of which the row has the median: from one begin to the next, so the last has none."""
        return slice(FIRST, self.facts.passes - 1)

    def without_misses(self) -> DecisionLog:
        """The same events, as if every expert had been there."""
        codes = np.full_like(self.log.codes, HIT)
        return replace(self.log, codes=codes, victims=np.full_like(self.log.victims, -1))


def usable(row: Mapping[str, str]) -> bool:
    """Whether a row is of a run to its end with CUDA graphs, which is what the clock's fixed cost a layer can stand for."""
    return row["graphs"] == "True" and not row["error"]


def forced_trace(
    ids_NLK: np.ndarray, facts: ModelFacts, batch: int, passes: int, prompt: int = PROMPT_ROWS
) -> Trace:  # fmt: skip
    """What `ForcedRouting` puts before a run's layers: pass after pass the next rows of `ids_NLK` (uint8), from its begin
    again where they end; a prompt pass of `batch` x `prompt` rows, then passes of `batch` rows."""
    if ids_NLK.ndim != 3 or ids_NLK.shape[1:] != (facts.layers, facts.top_k):
        raise InputError(
            f"routing: got ids of shape {list(ids_NLK.shape)}; expected [rows, {facts.layers}, {facts.top_k}] as {facts.name} "
            "has; give --routing the folder that the run had"
        )
    first_B = np.arange(batch)[:, None] * prompt + np.arange(prompt)
    later_B = batch * prompt + np.arange(batch)[:, None] + batch * np.arange(passes - 1)
    rows_BT = np.concatenate([first_B, later_B], axis=1) % len(ids_NLK)
    length = prompt + passes - 1
    number = np.concatenate([np.zeros(prompt), np.arange(1, passes)]).astype(np.int32)
    phase = np.where(np.arange(length) < prompt, PROMPT, DECODE).astype(np.uint8)
    header = TraceHeader(
        facts.name, facts.experts, facts.top_k, list(range(facts.layers)), expert_bytes=[facts.expert_bytes] * facts.layers,
        sequences=[{"prompt_tokens": prompt}] * batch,
    )  # fmt: skip
    return Trace(
        header, np.ascontiguousarray(ids_NLK[rows_BT.ravel()]), np.arange(batch + 1, dtype=np.int64) * length,
        np.tile(np.arange(length, dtype=np.int32), batch), np.tile(number, batch), phase=np.tile(phase, batch),
    )  # fmt: skip


def decided(row: Mapping[str, str], ids_NLK: np.ndarray, facts: ModelFacts) -> GpuRun:
    """The run of a row, its decisions made again with the row's policy and slots (staging included)."""
    if row["policy"] not in POLICIES:
        raise InputError(f"row: got policy {row['policy']!r}; expected one of {', '.join(POLICIES)}")
    policy, slots, batch = POLICIES[row["policy"]], int(row["slots"]), int(row["batch"])
    trace = forced_trace(ids_NLK, facts, batch, FIRST + int(row["steps"]))
    result = replay(trace, policy, PoolConfig("layer", slots, None, STAGING), decisions=True)
    log = result.decisions
    assert log is not None
    hits_PL = result.hits_event.reshape(-1, facts.layers)
    members_PL = np.diff(result.events.offs).reshape(-1, facts.layers)
    resident = slots >= facts.experts and policy.name == "lru"
    if resident:
        log = replace(log, codes=np.full_like(log.codes, HIT), victims=np.full_like(log.victims, -1))
        hits_PL = members_PL
    hits, members = int(hits_PL[FIRST:].sum()), int(members_PL[FIRST:].sum())
    cost = facts.cost()
    return GpuRun(
        row, resident, round(hits / members, 4), round((members - hits) / int(row["steps"]), 3), log,
        pass_facts(trace, cost.window), cost, facts.top_k,
    )  # fmt: skip
