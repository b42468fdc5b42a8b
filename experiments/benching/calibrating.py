"""The engine's costs on this machine: calibration configurations run live, decisions and copies timed alone, one profile."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from rgpu.errors import InputError
from rgpu.experiments.benching.compute_timing import expert_seconds
from rgpu.experiments.benching.copy_timing import CopyCosts, copy_costs
from rgpu.experiments.benching.event_fit import (
    DenseCosts,
    EventCosts,
    fit_dense,
    fit_events,
    medians,
    same_members,
    samples_of,
)
from rgpu.experiments.benching.live_events import Bench, Configuration, LiveRun, run_live
from rgpu.experiments.benching.quiet import Quiet
from rgpu.replay.controller import Controller
from rgpu.replay.stream import routing_events
from rgpu.replay.timing.engine_profile import EngineProfile, PassCosts, engine_profile_of
from rgpu.results.provenance import manifest, write_atomic
from rgpu.runtime.architecture import read_architecture
from rgpu.runtime.executor import CPU, FETCH
from rgpu.runtime.session import store_form
from rgpu.store.convert import converted
from rgpu.store.tiers import open_source
from rgpu.traces.trace import DECODE, Trace
from rgpu.types import MoEShape

COPIES = 200  # of each kind that are timed
POLICIES = ("fifo", "static_hot")  # that calibrate: one keeps every miss, one keeps none


def calibration_configurations(batch: int, slots: Sequence[int]) -> list[Configuration]:
    """The runs that calibrate passes of `batch` tokens: misses kept and not kept, copied and computed in place, with hidden
    states and without."""
    runs = [Configuration(policy, n, FETCH, batch) for n in slots for policy in POLICIES]
    runs += [Configuration(policy, slots[0], CPU, batch) for policy in POLICIES]
    return [*runs, Configuration(POLICIES[0], slots[-1], FETCH, batch, hidden=True)]


@dataclass(slots=True)
class Calibration:
    """Collects timed runs round by round (`run_round`), then `profile` fits them. `decided`: policies whose own time an
    event is measured, by replaying a calibration run; nothing of them runs live here."""

    bench: Bench
    batches: tuple[int, ...]
    slots: tuple[int, ...]
    decided: tuple[str, ...]
    quiet: Quiet
    runs: dict[Configuration, list[LiveRun]] = field(default_factory=dict)

    def configurations(self) -> list[Configuration]:
        return [c for batch in self.batches for c in calibration_configurations(batch, self.slots)]

    def run_round(self) -> None:
        """Every configuration once more."""
        for config in self.configurations():
            self.runs.setdefault(config, []).append(self.quiet.run(lambda: run_live(self.bench, config, True)))  # noqa: B023

    def profile(self, name: str) -> EngineProfile:
        """The numbers of this machine, each with its source."""
        copies = copy_costs_of(self.bench)
        whole = {config: medians(runs) for config, runs in self.runs.items()}
        rounds = min(len(runs) for runs in self.runs.values())
        shape = next(iter(whole.values())).shape
        passes: list[PassCosts] = []
        sources: dict[str, str] = {}
        there = f"{measured_on()}, {rounds} round{'s' * (rounds > 1)}"
        for batch in self.batches:
            runs = [run for config, run in whole.items() if config.batch == batch]
            routed = next(run for run in runs if run.config.hidden)
            decide_s = {
                p: decide_seconds(self.bench, Configuration(p, self.slots[-1], FETCH, batch), routed.trace, shape)
                for p in dict.fromkeys((*POLICIES, *self.decided))
            }
            samples = [samples_of(run, decide_s[run.config.policy]) for run in runs]
            alone = expert_seconds(self.bench, runs[0].config, COPIES) if same_members(samples) else None
            events = fit_events(samples, alone)
            found, own = pass_costs(batch, fit_dense(runs), events, decide_s, there)
            if alone is not None:
                own[f"{batch}.expert_us"] = (
                    f"{there}: what one member more adds to an event of one token, alone, median"
                )
            passes.append(found)
            sources |= own
        expert = float(shape.expert_bytes[0])
        sources |= copy_sources(copies, there)
        return EngineProfile(
            name=name, model=self.bench.model.name, expert_bytes=expert, copy_gb_per_s=copies.bytes_per_s / 1e9,
            copy_latency_us=1e6 * copies.latency_s, passes=tuple(passes), sources=sources,
        ).rounded()  # fmt: skip


def pass_costs(
    batch: int, dense: DenseCosts, events: EventCosts, decide_s: dict[str, float], there: str
) -> tuple[PassCosts, dict[str, str]]:
    """(the numbers of passes of `batch` tokens in microseconds, their sources)."""
    seconds = {
        "layer_us": dense.layer_s, "context_us": dense.context_s, "pass_us": dense.pass_s, "event_us": events.event_s,
        "hidden_us": events.hidden_s, "expert_us": events.expert_s, "in_place_us": events.in_place_s,
        "submit_us": events.submit_s, "start_us": events.start_s,
    }  # fmt: skip
    dense_how = f"{there}: least squares over layers of calibration runs, batch {batch}"
    event_how = (
        f"{there}: least squares over events of calibration runs, batch {batch}, median residual {events.residual:.1%}"
    )
    sources = {f"{batch}.{n}": dense_how if n in ("layer_us", "context_us", "pass_us") else event_how for n in seconds}
    decide_how = f"{there}: median event of a calibration trace through the controller alone, batch {batch}"
    sources |= {f"{batch}.decide_us.{policy}": decide_how for policy in decide_s}
    micro = {name: 1e6 * value for name, value in seconds.items()}
    return PassCosts(tokens=batch, decide_us={p: 1e6 * v for p, v in decide_s.items()}, **micro), sources


def copy_sources(copies: CopyCosts, there: str) -> dict[str, str]:
    return {
        "expert_bytes": "the model's config, float32",
        "copy_gb_per_s": f"{there}: parts of experts read from RAM, {COPIES} random experts, median",
        "copy_latency_us": f"{there}: what one more in a burst of copies takes beyond its bytes, median",
    }


def copy_costs_of(bench: Bench) -> CopyCosts:
    """Copies from the model's store in RAM, by a transfer engine of their own."""
    form = store_form(read_architecture(bench.model), torch.float32, None)
    source = open_source(converted(bench.model, form, bench.cache), "ram")
    try:
        return copy_costs(source, COPIES, bench.seed)
    finally:
        source.close()


def decide_seconds(bench: Bench, config: Configuration, trace: Trace, shape: MoEShape) -> float:
    """Median seconds of the controller an event: decode events of `trace`, decided once more by `config`'s policy."""
    return event_seconds(bench.controller(config, shape), trace)


def event_seconds(controller: Controller, trace: Trace) -> float:
    """Median seconds of a new controller an event of decoding, what it forecasts and plans included."""
    controller.start()
    took = []
    for event in routing_events(trace):
        began = time.perf_counter()
        controller.observe(event)
        controller.ahead()
        spent = time.perf_counter() - began
        if event.phase_T is not None and (event.phase_T == DECODE).all():
            took.append(spent)
    return float(np.median(took))


def measured_on() -> str:
    """Date, processor and how busy it was: wall times mean little without."""
    facts = manifest({})
    busy = f", load average {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return f"measured {datetime.now(UTC).date()} on {facts['cpu']}, 1 of {facts['cores']} cores{busy}"


def write_engine_profile(profile: EngineProfile, path: Path) -> Path:
    """The profile as yaml, whole or not at all, read back and compared."""
    write_atomic(path, f"# written by rgpu bench engine\n{profile.to_yaml()}".encode())
    assert load_engine_profile(path) == profile, "a profile reads back as it was written"
    return path


def load_engine_profile(path: Path) -> EngineProfile:
    """The profile in a yaml; `InputError` for one that is not there or not a profile."""
    try:
        data = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
        raise InputError(
            f"profile: cannot read {path}: {error}; expected one of rgpu bench engine; make one"
        ) from error
    return engine_profile_of({str(k): v for k, v in data.items()} if isinstance(data, dict) else {})
