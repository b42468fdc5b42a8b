"""Plan memory: where each byte goes, how many expert slots remain, and what to expect of them."""

import os
import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from rgpu.errors import InputError
from rgpu.experiments.command import command
from rgpu.experiments.inputs import make_policy, open_trace, parse_bytes, scored_parts
from rgpu.experiments.study.expectation import expect, machine_of, time_of
from rgpu.experiments.study.predicted_replay import predictor_of
from rgpu.experiments.study.timing import plain, profile_named
from rgpu.hardware import HardwareProfile, profile_of
from rgpu.planning.memory_plan import MemoryPlan, MemoryRow, plan_memory, readable, slots_at
from rgpu.planning.model_facts import ModelFacts
from rgpu.predictors.base import BasePredictor
from rgpu.replay.timing.bound import HANDLERS
from rgpu.runtime.model_bytes import read_facts
from rgpu.types import MoEShape

DEFAULT_CONTEXT = 4096


@command("plan")
def run(cfg: DictConfig) -> dict[str, Any]:
    policy, profile = make_policy(cfg.policy, cfg.admission), _profile(cfg)
    vram, ram = caps(cfg.memory, profile)
    for name in ("context", "prefill_rows", "group"):
        if cfg[name] is not None and type(cfg[name]) is not int:
            raise InputError(f"{name}: got {cfg[name]!r}; expected a whole number or null; give e.g. {name}=128")
    if cfg.miss not in HANDLERS or (vram is None and cfg.miss != "fetch"):
        able = ", ".join(HANDLERS if vram is not None else ["fetch"])
        raise InputError(f"miss: got {cfg.miss!r}; expected one of {able}; set miss=fetch")
    options = {} if cfg.group is None else {"group": cfg.group}
    facts = read_facts(str(cfg.model), cfg.dtype, cfg.format, **options)
    context = min(facts.max_context or DEFAULT_CONTEXT, DEFAULT_CONTEXT) if cfg.context is None else cfg.context
    settings: dict[str, Any] = {
        "vram": vram, "ram": ram, "batch": cfg.batch, "scope": cfg.pool.scope, "staging": cfg.pool.staging,
        "prefill_rows": cfg.prefill_rows, "more": predictor_rows(cfg, facts),
    }  # fmt: skip
    plan = plan_memory(facts, context=context, **settings)
    if profile is not None:
        machine_of(plan, profile)  # refuses before the replay
    replayed = timed = None
    if cfg.trace.path is not None:
        trace = open_trace(cfg.trace, hidden=policy.traits.feature == "hidden")
        calibration, scored, _ = scored_parts(trace, "auto", policy.traits.calibration)
        made = expect(plan, facts, scored, policy, calibration, cfg.miss, cfg.seed)
        replayed = made.section()
        timed = None if profile is None else time_of(made, plan, facts, profile, cfg.overlap)
    growth = [{"context": c, "slots": slots_at(facts, c, **settings)} for c in _contexts(facts, context)]
    sys.stderr.write(table(plan, facts, growth, replayed, timed))
    return document(plan, facts, growth) | {"expected": replayed, "time": timed}


def caps(memory: DictConfig, profile: HardwareProfile | None) -> tuple[int | None, int]:
    """(vram or None, ram) in bytes. "auto": the profile's; without one no GPU and this machine's memory."""
    vram, ram = memory.vram, memory.ram
    if vram == "auto":
        vram = None if profile is None or profile.vram_gb is None else int(1e9 * profile.vram_gb)
    if ram in ("auto", None):
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        ram = machine if profile is None else int(1e9 * profile.ram_gb)
    return None if vram is None else parse_bytes(vram, "memory.vram"), parse_bytes(ram, "memory.ram")


def predictor_rows(cfg: DictConfig, facts: ModelFacts) -> list[MemoryRow]:
    """What the predictor of `cfg` would hold, a saved one or one to be fitted; nothing without one."""
    predictor = predictor_of(cfg)
    if predictor is None:
        return []
    if not isinstance(predictor, BasePredictor) or predictor.clairvoyant:
        raise InputError(
            f"predictor: got {cfg.predictor['_target_'] if cfg.get('predictor') else cfg.calibration.predictor}; expected one "
            "that can run live and says its bytes (BasePredictor), such as linear; leave predictor out"
        )
    shape = MoEShape(facts.layers, facts.experts, facts.top_k, facts.hidden)
    size: int | None
    if cfg.calibration.predictor is not None:
        size, how = predictor.check(shape).held_bytes(), f"{predictor.name}, as it was saved"
    else:
        size, how = (
            predictor.expected_bytes(shape),
            f"{predictor.name} with horizon {predictor.horizon}, once it is fitted",
        )
    if size is None:
        raise InputError(
            f"predictor: got {predictor.name}, whose size depends on the text that it is fitted on; expected a fitted one; "
            f"run rgpu train predictor={predictor.name} and set calibration.predictor=outputs/predictors/{predictor.name}"
        )
    return [MemoryRow("predictor", size, "ram", how)] if size else []


def document(plan: MemoryPlan, facts: ModelFacts, growth: list[dict[str, int]]) -> dict[str, Any]:
    """The plan as JSON."""
    return {
        "model": facts.name, "dtype": facts.dtype, "format": facts.format, "context": plan.context, "batch": plan.batch,
        "memory": {"vram": plan.vram, "ram": plan.ram},
        "rows": [{"name": r.name, "bytes": r.bytes, "where": r.where, "how": r.how} for r in plan.rows],
        "used": {"vram": plan.used("vram") if plan.vram is not None else None, "ram": plan.used("ram")},
        "scope": plan.scope, "staging": plan.staging, "pools": plan.pools, "slots": plan.slots,
        "slot_bytes": plan.slot_bytes, "share": plan.share, "tight": plan.tight, "ram_experts": plan.ram_experts,
        "disk_experts": plan.disk_experts, "context_growth": growth,
        "shape": {"layers": facts.layers, "experts": facts.experts, "top_k": facts.top_k, "hidden": facts.hidden,
                  "expert_bytes": facts.expert_bytes, "max_context": facts.max_context},
        "dense_bytes": facts.dense_bytes, "experts_bytes": facts.experts_bytes,
    }  # fmt: skip


def table(
    plan: MemoryPlan, facts: ModelFacts, growth: list[dict[str, int]], replayed: dict[str, Any] | None,
    timed: dict[str, Any] | None,
) -> str:  # fmt: skip
    """The plan for people."""
    kind = f"dense part in {facts.dtype}, experts in {facts.format}, context {plan.context}, batch {plan.batch}"
    lines = [f"{facts.name}: {kind}"]
    for where, cap in (("vram", plan.vram), ("ram", plan.ram)):
        if cap is None:
            continue
        lines += [f"  {where:<5}{r.name:<24}{readable(r.bytes):>10}  {r.how}" for r in plan.rows if r.where == where]
        lines.append(f"  {where:<5}{'left of ' + readable(cap):<24}{readable(cap - plan.used(where)):>10}")
    lines.append(
        f"  slots: {plan.slots} a pool, {plan.pools} pools, {plan.share:.1%} of {plan.experts} experts resident"
    )
    if plan.tight:
        lines.append(
            f"  fewer slots than the {plan.top_k} experts of a token: every layer is served in waves; give more"
        )
    lines.append("  slots left by context: " + ", ".join(f"{g['context']}: {g['slots']}" for g in growth))
    first = growth[0]
    if first["context"] < plan.context:
        lines.append(
            f"  with memory.grow=true there are {first['slots']} while contexts have up to {first['context']} tokens and "
            f"{plan.slots} at {plan.context}"
        )
    if replayed is None:
        lines.append("  expected: unknown without a trace (trace.path)")
    else:
        shape = "same shape" if replayed["same_shape"] else "another shape, the same share of its experts"
        lines.append(
            f"  expected: {replayed['hit_rate']:.1%} hits of {replayed['policy']} on {replayed['trace']} ({shape})"
        )
    if timed is not None:
        rate, first = timed["tokens_per_s"], timed["ttft_s"]
        speed = "no decode pass in the trace" if rate is None else f"{rate:.3g} tokens/s"
        wait = (
            "" if first is None else f", {first:.3g} s to the first token of {timed['prompt_tokens']:.0f}-token prompts"
        )
        of = "" if timed["bound_share"] is None else f", {timed['bound_share']:.0%} of the bound"
        lines.append(f"  simulated on {timed['hardware_profile']}: {speed}{wait}{of}")
    return "\n".join(lines) + "\n"


def _contexts(facts: ModelFacts, context: int) -> list[int]:
    """Powers of two up to the model's maximum, and the asked context."""
    longest = max(facts.max_context, context)
    return sorted({context, longest, *(1 << n for n in range(9, longest.bit_length()) if 1 << n <= longest)})


def _profile(cfg: DictConfig) -> HardwareProfile | None:
    given = cfg.get("hardware")
    if given is not None and cfg.hardware_file is not None:
        raise InputError("hardware: got hardware and hardware_file; expected one of them; drop one")
    if given is None and cfg.hardware_file is None:
        return None
    return profile_named(str(Path(cfg.hardware_file))) if given is None else profile_of(plain(given))


if __name__ == "__main__":
    run.main()
