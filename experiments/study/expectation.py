"""What a memory plan may expect of a trace: its hit rate at the planned slots, and simulated time."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rgpu.errors import InputError
from rgpu.experiments.inputs import policy_named
from rgpu.experiments.study.timing import bounds
from rgpu.hardware import GPU, HardwareProfile
from rgpu.planning.memory_plan import MemoryPlan
from rgpu.planning.model_facts import ModelFacts
from rgpu.policies.policy import Policy
from rgpu.replay.engine import ReplayResult, replay
from rgpu.replay.placement import place_layers
from rgpu.replay.pool import PoolConfig
from rgpu.replay.timing.facts import pass_facts
from rgpu.replay.timing.memory_tier import disk_loads
from rgpu.replay.timing.simulate import simulate
from rgpu.traces.trace import PROMPT, Trace

RAM_POLICY = "lru"


@dataclass(frozen=True, slots=True)
class Expectation:
    """A replay of `trace` with the plan's pool. `same_shape`: the trace has the model's layers, experts and top-k;
    otherwise its pools hold the same share of its own experts (`pool`)."""

    trace: Trace
    policy: Policy
    pool: PoolConfig
    result: ReplayResult
    same_shape: bool

    def section(self) -> dict[str, Any]:
        """Figures of the replay."""
        header = self.trace.header
        return {
            "policy": self.policy.name,
            "bound": self.policy.traits.bound,
            "trace": header.model,
            "same_shape": self.same_shape,
            "trace_shape": {"layers": self.trace.layers, "experts": header.num_experts, "top_k": header.top_k},
            "slots": self.pool.slots,
            "staging": self.pool.staging,
            "accesses": self.result.accesses,
            "hits": self.result.hits,
            "hit_rate": self.result.hits / max(1, self.result.accesses),
            "tokens": self.trace.tokens,
        }


def expect(
    plan: MemoryPlan, facts: ModelFacts, trace: Trace, policy: Policy, calibration: Trace | None, miss: str, seed: int,
) -> Expectation:  # fmt: skip
    """Replays `trace`, with expert sizes of the model, at the plan's slots; its decisions are kept for the clock."""
    ours, theirs = (
        (facts.layers, facts.experts, facts.top_k),
        (trace.layers, trace.header.num_experts, trace.header.top_k),
    )
    same = ours == theirs
    slots = plan.slots
    if not same:
        keys = place_layers(plan.scope, trace.layers, trace.header.num_experts).keys
        slots = min(keys, max(plan.staging + 1, round(plan.share * keys)))
    for part in (trace, calibration):
        if part is not None:
            part.header.expert_bytes = [facts.expert_bytes] * part.layers
    pool = PoolConfig(plan.scope, slots, None, plan.staging, miss)
    result = replay(trace, policy, pool, calibration=calibration, seed=seed, decisions=True)
    return Expectation(trace, policy, pool, result, same)


def machine_of(plan: MemoryPlan, profile: HardwareProfile) -> HardwareProfile:
    """The profile as the plan uses it: without its GPU where the plan has none."""
    if plan.vram is not None and not profile.has_gpu:
        raise InputError(
            f"memory.vram: got {plan.vram} with hardware={profile.name}, which has no GPU; expected a profile with one; "
            "set memory.vram=null or choose another hardware"
        )
    return profile if plan.vram is not None else replace(profile, **dict.fromkeys(GPU))  # type: ignore[arg-type]


def time_of(
    made: Expectation, plan: MemoryPlan, facts: ModelFacts, profile: HardwareProfile, overlap: str
) -> dict[str, Any]:  # fmt: skip
    """Simulated speed on `profile`: of a trace of the model's shape as `rgpu replay` has it; of another one with
    equal layers that move the model's bytes, times the ratio of layers (`ModelFacts.cost`)."""
    trace, log = made.trace, made.result.decisions
    assert log is not None
    used, top_k = machine_of(plan, profile), trace.header.top_k
    cost = facts.cost() if made.same_shape else facts.cost(trace.layers, top_k)
    scale = 1.0 if made.same_shape else facts.layer_scale(trace.layers)
    passes, machine = pass_facts(trace, cost.window), used.machine()
    disk = None
    if plan.vram is not None and plan.disk_experts:
        share = plan.ram_experts / plan.experts
        held = max(1, int(share * trace.layers * trace.header.num_experts)) * int(cost.expert_bytes[0])
        disk = disk_loads(log, policy_named(RAM_POLICY), held, cost.expert_bytes)
    found = simulate(log, passes, machine, cost, top_k, miss=made.pool.miss, overlap=overlap, disk=disk)
    summary = found.summary()
    limit = bounds(found, log, passes, machine, cost, trace, made.pool, "none")
    prompts = np.zeros(0) if trace.phase is None else trace.phase == PROMPT
    return {
        "simulated": True,
        "hardware_profile": profile.name,
        "on_gpu": plan.vram is not None,
        "miss": made.pool.miss,
        "overlap": overlap,
        "tokens_per_s": _scaled(summary["tokens_per_s"], 1 / scale),
        "tpot_s": _scaled(summary["tpot_s"], scale),
        "tpot_exposed_s": _scaled(summary["tpot_exposed_s"], scale),
        "ttft_s": _scaled(summary["ttft_s"], scale),
        "prompt_tokens": float(prompts.sum()) / max(1, trace.sequences),
        "disk_busy_share": summary["disk_busy_share"],
        "bound_share": limit.get("bound_share"),
        "bound_binding": limit.get("bound_binding"),
        "scaled_by_layers": scale,
        "cost": cost.source,
    }


def _scaled(value: float | None, by: float) -> float | None:
    return None if value is None else value * by
