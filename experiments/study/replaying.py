"""Rows from replays: the capacity sweep, layers, topic switches, residency. Legend: S sequences, N tokens."""

from typing import Any

import numpy as np
import pyarrow as pa

from rgpu.policies.policy import Policy
from rgpu.replay.controller import Controller
from rgpu.replay.engine import SharedEvents, replay
from rgpu.replay.features import available
from rgpu.replay.pool import PoolConfig
from rgpu.replay.stream import routing_events
from rgpu.results.derive import kind_of
from rgpu.results.rows import Context
from rgpu.traces.trace import Trace

OFFSETS = (-60, 80)  # tokens around a switch that are kept


def at_pool(context: Context, policy: Policy, trace: Trace, slots: int, staging: int) -> Context:
    return context.at(
        policy=policy.name, kind=kind_of(policy.traits), scope="layer", slots=slots, reset="sequence",
        capacity_share=slots / trace.header.num_experts,
        staging=staging if policy.traits.staging and not policy.traits.bound else 0,
    )  # fmt: skip


def layer_hits(
    context: Context, trace: Trace, calibration: Trace | None, policies: list[Policy], slots: int
) -> list[pa.Table]:
    """Hit rate of every layer under every policy at one capacity."""
    tables, shared = [], SharedEvents(trace)
    for policy in policies:
        result = replay(
            trace, policy, PoolConfig(slots=slots), reset="sequence", calibration=calibration, shared=shared
        )
        layer = result.events.layer
        hits = np.bincount(layer, result.hits_event, trace.layers)
        accesses = np.bincount(layer, np.diff(result.events.offs), trace.layers)
        at = at_pool(context.at(experiment="layer_hits"), policy, trace, slots, 1)
        tables.append(
            at.rows(
                "hit_rate",
                "share",
                hits / accesses,
                layer=np.arange(trace.layers),
                numerator=hits,
                denominator=accesses,
            )
        )
    return tables


def topic_switches(
    context: Context, trace: Trace, calibration: Trace | None, policies: list[Policy], slots: int
) -> list[pa.Table]:
    """Hits and accesses of each token around each switch; one row a sequence, switch and token offset."""
    tables, shared = [], SharedEvents(trace)
    meta = trace.header.sequences
    sequence_N = np.repeat(np.arange(trace.sequences), np.diff(trace.seq_offsets))
    for policy in policies:
        result = replay(
            trace, policy, PoolConfig(slots=slots), reset="sequence", calibration=calibration, shared=shared
        )
        row = np.searchsorted(np.unique(trace.passes), result.events.pass_id)  # one token a pass, in order
        hits_N = np.bincount(row, result.hits_event, trace.tokens)
        accesses_N = np.bincount(row, np.diff(result.events.offs), trace.tokens)
        at = at_pool(context.at(experiment="topic_switch"), policy, trace, slots, 1)
        for case, kind, which in (("switch", "switch", 0), ("leave", "switch_back", 0), ("return", "switch_back", 1)):
            chosen = [s for s in range(trace.sequences) if meta[s]["kind"] == kind]
            switch = {s: int(meta[s]["switches"][which]) for s in chosen}
            offset_N = np.array(
                [trace.positions[n] - switch.get(int(sequence_N[n]), 10**6) for n in range(trace.tokens)]
            )
            keep = (offset_N >= OFFSETS[0]) & (offset_N < OFFSETS[1])
            tables.append(
                at.rows(
                    "hit_rate", "share", hits_N[keep] / accesses_N[keep], case=case, offset=offset_N[keep],
                    sequence=sequence_N[keep], numerator=hits_N[keep], denominator=accesses_N[keep],
                )
            )  # fmt: skip
    return tables


def residency(
    context: Context,
    trace: Trace,
    calibration: Trace | None,
    policies: list[Policy],
    slots: int,
    layer: int,
    tokens: int,
) -> list[pa.Table]:
    """Who sits in which slot of one layer's pool after each of the first `tokens` tokens of a trace."""
    tables = []
    for policy in policies:
        feature = available(policy.traits.feature, trace, policy.name) if policy.traits.feature else ""
        controller = Controller(
            policy, trace.shape, PoolConfig(slots=slots), calibration=calibration, feature=feature, keep_log=False
        )
        controller.start()
        seen: list[np.ndarray] = []
        for event in routing_events(trace):
            controller.observe(event)
            controller.ahead()
            if event.layer == layer:
                seen.append(controller.occupants(controller.pool_of(layer)))
            if len(seen) == tokens:
                break
        grid = np.stack(seen)
        time, slot = (index.ravel() for index in np.indices(grid.shape))
        at = at_pool(context.at(experiment="residency", layer=layer), policy, trace, slots, 1)
        held = grid.ravel() >= 0
        tables.append(at.rows("expert", "id", grid.ravel()[held].astype(float), offset=time[held], slot=slot[held]))
    return tables


def bounds_hold(rows: Any) -> tuple[bool, str]:
    """Whether nothing loads less than Belady with bypass, and no forced demand policy has more hits than Belady wherever
    every event fits the pool (an oversized one is served in waves, for which forced Belady is no bound)."""
    whole = rows[(rows["experiment"] == "capacity_sweep") & rows["sequence"].isna() & rows["domain"].isna()]
    checked, broken = 0, []
    for (trace, slots), point in whole.groupby(["trace", "slots"]):
        hits = point[point["metric"] == "hit_rate"].set_index("policy")
        loads = point[point["metric"] == "loads_per_token"].set_index("policy")["value"]
        oversized = point[(point["metric"] == "oversized_events") & (point["policy"] == "belady")]["value"].sum()
        demand = hits[(hits["kind"] == "demand") & (oversized == 0)]["value"]
        checked += len(demand) + len(loads)
        broken += [f"{trace}/{slots}/{p}" for p in demand.index if demand[p] > hits["value"]["belady"] + 1e-12]
        broken += [f"{trace}/{slots}/{p}" for p in loads.index if loads[p] < loads["belady_bypass"] - 1e-12]
    return not broken and checked > 0, f"{checked} comparisons" + (
        f"; broken: {', '.join(broken[:5])}" if broken else ""
    )
