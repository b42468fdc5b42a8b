"""Time per token over the memory budget, by the way misses are served (kekzl/imp, omlx; FreeToken and llama.cpp for CPU)."""

from itertools import product

import numpy as np
import pandas as pd
import pyarrow as pa

from rgpu.experiments.study.timing import memory_needed
from rgpu.experiments.suites.published.bench import Bench
from rgpu.experiments.suites.published.clock import machine, speed_rows, timed, vram_bytes
from rgpu.experiments.suites.published.counting import POLICIES, slots_at
from rgpu.experiments.suites.published.record import About, Criterion, near, note, shape
from rgpu.experiments.suites.published.subjects import Subject
from rgpu.experiments.suites.published.values import published
from rgpu.replay.engine import SharedEvents
from rgpu.replay.pool import PoolConfig
from rgpu.replay.timing.simulate import MISSES

ABOUT = About(
    "budget_handlers",
    "field_budget_handlers",
    "Speed over the memory budget, by miss handler",
    "kekzl/imp PR 1374 (budget, hit rate, speed), jundot/omlx PR 2595 (residency, speed), Fiddler, arXiv 2402.07033",
    "LRU with a pool a layer, one request, speed over the share of experts resident and over the hit rate reached",
    "theirs are engines on one machine each; ours is simulated, with four ways to serve a miss side by side; other models; "
    "budgets that do not fit a card (slots, dense weights, longest context) are left out of its panels",
)
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75, 0.9, 1.0)
QUICK_SHARES = (0.2, 0.4, 0.75, 1.0)
MACHINES = ("rtx4060_laptop", "rtx5090")  # the second has a link like the one that was published on, 50 of 51 GB/s
LOW, HIGH = 0.741, 0.894  # hit rates of the two budgets whose speeds are compared


def rows(bench: Bench, subject: Subject) -> list[pa.Table]:
    trace, shared = subject.scored, SharedEvents(subject.scored)
    experts = trace.header.num_experts
    slots = sorted({slots_at(trace, share) for share in (QUICK_SHARES if bench.quick else SHARES)})

    def one(count: int) -> list[pa.Table]:
        found = timed(trace, POLICIES["lru"], PoolConfig(slots=count), shared=shared)
        at = bench.context(subject, ABOUT.figure).at(
            policy="lru", kind="demand", scope="layer", slots=count, capacity_share=count / experts, reset="sequence"
        )
        result = found.result
        tables = [at.ratio("hit_rate", result.hits_piece, result.accesses_piece, keep=False)]
        at = at.at(x=result.hit_rate)
        assert result.decisions is not None
        needed = memory_needed(result.decisions, found.facts, found.cost)
        for name, miss in product(MACHINES, MISSES):
            if needed <= vram_bytes(name):
                tables += speed_rows(at, found.on(machine(name), miss), trace.sequences)
        return tables

    return [table for tables in bench.map(one, slots) for table in tables]


def judge(found: pd.DataFrame) -> list[Criterion]:
    speeds = found[found["metric"] == "tokens_per_s"]
    table = speeds.pivot_table(index=["machine", "capacity_share"], columns="miss", values="value", observed=True)
    by_machine = {str(name): own.droplevel(0) for name, own in table.groupby(level=0, observed=True)}
    falls = {
        f"{name}, {miss}": float((own[miss] / own[miss].cummax()).min())
        for name, own in by_machine.items()
        for miss in own
    }
    shared = (table["split"] / table[["fetch", "cpu"]].max(axis=1)).groupby(level=0, observed=True).min()
    small = {name: own.iloc[0].astype(float).to_dict() for name, own in by_machine.items()}
    said = published(ABOUT.id, "tokens_per_s", x=HIGH) / published(ABOUT.id, "tokens_per_s", x=LOW)
    return [
        shape(
            "more memory is not slower (by over 1 %), however misses are served",
            min(falls.values()) > 0.99,
            {name: {share: dict(row) for share, row in own.iterrows()} for name, own in by_machine.items()},
            "10.5 to 51.9 tokens/s (imp), 29.3 to 122.5 (omlx)",
        ),
        shape(
            "with the smallest budget computing misses where they lie beats fetching them",
            all(own["cpu"] > own["fetch"] for own in small.values()),
            small,
            "Fiddler: 8.2 to 10.1 times mixtral-offloading",
        ),
        note("sharing misses by bandwidth is at least as fast as either way alone", shared.min() >= 0.98, dict(shared)),
        near(
            f"speed at {HIGH:.1%} hits over speed at {LOW:.1%}, fetched, {MACHINES[1]}:",
            speed_ratio(speeds, MACHINES[1]),
            said,
            0.15,
        ),
    ]


def speed_ratio(speeds: pd.DataFrame, where: str) -> float:
    """Speed at the higher hit rate over that at the lower one, between the budgets replayed; misses fetched."""
    own = speeds[(speeds["machine"] == where) & (speeds["miss"] == "fetch")].sort_values("x")
    low, high = np.interp([LOW, HIGH], own["x"].to_numpy(float), own["value"].to_numpy(float))
    return float(high / low)
