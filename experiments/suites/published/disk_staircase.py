"""Capacity with a disk below: a RAM cache of growing size under LRU and under Belady (kimi-k3-in-c).

Two machines: one that computes from RAM with the disk as its link, and a GPU whose loads find their expert in RAM or read
the disk first.
"""

from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from rgpu.experiments.suites.published.bench import Bench
from rgpu.experiments.suites.published.clock import machine, ram_bytes, speed_rows, timed
from rgpu.experiments.suites.published.counting import POLICIES, at_pool, slots_at
from rgpu.experiments.suites.published.record import About, Criterion, note, shape
from rgpu.experiments.suites.published.subjects import Subject
from rgpu.experiments.suites.published.token_cycle import zero_up_to
from rgpu.replay.engine import SharedEvents
from rgpu.replay.pool import PoolConfig
from rgpu.replay.timing.memory_tier import disk_loads

ABOUT = About(
    "disk_staircase",
    "field_disk_staircase",
    "Capacity staircase with a disk tier",
    "kimi-k3-in-c docs/PERFORMANCE.md, memory ladder and replayed capacity",
    "one cache of experts in RAM above a disk, LRU against Belady, hit rate over its size in token cycles",
    "other models, cold per sequence, decode that keeps its context (theirs recomputes it, which repeats every request); "
    "seconds per token are simulated; the GPU arm, with a pool of its own above the RAM cache, is ours; "
    "times only where the cache and the dense weights fit the laptop's memory",
)
CYCLES = (0.25, 0.5, 0.75, 0.9, 1.1, 1.5, 2.0, 2.5, 3.5, 5.0, 7.0)
QUICK_CYCLES = (0.25, 0.75, 1.5, 2.5)
SHOWN = ("lru", "belady")
LAPTOP, GPU = "laptop_nvme", "rtx4060_laptop"
RAM, TIERED = "RAM over disk", "GPU pool over RAM over disk"
GPU_SHARE = 0.125


def sizes_of(layers: int, experts: int, top_k: int, quick: bool) -> list[int]:
    cycle = layers * top_k
    wanted = {round(c * cycle) for c in (QUICK_CYCLES if quick else CYCLES)} | {zero_up_to(layers, top_k)}
    return sorted({min(size, layers * experts) for size in wanted} | {layers * experts})


def rows(bench: Bench, subject: Subject) -> list[pa.Table]:
    trace, shared = subject.scored, SharedEvents(subject.scored)
    layers, experts, top_k = trace.layers, trace.header.num_experts, trace.header.top_k
    sizes = sizes_of(layers, experts, top_k, bench.quick)
    laptop, gpu = machine(LAPTOP), machine(GPU)

    def place(name: str, size: int, case: str) -> Any:
        at = at_pool(bench.context(subject, ABOUT.figure, case=case), name, PoolConfig("global", size), trace)
        return at.at(x=size / (layers * top_k))

    def one(cell: tuple[str, int]) -> list[pa.Table]:
        name, size = cell
        found = timed(trace, POLICIES[name], PoolConfig("global", size), shared=shared)
        at = place(name, size, RAM)
        hits = at.ratio("hit_rate", found.result.hits_piece, found.result.accesses_piece, keep=False)
        held = size * trace.header.expert_bytes[0] + float(found.cost.dense_bytes.sum())
        return [hits, *(speed_rows(at, found.on(laptop), trace.sequences) if held <= ram_bytes(LAPTOP) else [])]

    tables = [table for own in bench.map(one, product(SHOWN, sizes)) for table in own]
    above = timed(trace, POLICIES["lru"], PoolConfig(slots=slots_at(trace, GPU_SHARE)), shared=shared)
    log = above.result.decisions
    assert log is not None

    def tiered(cell: tuple[str, int]) -> list[pa.Table]:
        name, size = cell
        disk = disk_loads(log, POLICIES[name], size * trace.header.expert_bytes[0], above.cost.expert_bytes)
        from_ram = float(np.sum(disk.accesses[~log.hit] == 0))
        at = place(name, size, TIERED)
        asked = float(np.sum(~log.hit))
        ram = at.rows("hit_rate", "share", from_ram / asked, numerator=from_ram, denominator=asked)
        return [ram, *speed_rows(at, above.on(gpu, disk=disk), trace.sequences)]

    tables += [table for own in bench.map(tiered, product(SHOWN, sizes)) for table in own]
    edge = zero_up_to(layers, top_k) / (layers * top_k)
    return [*tables, bench.context(subject, ABOUT.figure).rows("zero_edge", "cycles", edge)]


def judge(found: pd.DataFrame) -> list[Criterion]:
    def curve(policy: str, metric: str, case: str = RAM) -> pd.Series:
        own = found[(found["policy"] == policy) & (found["metric"] == metric) & (found["case"] == case)]
        return own.set_index(own["x"].astype(float))["value"].astype(float).sort_index()

    lru, belady = curve("lru", "hit_rate"), curve("belady", "hit_rate")
    edge = float(found[found["metric"] == "zero_edge"]["value"].iloc[0]) + 1e-9
    below = lru.index <= edge
    flat, rise = float(np.ptp(lru[below])), float(np.ptp(belady[below]))
    speed = {name: curve(name, "tpot") for name in SHOWN}
    speed = {name: own[own.index <= edge] for name, own in speed.items()}
    tiered = curve("lru", "tpot", TIERED)
    flat_speed = abs(speed["lru"].iloc[-1] / speed["lru"].iloc[0] - 1) < 0.02
    first = float(lru[lru.index >= 1.4].iloc[0])
    ends = [float(lru.iloc[-1]), float(belady.iloc[-1])]
    return [
        shape("below a token cycle LRU is flat", flat < 0.01, flat, "0.0 % from 28 to 1,344 slots in the engine"),
        shape("over the same sizes Belady climbs", rise > 0.05, rise, "39.4 to 61.7 % where LRU stays at 36.2 %"),
        shape("above the cycle LRU climbs steeply", first > 0.1, first, "36 to 49 %"),
        shape("with room for every expert both are equal", abs(ends[0] - ends[1]) < 1e-9, ends, [0.9, 0.9]),
        shape(
            "below the cycle seconds per token fall under Belady and stay under LRU",
            speed["belady"].iloc[0] > speed["belady"].iloc[-1] and flat_speed,
            {name: list(own) for name, own in speed.items()},
        ),
        note(
            "under a GPU pool a larger RAM cache is never slower", (tiered.diff().dropna() <= 1e-9).all(), list(tiered)
        ),
    ]
