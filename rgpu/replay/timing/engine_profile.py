"""`EngineProfile`: what rgpu's engine takes on a machine without a GPU, with one model, as `rgpu bench engine` writes it.

The processor that computes experts also runs attention, decides and submits copies; one thread beside it copies. Numbers
are kept by tokens of a pass (a batch's decode steps) and interpolated between, never beyond. docs/validation.md has the method.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from rgpu.errors import InputError
from rgpu.replay.timing.cost import ModelCost
from rgpu.replay.timing.machine import Machine
from rgpu.replay.timing.sourced import numbers

_MACHINE = ("expert_bytes", "copy_gb_per_s", "copy_latency_us")
_PASS = (
    "layer_us",
    "context_us",
    "pass_us",
    "event_us",
    "hidden_us",
    "expert_us",
    "in_place_us",
    "submit_us",
    "start_us",
)
FLOP_PER_S = 1e9  # dense parts are measured in time: the clock is given one operation for each nanosecond


@dataclass(frozen=True, slots=True, kw_only=True)
class PassCosts:
    """Microseconds at `tokens` a pass: a layer beside its experts, and of it what each pair of token and token of context
    adds; what a pass takes once (embedding, head); an event's fixed part without its policy, and what reading hidden states
    adds; an expert from its slot, and where the store has it; submitting a copy, and setting idle copying going. `decide_us`:
    what a policy takes an event, by its name."""

    tokens: int
    layer_us: float
    context_us: float
    pass_us: float
    event_us: float
    hidden_us: float
    expert_us: float
    in_place_us: float
    submit_us: float
    start_us: float
    decide_us: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineProfile:
    """`expert_bytes` of one expert; `copy_gb_per_s` and `copy_latency_us` of copies that follow one another; `passes` by
    tokens, ascending. `sources`: where each number comes from, those of passes as "<tokens>.<name>"."""

    name: str
    model: str
    expert_bytes: float
    copy_gb_per_s: float
    copy_latency_us: float
    passes: tuple[PassCosts, ...]
    sources: Mapping[str, str]

    def at(self, tokens: int) -> PassCosts:
        """The numbers of passes of `tokens` tokens, interpolated between those that were calibrated."""
        known = [p.tokens for p in self.passes]
        if not known[0] <= tokens <= known[-1]:
            raise InputError(
                f"profile {self.name}: got passes of {tokens} tokens; expected {known[0]} to {known[-1]}; calibrate with "
                "bench.engine.batches"
            )

        def between(values: list[float]) -> float:
            return float(np.interp(tokens, known, values))

        policies = set.intersection(*(set(p.decide_us) for p in self.passes))
        found = {name: between([getattr(p, name) for p in self.passes]) for name in _PASS}
        decide = {name: between([p.decide_us[name] for p in self.passes]) for name in sorted(policies)}
        return PassCosts(tokens=tokens, decide_us=decide, **found)

    def machine(self, tokens: int, policy: str, hidden: bool = False) -> Machine:
        """The engine on this machine for the clock: `policy` decides, events carry hidden states or not."""
        found = self.at(tokens)
        if policy not in found.decide_us:
            raise InputError(
                f"profile {self.name}: got policy {policy!r}; expected one that was calibrated: "
                f"{', '.join(found.decide_us)}; calibrate with bench.engine.policies"
            )
        event_us = found.event_us + found.decide_us[policy] + (found.hidden_us if hidden else 0.0)
        return Machine(
            name=self.name, bytes_per_s=_rate(self.expert_bytes, found.expert_us), flop_per_s=FLOP_PER_S,
            link_bytes_per_s=1e9 * self.copy_gb_per_s, link_latency_s=1e-6 * self.copy_latency_us, sync_s=1e-6 * event_us,
            cpu_bytes_per_s=_rate(self.expert_bytes, found.in_place_us), submit_s=1e-6 * found.submit_us,
            start_s=1e-6 * found.start_us, in_place=True,
        )  # fmt: skip

    def cost(self, tokens: int, layers: int) -> ModelCost:
        """The model's dense part in passes of `tokens` tokens, as operations of a nanosecond."""
        found, zero = self.at(tokens), np.zeros(layers)
        flop = np.full(layers, 1e3 * found.layer_us / tokens)
        return ModelCost(
            self.model, zero, flop, zero, np.full(layers, 1e3 * found.context_us), np.full(layers, self.expert_bytes), zero,
            np.zeros(layers, bool), 0, f"measured: profile {self.name}", 0.0, 1e3 * found.pass_us / tokens,
        )  # fmt: skip

    def to_yaml(self) -> str:
        """Text that `engine_profile_of` reads back."""
        lines = [f"name: {json.dumps(self.name)}", f"model: {json.dumps(self.model)}"]
        lines += [f"{name}: {_entry(getattr(self, name), self.sources[name])}" for name in _MACHINE]
        lines.append("passes:")
        for found in self.passes:
            at = f"{found.tokens}."
            lines.append(f"  - tokens: {found.tokens}")
            lines += [f"    {name}: {_entry(getattr(found, name), self.sources[at + name])}" for name in _PASS]
            lines.append("    decide_us:")
            for policy, value in found.decide_us.items():
                lines.append(f"      {policy}: {_entry(value, self.sources[f'{at}decide_us.{policy}'])}")
        return "\n".join(lines) + "\n"

    def rounded(self) -> "EngineProfile":
        """The same with six digits, as in the file."""
        whole: dict[str, Any] = {name: _six(getattr(self, name)) for name in _MACHINE}
        passes = []
        for p in self.passes:
            own: dict[str, Any] = {n: _six(getattr(p, n)) for n in _PASS}
            passes.append(replace(p, decide_us={k: _six(v) for k, v in p.decide_us.items()}, **own))
        return replace(self, passes=tuple(passes), **whole)


def engine_profile_of(data: Mapping[str, Any], what: str = "profile") -> EngineProfile:
    """A checked profile from the entries of its yaml. What is missing, unknown or out of range: `InputError`."""
    remedy = "make one with rgpu bench engine"
    if not isinstance(data, Mapping) or {"name", "model", "passes"} - set(data):
        raise InputError(f"{what}: got no profile of the engine; expected name, model and passes; {remedy}")
    given = {k: v for k, v in data.items() if k not in ("name", "model", "passes")}
    values, sources = numbers(given, _MACHINE, (), f"{what} {data['name']}")
    passes = []
    for entry in data["passes"] or []:
        tokens = entry.get("tokens")
        if type(tokens) is not int or tokens < 1:
            raise InputError(
                f"{what} {data['name']}: got passes of {tokens!r} tokens; expected a number from 1; {remedy}"
            )
        own = {k: v for k, v in entry.items() if k not in ("tokens", "decide_us")}
        named, from_ = numbers(own, _PASS, (), f"{what} {data['name']}, {tokens} tokens")
        chosen = entry.get("decide_us") or {}
        decide, by = numbers(chosen, tuple(chosen), (), f"{what} {data['name']}, {tokens} tokens, decide_us")
        sources |= {f"{tokens}.{k}": v for k, v in from_.items()} | {
            f"{tokens}.decide_us.{k}": v for k, v in by.items()
        }
        passes.append(PassCosts(tokens=tokens, decide_us=decide, **named))
    if not passes or [p.tokens for p in passes] != sorted({p.tokens for p in passes}):
        raise InputError(
            f"{what} {data['name']}: got {len(passes)} passes; expected some, by ascending tokens; {remedy}"
        )
    known = {f.name for f in fields(EngineProfile)}
    return EngineProfile(
        name=str(data["name"]), model=str(data["model"]), passes=tuple(passes), sources=sources,
        **{k: v for k, v in values.items() if k in known},
    )  # fmt: skip


def _rate(nbytes: float, us: float) -> float:
    return nbytes / (1e-6 * us) if us > 0 else float("inf")


def _six(value: float) -> float:
    return float(f"{value:.6g}")


def _entry(value: float, source: str) -> str:
    return f"{{value: {_six(value)!r}, source: {json.dumps(source)}}}"
