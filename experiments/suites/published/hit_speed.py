"""Hit rate against speed at equal bytes: policies as points, a panel a machine (BigMoeOnEdge, layer-lfu on a phone)."""

from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from rgpu.errors import InputError
from rgpu.experiments.suites.published.bench import Bench
from rgpu.experiments.suites.published.clock import machine, speed_rows, timed
from rgpu.experiments.suites.published.counting import slots_at
from rgpu.experiments.suites.published.record import About, Criterion, shape
from rgpu.experiments.suites.published.subjects import Subject
from rgpu.experiments.suites.published.values import published
from rgpu.policies.admission import Capped, admitted
from rgpu.policies.fifo import Fifo
from rgpu.policies.lfru import Lfru
from rgpu.policies.lfu_perfect import LfuPerfect
from rgpu.policies.lru import Lru
from rgpu.policies.policy import Policy
from rgpu.policies.random import Random
from rgpu.policies.ring import Ring
from rgpu.policies.rotary import Rotary
from rgpu.policies.router_lag import RouterLag
from rgpu.policies.static_hot import StaticHot
from rgpu.replay.engine import SharedEvents
from rgpu.replay.pool import PoolConfig
from rgpu.results.derive import kind_of

ABOUT = About(
    "hit_speed",
    "field_hit_speed",
    "Hit rate against speed where they disagree",
    "BigMoeOnEdge docs/bench-data/2026-07-20-cache-replay/layer-lfu-verdict.md",
    "policies at equal bytes on one trace, hit rate beside tokens per second, a per-layer partition beside a global pool",
    "ours is simulated on two GPUs, misses fetched or computed on the CPU: the cause here is copies that hits do not "
    "count, made ahead or for misses already served; theirs are page faults of a phone's memory manager, which no replay sees; "
    "a hit is what was resident or on its way, as the decisions saw it; bytes moved are not equal and are given",
    exists=True,
)
SHARE = 0.25
MACHINES = ("rtx4060_laptop", "rtx4090")
HANDLERS = ("fetch", "cpu")
ARMS: tuple[tuple[str, Policy, str], ...] = (
    ("lru", Lru(), "layer"),
    ("lru, global", Lru(), "global"),
    ("lfu_perfect", LfuPerfect(), "layer"),
    ("lfu_perfect, global", LfuPerfect(), "global"),
    ("lfru", Lfru(forget=False), "layer"),
    ("fifo", Fifo(), "layer"),
    ("random", Random(), "layer"),
    ("static_hot", StaticHot(), "layer"),
    ("ring", Ring(), "layer"),
    ("lru, one insert an event", admitted(Lru(), Capped(1)), "layer"),
    ("router_lag", RouterLag(), "layer"),
    ("router_lag, one load an event", RouterLag(step=1), "layer"),
    ("rotary", Rotary(), "layer"),
    ("rotary, four loads an event", Rotary(step=4), "layer"),
)
HITS, SPEED = 0.01, 0.05  # a disagreement: at least so many more hits and so much less speed


def rows(bench: Bench, subject: Subject) -> list[pa.Table]:
    trace, shared = subject.scored, SharedEvents(subject.scored)
    slots = slots_at(trace, SHARE)

    def one(arm: tuple[str, Policy, str]) -> list[pa.Table]:
        name, policy, scope = arm
        count = slots if scope == "layer" else slots * trace.layers
        try:
            found = timed(trace, policy, PoolConfig(scope, count), calibration=subject.calibration, shared=shared)
        except InputError:  # the trace lacks what the policy reads: the others are compared without it
            return []
        at = bench.context(subject, ABOUT.figure).at(
            policy=name, kind=kind_of(policy.traits), scope=scope, slots=count, capacity_share=slots / trace.header.num_experts,
            reset="sequence", staging=1 if policy.traits.staging else 0,
        )  # fmt: skip
        result = found.result
        tables = [
            at.ratio("hit_rate", result.hits_piece, result.accesses_piece, keep=False),
            at.ratio("loads_per_token", result.loads_piece, np.diff(trace.seq_offsets), unit="loads/token", keep=False),
        ]
        for where, miss in product(MACHINES, HANDLERS):
            tables += speed_rows(at, found.on(machine(where), miss), trace.sequences)
        return tables

    return [table for tables in bench.map(one, ARMS) for table in tables]


def disagreements(found: pd.DataFrame) -> list[dict[str, Any]]:
    """Pairs where more hits are slower, the widest first: both by the least that counts, and intervals apart."""
    rates = found[found["metric"] == "hit_rate"].set_index("policy")[["value", "lo", "hi"]].astype(float)
    hits = rates["value"]
    speeds = found[found["metric"] == "tokens_per_s"]
    out = []
    for (where, miss), own in speeds.groupby(["machine", "miss"], observed=True):
        table = own.set_index("policy")[["value", "lo", "hi"]].astype(float)
        speed = table["value"]
        for more, fewer in product(hits.index, hits.index):
            gain, loss = hits[more] - hits[fewer], 1 - speed[more] / speed[fewer]
            apart = rates["lo"][more] > rates["hi"][fewer] and table["hi"][more] < table["lo"][fewer]
            if gain >= HITS and loss >= SPEED and apart:
                out.append(
                    {"machine": str(where), "miss": str(miss), "more hits": str(more), "faster": str(fewer),
                     "hits": float(gain), "speed": float(-loss)}
                )  # fmt: skip
    return sorted(out, key=lambda pair: pair["speed"])


def judge(found: pd.DataFrame) -> list[Criterion]:
    pairs = disagreements(found)
    hits = {policy: published(ABOUT.id, "hit_rate", policy=policy) for policy in ("lru", "layer_lfu")}
    speed = {policy: published(ABOUT.id, "tokens_per_s", policy=policy) for policy in hits}
    said = {"hits": hits["layer_lfu"] - hits["lru"], "speed": speed["layer_lfu"] / speed["lru"] - 1}
    more, less = f"{100 * HITS:g} point or more of hits", f"{100 * SPEED:g} % or more less speed"
    return [
        shape(
            f"two policies at equal bytes, one with {more} and {less}, intervals apart",
            bool(pairs),
            pairs[:3],
            said,
        ),
    ]
