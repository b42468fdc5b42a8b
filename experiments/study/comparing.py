"""One policy against many: how much of a trace there is time for, replays, simulated times. Legend: S sequences."""

import os
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from rgpu.errors import InputError
from rgpu.experiments.study.points import EXTRAS, Point, at_point, counted_rows, run_point
from rgpu.hardware import HardwareProfile
from rgpu.policies.policy import Policy
from rgpu.replay.engine import ReplayResult, SharedEvents
from rgpu.replay.timing.cost import ModelCost, cost_of, experts_only
from rgpu.replay.timing.facts import pass_facts
from rgpu.replay.timing.simulate import simulate
from rgpu.replay.warm import counts_by_sequence, sequence_orders
from rgpu.results.rows import Context
from rgpu.results.statistics import MIN_CLUSTERS
from rgpu.traces.trace import Trace

PROBE = 400  # accesses a layer on which a policy's speed is measured


@dataclass(slots=True)
class Setup:
    """What all replays of a comparison share."""

    scored: Trace
    calibration: Trace | None
    settings: Any
    orders_OS: np.ndarray | None
    profiles: list[HardwareProfile]
    cost: ModelCost | None
    miss: str
    ordered: list[tuple[np.ndarray, Trace, SharedEvents]] = field(default_factory=list)

    def __post_init__(self) -> None:
        own = np.arange(self.scored.sequences)
        if self.orders_OS is None:
            self.ordered = [(own, self.scored, SharedEvents(self.scored))]
            return
        for order_S in self.orders_OS:
            moved = self.scored.select(order_S)
            self.ordered.append((order_S, moved, SharedEvents(moved)))


def cost_for(trace: Trace, costs: list[dict[str, Any]]) -> ModelCost | None:
    """The cost (an entry of `conf/cost`) made for the trace's model, else its experts alone; None without expert sizes."""
    sizes = tuple(trace.header.expert_bytes)
    for data in costs:
        if trace.header.model in data.get("models", []):
            return cost_of(data, trace.layers, sizes)
    return experts_only(trace.layers, sizes) if sizes and all(sizes) else None


def fitting(scored: Trace, accesses_per_s: float, seconds: float, slots: list[int], runs: int, seed: int) -> tuple[
    Trace, list[int]
]:  # fmt: skip
    """(sequences, slots) that `runs` replays at each capacity get through in `seconds`: sequences drawn at random, at least
    enough for a verdict; where even those take longer at every capacity, only the middle one is left."""
    rng = np.random.default_rng([seed, scored.sequences])
    order = rng.permutation(scored.sequences)
    cost_S = np.cumsum(np.diff(scored.seq_offsets)[order] * scored.layers * scored.header.top_k) * runs / accesses_per_s
    least = min(MIN_CLUSTERS, scored.sequences)
    if cost_S[least - 1] * len(slots) > seconds:
        slots = [slots[len(slots) // 2]]
    count = max(least, int(np.searchsorted(cost_S * len(slots), seconds, side="right")))
    return (scored if count >= scored.sequences else scored.select(np.sort(order[:count]))), slots


def speed_of(policy: Policy, scored: Trace, calibration: Trace | None, point: Point, settings: Any) -> float:
    """Accesses a second of a policy, from its first sequences."""
    ends = np.searchsorted(scored.seq_offsets, PROBE, side="left")
    part = scored.select(np.arange(max(1, min(int(ends), scored.sequences))))
    result = run_point(part, calibration, policy, point, settings, SharedEvents(part), True)
    return result.accesses / max(result.seconds, 1e-9)


def rows_of(context: Context, policy: Policy, point: Point, setup: Setup) -> pa.Table:
    """Rows of one policy at one capacity: hits, loads, bytes, and simulated time per token on each machine."""
    counts, times = [], []
    for order_S, trace, shared in setup.ordered:
        result = run_point(trace, setup.calibration, policy, point, setup.settings, shared, True, bool(setup.profiles))
        counts.append(counts_by_sequence(result, order_S))
        times.append(_times(result, trace, order_S, setup))
    tokens_S, warm = np.diff(setup.scored.seq_offsets), setup.orders_OS is not None
    whole = np.stack(counts) if warm else counts[0]
    at = at_point(context, setup.scored, policy, point, setup.settings)
    extras = {name: result.to_json()[name] for name in EXTRAS}
    tables = [counted_rows(at, whole, tokens_S, setup.scored, policy, extras)]
    for i, profile in enumerate(setup.profiles if setup.cost is not None else []):
        seconds, steps = (np.stack([t[i][j] for t in times]) for j in (0, 1))
        seconds, steps = (seconds, steps) if warm else (seconds[0], steps[0])
        timed = at.at(machine=profile.name, miss=setup.miss, simulated=True)
        tables.append(timed.ratio("tpot", seconds, steps, unit="s/token"))
    return pa.concat_tables(tables)


def _times(
    result: ReplayResult, trace: Trace, order_S: np.ndarray, setup: Setup
) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each machine (seconds [S], output tokens [S]) of the decode passes, by the sequences' own numbers."""
    if setup.cost is None or not setup.profiles:
        return []
    assert result.decisions is not None
    facts, found = pass_facts(trace, setup.cost.window), []
    for profile in setup.profiles:
        timed = simulate(result.decisions, facts, profile.machine(), setup.cost, trace.header.top_k, miss=setup.miss)
        decode, owner = facts.decode, order_S[facts.sequence]
        spent = np.bincount(owner[decode], timed.seconds_P[decode], trace.sequences)
        found.append((spent, np.bincount(owner[decode], facts.steps[decode], trace.sequences)))
    return found


def all_rows(
    context: Context, mine: Policy, baselines: dict[str, Policy], slots: list[int], setup: Setup, seed: int, workers: int,
    deadline: float,
) -> tuple[list[pa.Table], dict[str, str]]:  # fmt: skip
    """(rows, reason by policy left out): those that this trace cannot run, and those for which there was no time.

    Compiled policies release the interpreter, so a plain one runs beside them.
    """
    left: dict[str, str] = {}
    scope = setup.settings.scope

    def one(policy: Policy, always: bool) -> list[pa.Table]:
        if time.monotonic() > deadline and not always:
            left[policy.name] = "no time left; raise budget_s"
            return []
        try:
            return [rows_of(context, policy, Point(policy.name, scope, n, seed), setup) for n in slots]
        except InputError as error:
            if always:
                raise
            left[policy.name] = str(error)
            return []

    with ThreadPoolExecutor(max(2, workers or os.cpu_count() or 1)) as pool:
        futures = [pool.submit(one, mine, True), *(pool.submit(one, p, False) for p in baselines.values())]
        try:
            for done in tqdm(as_completed(futures), total=len(futures), desc="compare", unit="policy", disable=None):
                done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [table for future in futures for table in future.result()], left


def orders_for(trace: Trace, orders: int) -> np.ndarray | None:
    """The shared orders of a warm comparison, or None for a cold one."""
    return sequence_orders(trace.sequences, orders) if orders else None
