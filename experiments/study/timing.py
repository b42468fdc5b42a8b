"""From a config to the virtual clock: hardware profiles and model costs by name, and the `time` section of a replay."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from rgpu.errors import InputError
from rgpu.experiments.inputs import parse_bytes, policy_named
from rgpu.experiments.mistakes import nearest
from rgpu.hardware import HardwareProfile, profile_of
from rgpu.policies.belady_bypass import BeladyBypass
from rgpu.replay.engine import replay
from rgpu.replay.log import DecisionLog
from rgpu.replay.pool import PoolConfig
from rgpu.replay.timing.bound import HANDLERS, Bound, time_bound
from rgpu.replay.timing.cost import ModelCost, cost_of, experts_only
from rgpu.replay.timing.facts import PassFacts, pass_facts
from rgpu.replay.timing.machine import Machine
from rgpu.replay.timing.memory_tier import disk_loads
from rgpu.replay.timing.result import TimingResult
from rgpu.replay.timing.simulate import Window, simulate
from rgpu.replay.timing.speculative import speculative
from rgpu.replay.timing.timeline import write_timeline
from rgpu.traces.trace import Trace


def choices(group: str) -> list[str]:
    """The yaml files of a config group, those of --config-dir included."""
    return sorted(GlobalHydra.instance().config_loader().get_group_options(group))


def profile_named(name: str) -> HardwareProfile:
    """The profile of `conf/hardware/<name>.yaml`, or of a yaml file given by its path."""
    if name.endswith((".yaml", ".yml")):
        try:
            data = OmegaConf.to_container(OmegaConf.load(name))
        except (OSError, ValueError, YAMLError, OmegaConfBaseException) as error:  # ValueError: bytes that are no text
            raise InputError(f"hardware: cannot read {name}: {error}; expected a yaml as in conf/hardware") from error
        if not isinstance(data, dict):
            raise InputError(f"hardware: got {name} without entries; expected a yaml as in conf/hardware")
        return profile_of({str(k): v for k, v in data.items()})
    if name not in choices("hardware"):
        raise InputError(f"no hardware={name}; {nearest(name, choices('hardware'))}")
    return profile_of(plain(compose(overrides=[f"+hardware={name}"]).hardware))


def cost_for(trace: Trace, given: DictConfig | None) -> ModelCost:
    """The cost given, else the one of `conf/cost` that names the trace's model, else experts only."""
    sizes = tuple(trace.header.expert_bytes)
    if given is not None:
        return cost_of(plain(given), trace.layers, sizes)
    for name in choices("cost"):
        data = plain(compose(overrides=[f"+cost={name}"]).cost)
        if trace.header.model in data.get("models", []):
            return cost_of(data, trace.layers, sizes)
    return experts_only(trace.layers, sizes)


def evaluated(trace: Trace, cfg: DictConfig, seed: int) -> tuple[Trace, np.ndarray | None]:
    """(the trace as it is decoded, output tokens of each pass or None): `cfg.width` tokens a pass, see `speculative`."""
    if cfg.width == 1:
        return trace, None
    return speculative(trace, cfg.width, cfg.acceptance, seed)


def time_section(
    cfg: DictConfig,
    profile: HardwareProfile,
    log: DecisionLog,
    trace: Trace,
    accepted: np.ndarray | None,
    pool: PoolConfig,
) -> dict[str, Any]:
    """The `time` section of `rgpu replay`: simulated seconds, their parts, bytes, the bound; writes `cfg.timeline`."""
    cost = cost_for(trace, cfg.get("cost"))
    facts, machine = pass_facts(trace, cost.window, accepted), profile.machine()
    disk = None
    if cfg.ram.bytes is not None:
        disk = disk_loads(log, policy_named(cfg.ram.policy), parse_bytes(cfg.ram.bytes, "ram.bytes"), cost.expert_bytes)
    window = None if cfg.timeline is None else window_of(cfg.timeline_passes)
    top_k = trace.header.top_k
    found = simulate(log, facts, machine, cost, top_k, miss=cfg.miss, overlap=cfg.overlap, disk=disk, record=window)
    section = found.summary() | {"cost": cost.name, "prefill": facts.prefill}
    section |= bounds(found, log, facts, machine, cost, trace, pool, cfg.replay.reset)
    if profile.has_gpu:
        needed = memory_needed(log, facts, cost)
        section |= {"vram_needed_gb": needed / 1e9, "fits_vram": needed <= 1e9 * float(profile.vram_gb or 0)}
    if window is not None:
        section["timeline"] = str(cfg.timeline)
        section["timeline_events"] = write_timeline(Path(cfg.timeline), found, log)
    return section


def window_of(passes: Any) -> Window:
    """The passes of a timeline, from the first to before the last."""
    given: Any = OmegaConf.to_container(passes) if OmegaConf.is_config(passes) else passes
    whole = isinstance(given, list) and len(given) == 2 and all(type(p) is int for p in given)
    if not whole or not 0 <= given[0] < given[1]:
        raise InputError(
            f"timeline_passes: got {given!r}; expected the first pass and one after the last, such as [0,16]"
        )
    return Window(*given)


def bounds(
    found: TimingResult, log: DecisionLog, facts: PassFacts, machine: Machine, cost: ModelCost, trace: Trace,
    pool: PoolConfig, reset: str,
) -> dict[str, Any]:  # fmt: skip
    """How far a result is from the bound in seconds, whatever the handler and with its own; empty for unequal sizes."""
    if len(set(cost.expert_bytes.tolist())) != 1:
        return {}
    least = least_loads(trace, pool, reset) * float(cost.expert_bytes[0])
    top_k = trace.header.top_k
    out: dict[str, Any] = {}
    usable = usable_handlers(machine)
    for name, handlers in (("bound", usable), ("handler_bound", with_fetch(found.miss))):
        bound: Bound = time_bound(log.events, facts, machine, cost, top_k, least, handlers)
        share = bound.seconds / found.seconds if found.seconds else None
        out |= {f"{name}_s": bound.seconds, f"{name}_share": share, f"{name}_binding": bound.binding}
    return out


def least_loads(trace: Trace, pool: PoolConfig, reset: str) -> int:
    """Loads of bypass-Belady at the same device slots, staging included."""
    return replay(trace, BeladyBypass(), pool, reset=reset).demand_loads


def usable_handlers(machine: Machine) -> list[str]:
    """The miss handlers the machine can do."""
    able = {
        "cpu": machine.cpu_bytes_per_s,
        "split": machine.cpu_bytes_per_s and not machine.in_place,
        "zero_copy": machine.zero_copy_bytes_per_s,
    }
    return [h for h in HANDLERS if able.get(h, 1)]


def with_fetch(miss: str) -> Sequence[str]:
    """Handlers of a bound for runs that serve misses by `miss`: background copies may always fetch."""
    return ("fetch", miss)


def memory_needed(log: DecisionLog, facts: PassFacts, cost: ModelCost) -> float:
    """Bytes of device memory: expert slots, dense weights and the longest KV cache; workspace not counted."""
    layout = log.layout
    layers = cost.layers // layout.pools
    slots = sum(
        (main + layout.staging) * float(cost.expert_bytes[p * layers : (p + 1) * layers].max())
        for p, main in enumerate(layout.main)
    )
    context = float(facts.work[:, 1].max(initial=0.0))
    near = float(facts.work[:, 2].max(initial=0.0))
    kv = float(np.where(cost.windowed, near, context) @ cost.kv_bytes)
    return slots + float(cost.dense_bytes.sum()) + kv


def plain(cfg: DictConfig) -> Mapping[str, Any]:
    """A config as plain entries."""
    data = OmegaConf.to_container(cfg, resolve=True)
    if not isinstance(data, dict):
        raise InputError(f"hardware, cost: got {data!r}; expected entries as in conf/hardware and conf/cost")
    return {str(k): v for k, v in data.items()}
