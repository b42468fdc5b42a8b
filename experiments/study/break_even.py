"""The break-even atlas: how good a forecast must be before prefetching pays, by link, compute time, capacity and lead.

Forecasts are the oracle's, spoilt to a recall, and say so or do not (`calibrated`); layers have gpt-oss-20b's experts on the
scored text's routing (32 experts, top-4), and take a given time beside their experts. Everything is simulated.
"""

import csv
import io
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rgpu.experiments.study.prefetch_time import COST, POLICIES, named, slots_of
from rgpu.experiments.suites.published.clock import yamls
from rgpu.planning.threshold import Threshold
from rgpu.predictors.oracle import Oracle
from rgpu.replay.log import DecisionLog
from rgpu.replay.pool import PoolConfig
from rgpu.replay.prefetching import NoPrefetch, RecordedForecasts, replay_prefetch
from rgpu.replay.timing.cost import ModelCost, experts_only
from rgpu.replay.timing.facts import PassFacts, pass_facts
from rgpu.replay.timing.machine import Machine
from rgpu.replay.timing.simulate import MISSES, simulate
from rgpu.results.provenance import write_atomic
from rgpu.results.rows import Context
from rgpu.traces.trace import Trace

GAIN = 0.005  # of the time without prefetch: what counts as paying
COLUMNS = ("link_gb_per_s", "copy_us", "compute_us", "capacity_share", "policy", "lead", "calibrated",
           "recall_needed", "best_saved", "worst_saved", "handler", "handler_prefetching", "tpot_none_us",
           "tpot_handler_us", "tpot_evict_us", "tpot_perfect_us")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Grid:
    """Axes. `calibrated`: whether a forecast says of each expert that it names how often it is right (its recall), or that it
    is all but certain. The planner loads what has one half or more: all that is named by who is sure, nothing below a recall
    of one half by who is calibrated."""

    links: tuple[float, ...] = (3.0, 6.0, 12.5, 25.0, 50.0, 100.0, 200.0)
    compute_us: tuple[float, ...] = (50.0, 100.0, 200.0, 400.0, 800.0, 1600.0)
    shares: tuple[float, ...] = (0.25, 0.5, 0.75)
    policies: tuple[str, ...] = ("lru", "joint_forecast")
    leads: tuple[int, ...] = (1, 2)
    recalls: tuple[float, ...] = (0.125, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    calibrated: tuple[bool, ...] = (False, True)


QUICK = Grid((6.0, 25.0, 100.0), (100.0, 400.0, 1600.0), (0.25,), leads=(1,), recalls=(0.3, 0.6, 0.8, 1.0))


def machine_at(link_gb_per_s: float, compute_us: float) -> Machine:
    """A desktop with an RTX 4090's memory and link latency, whose layers take `compute_us` beside their experts."""
    own = {name: entry["value"] for name, entry in yamls("hardware")["rtx4090"].items() if isinstance(entry, dict)}
    host = max(own["host_gb_per_s"], 1.2 * link_gb_per_s)
    return Machine(
        name=f"link {link_gb_per_s:g} GB/s", bytes_per_s=1e9 * own["gpu_gb_per_s"], launch_s=1e-6 * compute_us,
        link_bytes_per_s=1e9 * link_gb_per_s, link_latency_s=1e-6 * own["link_latency_us"],
        link_chunk_bytes=1024 * own["link_chunk_kib"], zero_copy_bytes_per_s=1e9 * link_gb_per_s,
        cpu_bytes_per_s=1e9 * own["cpu_gb_per_s"], cpu_flop_per_s=1e9 * own["cpu_gflops"],
        cpu_call_s=1e-6 * own["cpu_call_us"], host_bytes_per_s=1e9 * host,
    )  # fmt: skip


def needed(recalls: Sequence[float], saved: Sequence[float]) -> float:
    """The recall from which prefetching saves `GAIN` and more up to the highest one, between the points linear; NaN: never."""
    above = np.asarray(saved) - GAIN
    if above[-1] < 0:
        return float("nan")
    last = np.flatnonzero(above < 0)
    if not len(last):
        return float(recalls[0])
    i = int(last[-1])
    return float(recalls[i] + (recalls[i + 1] - recalls[i]) * -above[i] / (above[i + 1] - above[i]))


def atlas(trace: Trace, grid: Grid, seed: int = 0) -> list[dict[str, Any]]:
    """One entry a point of the grid: `COLUMNS`. `recall_needed`, `best_saved` and `worst_saved` (most and least of any recall)
    are of fetched misses, against the same policy with the same forecast that loads nothing ahead: what eviction gains is not
    prefetching's. `handler` serves misses fastest under LRU without any forecast (`tpot_none_us` if fetched),
    `handler_prefetching` beside perfect prefetching; `tpot_evict_us`: a perfect forecast only evicts."""
    size = int(yamls("cost")[COST]["expert_bytes"]["value"])
    top_k = trace.header.top_k
    cost, facts = experts_only(trace.layers, (size,) * trace.layers), pass_facts(trace)
    points = []
    for share, policy, lead, honest in itertools.product(grid.shares, grid.policies, grid.leads, grid.calibrated):
        none, idle, logs = _decided(trace, slots_of(trace, share), policy, lead, honest, grid.recalls, seed)
        for link, compute in itertools.product(grid.links, grid.compute_us):
            own = machine_at(link, compute)
            without, perfect = (_handlers(log, facts, own, cost, top_k) for log in (none, logs[-1]))
            tpot = [simulate(log, facts, own, cost, top_k).tpot_s for log in logs[:-1]] + [perfect["fetch"]]
            bases = [simulate(log, facts, own, cost, top_k).tpot_s for log in idle]
            saved = [1 - t / base for t, base in zip(tpot, bases, strict=True)]
            copy_us = 1e6 * (own.link_latency_s + size / own.link_rate)
            values = (link, copy_us, compute, share, policy, lead, honest, needed(grid.recalls, saved), max(saved), min(saved),
                      min(without, key=lambda m: without[m]), min(perfect, key=lambda m: perfect[m]),
                      1e6 * without["fetch"], 1e6 * min(without.values()), 1e6 * bases[-1],
                      1e6 * perfect["fetch"])  # fmt: skip
            points.append(dict(zip(COLUMNS, values, strict=True)))
    return points


def _decided(
    trace: Trace, slots: int, policy: str, lead: int, honest: bool, recalls: Sequence[float], seed: int
) -> tuple[DecisionLog, list[DecisionLog], list[DecisionLog]]:
    """Decisions of LRU without prefetch; at every recall those of the policy that loads nothing ahead, and those that do."""
    pool, top_k = PoolConfig(slots=slots), trace.header.top_k
    idle: list[DecisionLog] = []
    made: list[DecisionLog] = []
    for recall in recalls:
        oracle = Oracle(horizon=lead, recall=recall, calibrated=honest, seed=seed).fit(trace)
        source = RecordedForecasts(oracle, trace, lead)
        if not idle or POLICIES[policy].traits.forecast:  # a policy without a forecast evicts alike at every recall
            idle.append(replay_prefetch(trace, POLICIES[policy], pool, source, NoPrefetch).decisions)
        else:
            idle.append(idle[0])
        made.append(
            replay_prefetch(trace, POLICIES[policy], pool, source, lambda: Threshold(0.5, width=top_k)).decisions
        )
    return replay_prefetch(trace, POLICIES["lru"], pool, source, NoPrefetch).decisions, idle, made


def _handlers(log: DecisionLog, facts: PassFacts, machine: Machine, cost: ModelCost, top_k: int) -> dict[str, float]:
    return {miss: simulate(log, facts, machine, cost, top_k, miss=miss).tpot_s for miss in MISSES}


def rows(points: Sequence[dict[str, Any]], context: Context) -> list[pa.Table]:
    """Experiment `prefetch_break_even`: metrics of each point; `recall_needed` is 2 where prefetching never pays."""
    tables = []
    for point in points:
        never = bool(np.isnan(point["recall_needed"]))
        at = context.at(
            experiment="prefetch_break_even", trace=named(context.trace, COST), simulated=True, x=point["compute_us"] / 1e6,
            case="calibrated" if point["calibrated"] else "sure", capacity_share=point["capacity_share"], lag=point["lead"],
            policy=point["policy"], machine=f"{point['link_gb_per_s']:g}", predictor="oracle", scope="layer", reset="sequence",
        )  # fmt: skip
        tables += [
            at.rows(
                "recall_needed", "share", 2.0 if never else point["recall_needed"], verdict="never" if never else "pays"
            ),
            at.rows("best_saved", "share", point["best_saved"]),
            at.rows("worst_saved", "share", point["worst_saved"]),
            at.rows("fastest_handler", "rank", float(MISSES.index(point["handler"])), miss=point["handler"]),
            at.rows("copy", "s", point["copy_us"] / 1e6),
        ]
    return tables


def write(points: Sequence[dict[str, Any]], folder: Path) -> dict[str, str]:
    """`break_even.csv` and `break_even.json` with every point; empty or null where prefetching never pays."""
    shown = [{k: None if isinstance(v, float) and np.isnan(v) else v for k, v in p.items()} for p in points]
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS)
    table.writeheader()
    table.writerows(shown)
    about = {"simulated": True, "gain": GAIN, "points": shown}
    paths = {"csv": folder / "break_even.csv", "json": folder / "break_even.json"}
    write_atomic(paths["csv"], text.getvalue().encode())
    write_atomic(paths["json"], (json.dumps(about, indent=1) + "\n").encode())
    return {name: str(path) for name, path in paths.items()}
