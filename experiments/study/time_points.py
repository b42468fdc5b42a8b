"""A grid of policies, capacities, machines and miss handlers: each policy and capacity is decided once, and every machine
is timed from its log. All rows are simulated.
"""

import os
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from tqdm import tqdm

from rgpu.errors import InputError
from rgpu.experiments.study.allocating import Allocated
from rgpu.experiments.study.points import Point, at_point, run_point
from rgpu.experiments.study.timing import usable_handlers, with_fetch
from rgpu.hardware import HardwareProfile
from rgpu.policies.belady import Belady
from rgpu.policies.belady_bypass import BeladyBypass
from rgpu.policies.policy import Policy
from rgpu.replay.engine import ReplayResult, SharedEvents
from rgpu.replay.timing.bound import device_seconds, time_bound
from rgpu.replay.timing.classes import classify
from rgpu.replay.timing.cost import ModelCost
from rgpu.replay.timing.facts import PassFacts
from rgpu.replay.timing.result import TimingResult
from rgpu.replay.timing.simulate import MISSES, simulate
from rgpu.results.rows import Context, append, read_arrow
from rgpu.traces.trace import Trace

UNITS = {"tpot": "s/token", "ttft": "s", "tokens": "tokens/s", "link": "share", "disk": "share", "bytes": "bytes"}


@dataclass(frozen=True, slots=True)
class Clocks:
    """What every point of the grid is timed on."""

    profiles: tuple[HardwareProfile, ...]
    misses: tuple[str, ...]
    overlap: str
    cost: ModelCost
    facts: PassFacts

    def identity(self, top_k: int) -> dict[str, Any]:
        """Every number that the times depend on beside the trace."""
        machines = [p.machine() for p in self.profiles]
        return {
            "profiles": [repr(p) for p in self.profiles], "machines": [m.packed().tolist() for m in machines],
            "miss": self.misses, "overlap": self.overlap, "cost": [self.cost.name, self.cost.source, self.cost.window],
            "cost_numbers": [self.cost.packed(top_k).tolist(), self.cost.expert_bytes.tolist()],
        }  # fmt: skip

    def pairs(self) -> list[tuple[HardwareProfile, str]]:
        """Machine and miss handler of each timing, those left out that a machine cannot do."""
        return [(p, m) for p in self.profiles for m in self.misses if m in usable_handlers(p.machine())]


def check_clocks(clocks: Clocks) -> Clocks:
    """The same, or an InputError for unknown handlers and a grid without anything to time."""
    if not clocks.misses:
        raise InputError(f"grid.miss: got []; expected some of {', '.join(MISSES)}")
    if bad := [m for m in clocks.misses if m not in MISSES]:
        raise InputError(f"grid.miss: got {bad[0]!r}; expected some of {', '.join(MISSES)}")
    if not clocks.pairs():
        raise InputError(
            f"grid.miss: got {', '.join(clocks.misses)} for machines that can do none of them; expected fetch among them"
        )
    names = [p.name for p in clocks.profiles]
    if len(set(names)) != len(names):
        raise InputError(f"grid.hardware: got profiles of one name in {', '.join(names)}; expected different names")
    return clocks


def time_sweep(
    context: Context, scored: Trace, calibration: Trace | None, policies: dict[str, Policy], points: list[Point],
    settings: Any, parts: Path, workers: int, clocks: Clocks,
) -> list[pa.Table]:  # fmt: skip
    """Rows of every point on every machine; a point's rows are kept under `parts` once all its machines are timed."""
    shared = SharedEvents(scored)
    pairs = clocks.pairs()
    bar = tqdm(total=len(points) * len(pairs), desc="time sweep", unit="point", disable=None)

    def capacity(point: Point) -> tuple[str, int, str]:
        """What the best schedules depend on: an allocator's pools have bests of their own."""
        policy = policies[point.policy]
        return point.scope, point.slots, policy.allocator.name if isinstance(policy, Allocated) else ""

    def best(point: Point) -> tuple[int, int]:
        """(fewest loads of any schedule, most hits on demand) at the capacities of a point."""
        policy = policies[point.policy]
        forced, bypass = (
            run_point(scored, calibration, replace(policy, policy=b) if isinstance(policy, Allocated) else b,
                      Point(b.name, point.scope, point.slots, 0), settings, shared, False)
            for b in (Belady(), BeladyBypass())
        )  # fmt: skip
        return bypass.demand_loads, forced.hits

    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        try:
            pending = [p for p in points if not _kept(parts, p).exists()]
            needed = {capacity(p): p for p in pending}
            same_size = len(set(clocks.cost.expert_bytes.tolist())) == 1
            bests = dict(zip(needed, pool.map(best, needed.values()), strict=True)) if same_size else {}
            events = {s: shared.get(s, settings.touch_order, False) for s in {p.scope for p in pending}}
            device = {
                (s, p.name): device_seconds(e, clocks.facts, p.machine(), clocks.cost, scored.header.top_k)
                for s, e in events.items()
                for p in clocks.profiles
            }

            def one(point: Point) -> pa.Table:
                kept = _kept(parts, point)
                if kept.exists():
                    bar.update(len(pairs))
                    return read_arrow(kept)
                policy = policies[point.policy]
                decided = run_point(scored, calibration, policy, point, settings, shared, False, decisions=True)
                at = at_point(context, scored, policy, point, settings)
                rows = timed_rows(at, decided, scored, clocks, bests.get(capacity(point)), device, bar)
                append(kept, rows)
                return rows

            futures = [pool.submit(one, point) for point in points]
            for done in as_completed(futures):
                done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        finally:
            bar.close()
    return [future.result() for future in futures]


def timed_rows(
    at: Context,
    decided: ReplayResult,
    trace: Trace,
    clocks: Clocks,
    best: tuple[int, int] | None,
    device: dict[Any, Any],
    bar: Any,
) -> pa.Table:
    """Rows of one log on every machine. `best`: fewest loads and most hits at its capacity; None: no bound."""
    log, facts, cost, top_k = decided.decisions, clocks.facts, clocks.cost, trace.header.top_k
    assert log is not None
    classes = classify(log, facts)
    counted = at.at(case="replay")
    hits, accesses = decided.hits, decided.accesses
    tables = [
        counted.rows("hit_rate", "share", hits / accesses, numerator=hits, denominator=accesses),
        counted.rows("loads_per_token", "loads/token", decided.loads / trace.tokens, numerator=decided.loads,
                     denominator=trace.tokens),
    ]  # fmt: skip
    if best is not None:
        loads, most = best
        tables += [
            counted.rows("belady_hit_rate", "share", most / accesses, numerator=most, denominator=accesses),
            counted.rows("loads_above_bypass", "loads/token", (decided.loads - loads) / trace.tokens,
                         numerator=decided.loads - loads, denominator=trace.tokens),
        ]  # fmt: skip
    for profile, miss in clocks.pairs():
        machine = profile.machine()
        found = simulate(log, facts, machine, cost, top_k, miss=miss, overlap=clocks.overlap, classes=classes)
        here = at.at(machine=profile.name, miss=miss, case=clocks.overlap, simulated=True)
        tables += summary_rows(here, found)
        if best is not None:
            for name, handlers in (("bound", usable_handlers(machine)), ("handler_bound", with_fetch(miss))):
                bound = time_bound(
                    log.events, facts, machine, cost, top_k, best[0] * float(cost.expert_bytes[0]), handlers,
                    device=device[decided.scope, profile.name],
                )  # fmt: skip
                share = bound.seconds / found.seconds if found.seconds else None
                seconds = {"numerator": bound.seconds, "denominator": found.seconds}
                tables.append(here.rows(f"{name}_share", "share", share, **seconds))
        bar.update()
    return pa.concat_tables(tables)


def summary_rows(here: Context, found: TimingResult) -> list[pa.Table]:
    """One row a figure of the summary."""
    figures = {k: v for k, v in found.summary().items() if k.partition("_")[0] in UNITS and v is not None}
    figures["seconds"] = found.seconds
    names = list(figures)
    units = [UNITS.get(name.partition("_")[0], "s") for name in names]
    return [here.rows(name, unit, float(figures[name])) for name, unit in zip(names, units, strict=True)]


def _kept(parts: Path, point: Point) -> Path:
    return parts / f"{point.policy}-{point.scope}-{point.slots}-{point.seed}.parquet"
