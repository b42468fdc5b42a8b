"""What the simulator says of a live contest: the same decisions on the virtual clock, with costs measured in the same run."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from rgpu.experiments.benching.calibrating import Calibration
from rgpu.experiments.benching.copy_timing import CopyCosts, copy_costs
from rgpu.experiments.benching.live_events import Bench
from rgpu.experiments.benching.quiet import Quiet
from rgpu.experiments.study.live_engine import Host, Link
from rgpu.experiments.suites.predicting.material import window
from rgpu.planning.link_time import LinkTime
from rgpu.policies.belady_bypass import BeladyBypass
from rgpu.policies.fifo import Fifo
from rgpu.policies.policy import Policy
from rgpu.policies.static_hot import StaticHot
from rgpu.replay.engine import replay
from rgpu.replay.events import build_events
from rgpu.replay.log import DecisionLog
from rgpu.replay.pool import PoolConfig
from rgpu.replay.timing.bound import time_bound
from rgpu.replay.timing.engine_profile import EngineProfile
from rgpu.replay.timing.facts import pass_facts
from rgpu.replay.timing.machine import Machine
from rgpu.replay.timing.simulate import simulate
from rgpu.traces.trace import PROMPT, Trace
from rgpu.types import ExpertKey, MoEShape

CALIBRATING = (Fifo(), StaticHot())  # as the calibration of a profile asks for
SLOTS = (12, 20)  # that calibrate; no contest has as many
PROMPT_TOKENS, NEW_TOKENS = 32, 24  # of the text that calibrates
COPIES = 40  # of each kind that are timed over a link


@dataclass(frozen=True)
class Clock:
    """The engine's profile on this machine, and what a copy takes over each link."""

    profile: EngineProfile
    copies: Mapping[Link, CopyCosts]

    def link_time(self, link: Link, shape: MoEShape) -> LinkTime:
        """What planners that count link time are told."""
        at, copy = self.profile.at(1), self.copies[link]
        copy_s = copy.latency_s + shape.expert_bytes[0] / copy.bytes_per_s
        return LinkTime(copy_s, 1e-6 * (at.layer_us + at.event_us), 1e-6 * shape.top_k * at.expert_us)

    def machine(self, link: Link, decide_s: float, hidden: bool) -> Machine:
        """This machine with the link, where an event takes `decide_s` to decide, forecasts and plans included."""
        known, at, copy = CALIBRATING[0].name, self.profile.at(1), self.copies[link]
        found = self.profile.machine(1, known, hidden)
        return replace(
            found, name=link.label, sync_s=found.sync_s - 1e-6 * at.decide_us[known] + decide_s,
            link_bytes_per_s=copy.bytes_per_s, link_latency_s=copy.latency_s,
        )  # fmt: skip

    def decode_s(self, log: DecisionLog, trace: Trace, machine: Machine) -> float:
        """Simulated seconds of the decode passes."""
        facts, cost = pass_facts(trace), self.profile.cost(1, trace.layers)
        found = simulate(log, facts, machine, cost, trace.header.top_k)
        return float(found.seconds_P[facts.decode].sum())

    def bound_s(self, trace: Trace, machine: Machine, slots: int) -> float:
        """Seconds that no schedule's decode passes can beat, even one that begins them with the best pool there is: loads
        from empty pools, less a pool's worth a layer."""
        assert trace.phase is not None
        part = window(trace, int((trace.phase == PROMPT).sum()), trace.tokens)
        loads = replay(part, BeladyBypass(), PoolConfig(slots=slots)).demand_loads
        least = max(0, loads - slots * part.layers) * float(part.header.expert_bytes[0])
        cost = self.profile.cost(1, part.layers)
        events = build_events(part, scope="layer", touch_order="rank")
        return time_bound(events, pass_facts(part), machine, cost, part.header.top_k, least, ("fetch",)).seconds


def calibrated(
    folder: Path, host: Host, links: Sequence[Link], trace: Trace, rounds: int, quiet: Quiet, cache: Path | None = None
) -> Clock:
    """Calibration runs on the first tokens of `trace`, of whose documents none competes, as the validation makes them."""
    tokens = trace.require("token_ids", "calibrating the engine")[trace.seq_offsets[0] :][:PROMPT_TOKENS]
    policies: dict[str, Policy] = {policy.name: policy for policy in CALIBRATING}
    bench = Bench(folder, (tuple(int(t) for t in tokens),), NEW_TOKENS, policies, trace, cache=cache)
    runs = Calibration(bench, (1,), SLOTS, (), quiet)
    for _ in range(rounds):
        runs.run_round()
    return Clock(runs.profile("this machine"), {link: link_costs(host, link) for link in links})


def link_costs(host: Host, link: Link) -> CopyCosts:
    """What a copy takes: measured by a transfer engine of its own; over an emulated link the stated rate, and as latency what
    its quicker reads take beyond it, for on a busy machine bursts say little of so slow a link."""
    source = link.opened(host.store)
    try:
        if link.gb_per_s is None:
            return copy_costs(source, COPIES)
        rate, out = 1e9 * link.gb_per_s, np.empty(source.layout.nbytes, np.uint8)
        took = []
        for expert in range(COPIES):
            began = time.perf_counter()
            source.read_into(ExpertKey(0, expert % source.experts), out)
            took.append(time.perf_counter() - began)
        return CopyCosts(rate, max(0.0, float(np.percentile(took, 20)) - out.nbytes / rate))
    finally:
        source.close()
