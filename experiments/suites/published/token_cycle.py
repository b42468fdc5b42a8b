"""LRU below one token cycle in a global pool: the bytes one token routes to, L x k experts (BigMoeOnEdge, kimi-k3-in-c)."""

import numpy as np
import pandas as pd
import pyarrow as pa

from rgpu.experiments.suites.published.bench import Bench
from rgpu.experiments.suites.published.counting import POLICIES, Counts, at_pool, counts
from rgpu.experiments.suites.published.record import About, Criterion, near, note, shape
from rgpu.experiments.suites.published.subjects import Subject
from rgpu.replay.engine import SharedEvents
from rgpu.replay.pool import PoolConfig

ABOUT = About(
    "token_cycle",
    "field_token_cycle",
    "LRU's cliff below one token cycle in a global pool",
    "BigMoeOnEdge docs/cache-sizing.md (gpt-oss-120b) and kimi-k3-in-c docs/PERFORMANCE.md, memory ladder",
    "one global pool under LRU, one request at a time, hit rate over the pool's size in token cycles (MoE layers x top-k)",
    "other models; theirs are counters of real engines on a phone and a server, short runs; ours starts cold at each sequence. "
    "Under event-atomic counting the last (MoE layers - 1) x top-k experts are what lies between two uses at the least, so the "
    "certain zero ends there, one layer short of the cycle, where theirs ends",
)
CYCLES = (0.1, 0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0)
QUICK_CYCLES = (0.25, 0.75, 1.0, 1.25, 2.0)
CASES = (
    ("lru, global", "lru", "global"),
    ("belady, global", "belady", "global"),
    ("lru, a pool a layer", "lru", "layer"),
)


def zero_up_to(layers: int, top_k: int) -> int:
    """Slots of a global pool up to which LRU cannot hit: between two uses of an expert every other layer is visited."""
    return (layers - 1) * top_k


def pools_of(layers: int, experts: int, top_k: int, quick: bool) -> list[int]:
    """Sizes in slots: multiples of a token cycle, one short of it, and the last size without a hit with its neighbour."""
    cycle = layers * top_k
    sizes = {round(c * cycle) for c in (QUICK_CYCLES if quick else CYCLES)}
    sizes |= {zero_up_to(layers, top_k), zero_up_to(layers, top_k) + 1, cycle - 1}
    return sorted(s for s in sizes if layers <= s <= layers * experts)


def rows(bench: Bench, subject: Subject) -> list[pa.Table]:
    trace = subject.scored
    layers, top_k = trace.layers, trace.header.top_k
    shared = SharedEvents(trace)
    cells = [(case, size) for case in CASES for size in pools_of(layers, trace.header.num_experts, top_k, bench.quick)]

    def pool(scope: str, size: int) -> PoolConfig:
        return PoolConfig(scope, slots=size if scope == "global" else spread(size, layers))

    def one(cell: tuple[tuple[str, str, str], int]) -> Counts:
        (_, policy, scope), size = cell
        return counts(trace, POLICIES[policy], pool(scope, size), shared=shared)

    tables = []
    for ((name, policy, scope), size), own in zip(cells, bench.map(one, cells), strict=True):
        at = at_pool(bench.context(subject, ABOUT.figure, case=name), policy, pool(scope, size), trace)
        at = at.at(slots=size, capacity_share=size / (layers * trace.header.num_experts), x=size / (layers * top_k))
        tables.append(at.ratio("hit_rate", own.hits, own.accesses, keep=False))
    edge = zero_up_to(layers, top_k) / (layers * top_k)
    return [*tables, bench.context(subject, ABOUT.figure).rows("zero_edge", "cycles", edge)]


def spread(size: int, layers: int) -> tuple[int, ...]:
    """`size` slots over layers as evenly as they go, the first layers one more."""
    return tuple(int(s) for s in np.full(layers, size // layers) + (np.arange(layers) < size % layers))


def judge(found: pd.DataFrame) -> list[Criterion]:
    rates = found[found["metric"] == "hit_rate"]
    edge = float(found[found["metric"] == "zero_edge"]["value"].iloc[0])

    def curve(case: str) -> pd.DataFrame:
        return rates[rates["case"] == case].sort_values("x")

    lru, belady, apart = (curve(case) for case, _, _ in CASES)
    below = lru[lru["x"] <= edge + 1e-9]
    above = lru[lru["x"] >= 1.25]
    hits = float(below["numerator"].sum())
    short = lru[lru["x"] < 1 - 1e-9]
    half = belady[belady["x"] <= edge + 1e-9]
    return [
        shape(
            "LRU above the cycle hits",
            (above["value"] > 0).all(),
            dict(zip(above["x"].round(2), above["value"], strict=True)),
        ),
        shape("Belady hits below the cycle", (half["value"] > 0).any(), float(half["value"].max())),
        shape(
            "a pool a layer under LRU hits below the cycle",
            (apart[apart["x"] <= edge + 1e-9]["value"] > 0).any(),
            float(apart[apart["x"] <= edge + 1e-9]["value"].max()),
            "immune to the cliff",
        ),
        near(
            "LRU's hit rate in the largest global pool below a token cycle:", float(short["value"].iloc[-1]), 0.0, 0.01
        ),
        note(
            f"no hit of LRU in {len(below)} global pools of up to {edge:.3f} cycles, which event-atomic counting implies",
            hits == 0,
            hits,
        ),
    ]
