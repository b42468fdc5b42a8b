"""Caps on a live run's memory: laid out by the planner before anything is converted, measured while it runs.

A cap on RAM counts the private memory of the whole process: Python and its libraries, weights, cache, slots and what
`store=ram` or `store=tier` holds. Pages of a mapped store (`store=disk`) are the kernel's page cache and count in no cap.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from rgpu.errors import InputError
from rgpu.experiments.inputs import parse_bytes
from rgpu.experiments.live import Setup
from rgpu.experiments.live_lossy import rows_of
from rgpu.experiments.live_peaks import Peaks
from rgpu.experiments.live_room import Later, caps_of
from rgpu.experiments.live_store import Stored, layout_of
from rgpu.planning.memory_plan import MIB, MemoryPlan, MemoryRow, SlotRoom, plan_memory, readable
from rgpu.planning.model_facts import ModelFacts
from rgpu.replay.resizing import check_policy
from rgpu.runtime.architecture import Architecture
from rgpu.runtime.model_bytes import read_facts
from rgpu.store.tiers import DISK, RAM, TIER

# The process row covers a policy or a predictor that is compiled for the first time (measured: 432 to 511 MiB); both at
# once took 518.
_COMPILED = 32 * MIB
_EVENT, _MEMBER = 384, 128  # bytes of Python objects in the decision log: of an event, and of each expert in it


@dataclass(frozen=True, slots=True)
class Sizes:
    """`batch` rows of `prompt` tokens after padding, `new` more each; whether their logits are kept for `verify`."""

    batch: int
    prompt: int
    new: int
    logits: bool


def planned(
    cfg: DictConfig, architecture: Architecture, made: Stored, setup: Setup, sizes: Sizes
) -> tuple[MemoryPlan | None, Later | None]:
    """(the plan of a run with caps, what changes in it as it goes on); None without any. Raises `InputError` with the smallest
    caps that work."""
    vram, ram = (
        None if cfg.memory[name] is None else parse_bytes(cfg.memory[name], f"memory.{name}")
        for name in ("vram", "ram")
    )
    if vram is None and ram is None:
        if cfg.context is not None:
            raise InputError(
                f"context: got {cfg.context} without a cap; expected it with one; set memory.ram=6GiB, say"
            )
        for name in ("grow", "then"):
            if cfg.memory[name]:
                raise InputError(f"memory.{name}: got it without a cap; expected it with one; set memory.ram=6GiB, say")
        return None, None
    _check(cfg, vram, ram)
    context = sizes.prompt + sizes.new if cfg.context is None else cfg.context
    if type(context) is not int or context < sizes.prompt + sizes.new:
        raise InputError(
            f"context: got {context!r}; expected at least {sizes.prompt + sizes.new}, the tokens of prompt and text; set "
            "context=null"
        )
    facts = read_facts(str(cfg.model), cfg.dtype)
    layout = layout_of(Path(cfg.model), architecture, made)
    facts = replace(facts, format=made.format, expert_bytes=layout.payload_bytes, expert_stride=layout.stride)
    assert ram is not None
    more = [*held(cfg, facts, made, setup, sizes), *rows_of(made.options.get("lossy"), architecture, facts)]
    how: dict[str, Any] = {
        "batch": sizes.batch, "scope": cfg.pool.scope, "staging": cfg.pool.staging,
        "prefill_rows": sizes.batch * sizes.prompt, "more": more,
    }  # fmt: skip
    plan = plan_memory(facts, vram=vram, ram=ram, context=context, **how)
    room = SlotRoom(facts, gpu=vram is not None, **how)
    if cfg.memory.grow or cfg.memory.then:
        check_policy(setup.policy)
    later = Later(room, plan, sizes.prompt, bool(cfg.memory.grow), caps_of(cfg.memory.then, sizes.new))
    if cfg.memory.grow:  # with room for the first pass; the plan above says that the last has room as well
        first = later.block_of(sizes.prompt) if cfg.device == "cuda" and cfg.graphs else sizes.prompt
        plan = plan_memory(facts, vram=vram, ram=ram, context=first, **how)
        later.begins_with(plan)
    return plan, later if cfg.memory.grow or later.caps else None


def held(cfg: DictConfig, facts: ModelFacts, made: Stored, setup: Setup, sizes: Sizes) -> list[MemoryRow]:
    """What this run keeps beside what every run does."""
    rows = []
    gpu = cfg.memory.vram is not None
    total = facts.layers * facts.experts
    in_ram = {RAM: total, TIER: min(total, cfg.ram_experts)}.get(cfg.store, 0)
    if in_ram and not gpu:
        rows.append(MemoryRow("experts in RAM", in_ram * facts.expert_stride + 8192, "ram", f"store={cfg.store}"))
    if "kernel" in made.options:
        tokens = sizes.batch * sizes.prompt
        each = 4 * (facts.top_k * (2 * facts.intermediate + 2 * facts.hidden) + facts.hidden)
        where = "vram" if gpu else "ram"
        rows.append(MemoryRow("kernel", tokens * each, where, f"float32 of {tokens} tokens in {facts.top_k} experts"))
    if setup.predictor is not None and setup.policy.traits.feature:
        rows.append(MemoryRow("compilation", _COMPILED, "ram", f"of {setup.policy.name} and {setup.predictor}, once"))
    if setup.predictor_bytes:
        rows.append(
            MemoryRow("predictor", setup.predictor_bytes, "ram", f"what {setup.predictor} was fitted to, and its maps")
        )
    if setup.calibration_bytes:
        rows.append(MemoryRow("calibration", setup.calibration_bytes, "ram", "the trace in calibration.trace"))
    if setup.logs:
        members = min(facts.experts, sizes.batch * facts.top_k)
        of_layer = 2 * _EVENT + _MEMBER * facts.experts + (sizes.new - 1) * (_EVENT + _MEMBER * members)
        rows.append(MemoryRow("decision log", facts.layers * of_layer, "ram", "for verify and profile_out"))
    if sizes.logits:
        where = "vram" if gpu else "ram"
        rows.append(MemoryRow("logits", 4 * sizes.batch * sizes.new * facts.vocab, where, "kept for verify"))
    return rows


def options_of(plan: MemoryPlan | None) -> dict[str, Any]:
    """What a plan changes of `OffloadSession.open`'s options: with a GPU, the store that fits into host memory."""
    if plan is None or plan.vram is None:
        return {}
    return {"store": TIER, "ram_experts": plan.ram_experts} if plan.disk_experts else {"store": RAM}


def measured(plan: MemoryPlan | None, peaks: Peaks, before: int) -> dict[str, Any]:
    """The plan beside what was measured, in bytes, of the whole run; `cap_bytes` are those that it began with."""
    found: dict[str, Any] = {
        "cap_bytes": None if plan is None else plan.ram,
        "planned_bytes": None if plan is None else plan.used("ram"),
        "peak_bytes": peaks.ram.nbytes,
        "peak_growth_bytes": peaks.ram.nbytes - before,
    }
    if torch.cuda.is_initialized():
        found |= {
            "cap_vram_bytes": None if plan is None else plan.vram,
            "planned_vram_bytes": None if plan is None else plan.used("vram"),
            "peak_vram_bytes": peaks.vram_bytes,
        }
    if plan is not None:
        found["plan"] = [{"name": row.name, "bytes": row.bytes, "where": row.where} for row in plan.rows]
    return found


def overrun(found: dict[str, Any]) -> str:
    """A line that says so where a run took more than a cap that it had then; "" where it did not."""
    changing = found.get("later", {}).get("caps", [])
    for kind in ("", "_vram"):
        where, parts = "vram" if kind else "ram", [{name: found.get(f"{name}{kind}_bytes") for name in ("cap", "peak")}]
        if changing and changing[0]["where"] == where:
            parts = [{"cap": part["cap_bytes"], "peak": part["peak_bytes"]} for part in changing]
        for part in parts:
            cap, peak = part["cap"], part["peak"]
            if cap is not None and peak is not None and peak > cap:
                return (
                    f"memory.{where}: the run took {readable(peak)}, more than the cap of {readable(cap)}; give it less"
                )
    return ""


def _check(cfg: DictConfig, vram: int | None, ram: int | None) -> None:
    for name in ("slots", "bytes"):
        if cfg.pool[name] is not None:
            raise InputError(
                f"pool.{name}: got {cfg.pool[name]} with a cap on memory, which decides it; expected one of them; leave "
                f"pool.{name} out"
            )
    if vram is not None and cfg.device != "cuda":
        raise InputError(
            f"memory.vram: got {cfg.memory.vram} with device={cfg.device}; expected null without a GPU, where memory.ram is "
            "the cap; set memory.vram=null memory.ram=..., or device=cuda"
        )
    if cfg.device == "cuda" and (vram is None or ram is None):
        raise InputError("memory: got one cap with device=cuda; expected both memory.vram and memory.ram; give both")
    if vram is not None and cfg.store != DISK:
        raise InputError(f"store: got {cfg.store} with memory.vram, which decides what is kept in RAM; leave store out")
