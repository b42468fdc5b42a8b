"""`simulate`: the time a decision log takes on a machine. Simulated: nothing here was measured.

Legend: P passes, A accesses, L MoE layers. The same log serves every machine, miss handler and overlap.
"""

from dataclasses import dataclass

import numpy as np

from rgpu.errors import InputError
from rgpu.replay.log import DecisionLog
from rgpu.replay.timing.classes import EventClasses, classify, clock_classes
from rgpu.replay.timing.clock import PARTS, run_clock
from rgpu.replay.timing.cost import ModelCost
from rgpu.replay.timing.facts import PassFacts
from rgpu.replay.timing.link import BUSY, DISK_BUSY, DISK_DONE, NOTED, TALLIES
from rgpu.replay.timing.machine import Machine
from rgpu.replay.timing.result import TimingResult

MISSES = ("fetch", "cpu", "split", "zero_copy")  # in the order of the kernels' numbers
OVERLAPS = ("wave", "expert", "stream")
LONGEST_S = 9e6  # what int64 picoseconds hold


@dataclass(frozen=True, slots=True)
class DiskLoads:
    """Which loads find their expert in no host memory and read the disk first: uint8, 1 yes. Accesses that hit: 0."""

    accesses: np.ndarray
    proactive: np.ndarray
    fills: np.ndarray


@dataclass(frozen=True, slots=True)
class Window:
    """Passes first..last (excluded) whose slices are recorded, at most `room` of them."""

    first: int
    last: int
    room: int = 200_000


def simulate(
    log: DecisionLog, facts: PassFacts, machine: Machine, cost: ModelCost, top_k: int, *, miss: str = "fetch",
    overlap: str = "expert", disk: DiskLoads | None = None, record: Window | None = None,
    classes: EventClasses | None = None, quick: bool = True,
) -> TimingResult:  # fmt: skip
    """Run the clock over every event of `log`.

    `miss`: how misses are served. `overlap`: "wave" computes once all copies of a wave have landed, "expert" each member
    once its own copy has (as rgpu's runtime does), "stream" while its copy arrives. `classes`: what `classify` made of the log
    (spares doing it again for every machine); `quick` False takes the whole clock in any case. Raises InputError on a handler
    the machine cannot do, and on facts or costs of another trace.
    """
    check(log, facts, machine, cost, miss, overlap, disk)
    check_length(log, facts, machine, cost.packed(top_k), cost.expert_bytes, miss, disk)
    events, layout, handler = log.events, log.layout, MISSES.index(miss)
    parts, tally = np.zeros((facts.passes, PARTS), np.int64), np.zeros(TALLIES, np.int64)
    packed, mach = cost.packed(top_k), machine.packed()
    if disk is None and record is None and quick:
        classes = classes or classify(log, facts)
        if classes is not None and (miss in ("fetch", "zero_copy") or not classes.keeps):
            busy = clock_classes(classes, facts, cost.expert_bytes, packed, mach, layout.staging, handler,
                                 OVERLAPS.index(overlap), parts, tally)  # fmt: skip
            return TimingResult(machine.name, miss, overlap, parts, facts, tally, busy)
    none = np.zeros(0, np.uint8)
    disk_A, disk_P, disk_F = (disk.accesses, disk.proactive, disk.fills) if disk else (none, none, none)
    rec = np.zeros((1 if record is None else record.room + 1, NOTED), np.int64)
    first, last = (0, 0) if record is None else (record.first, record.last)
    reg = run_clock(
        events.pool, events.layer, events.offs, events.keys, log.codes, cost.expert_bytes, key_layers(log), disk_A,
        log.proactive, disk_P, log.fills, disk_F, log.stretches, layout.staging, max(1, *layout.main), facts.work,
        packed, mach, cost.layers, handler, OVERLAPS.index(overlap), first, last, parts, tally, rec,
    )  # fmt: skip
    slices = None if record is None else rec[1 : rec[0, 0] + 1]
    return TimingResult(machine.name, miss, overlap, parts, facts, tally, int(reg[BUSY]), int(reg[DISK_BUSY]),
                        int(reg[DISK_DONE]), slices)  # fmt: skip


def key_layers(log: DecisionLog) -> np.ndarray:
    """int64 [pools, keys]: the layer whose expert each key is."""
    layout = log.layout
    span = len(layout.pool_of) // layout.pools
    first = np.arange(layout.pools)[:, None] * span
    return np.asarray(first + np.arange(layout.keys)[None] // (layout.keys // span), np.int64)


def check(
    log: DecisionLog,
    facts: PassFacts,
    machine: Machine,
    cost: ModelCost,
    miss: str,
    overlap: str,
    disk: DiskLoads | None,
) -> None:
    """Everything that a user can get wrong, in one line each."""
    for name, value, known in (("miss", miss, MISSES), ("overlap", overlap, OVERLAPS)):
        if value not in known:
            raise InputError(f"{name}: got {value!r}; expected one of {', '.join(known)}")
    if miss in ("cpu", "split") and not machine.cpu_bytes_per_s:
        raise InputError(
            f"miss={miss}: got machine {machine.name} whose CPU computes no experts beside its slots; use miss=fetch"
        )
    if miss == "split" and machine.in_place:
        raise InputError(
            f"miss=split: got machine {machine.name}, whose CPU is what computes everything: there are no two sides; use "
            "miss=fetch or miss=cpu"
        )
    if miss == "zero_copy" and not machine.zero_copy_bytes_per_s:
        raise InputError(
            f"miss=zero_copy: got machine {machine.name} whose kernels cannot read host memory; use miss=fetch"
        )
    if disk is not None and not machine.disk_bytes_per_s:
        raise InputError(f"ram: got machine {machine.name} without a disk; expected disk_gb_per_s in its profile")
    if len(log.layout.pool_of) != cost.layers:
        raise InputError(
            f"cost {cost.name}: got {cost.layers} MoE layers; expected {len(log.layout.pool_of)} as in the trace"
        )
    if len(log.events.pool) != facts.passes * cost.layers:
        raise InputError(
            f"timing: got {len(log.events.pool)} events in {facts.passes} passes of {cost.layers} layers; "
            "expected facts of the replayed trace"
        )


def check_length(
    log: DecisionLog, facts: PassFacts, machine: Machine, packed: np.ndarray, size: np.ndarray, miss: str,
    disk: DiskLoads | None,
) -> None:  # fmt: skip
    """Whether the clock can count so far: everything one after another, nothing beside anything, is less than it holds."""
    tokens, context, near, pairs, pairs_near, yielded = np.ones(facts.passes) @ facts.work
    dense, flop, kv, attention, expert_flop, windowed, top_k, head, head_flop = packed.T
    nbytes = dense * facts.passes + kv * np.where(windowed > 0, near, context) + head * facts.passes
    work = flop * tokens + attention * np.where(windowed > 0, pairs_near, pairs) + head_flop * yielded
    accesses = len(log.codes)
    copies = 2 * accesses + len(log.proactive) + len(log.fills)
    each, rows = float(size.max()), tokens * len(packed) * top_k.max() + accesses
    seconds = nbytes.sum() / machine.bytes_per_s + work.sum() / machine.flop_per_s
    seconds += len(log.events.pool) * (machine.launch_s + machine.sync_s)
    seconds += accesses * each / machine.bytes_per_s + rows * expert_flop.max() / machine.flop_per_s
    seconds += copies * (machine.link_latency_s + each / machine.link_rate + machine.submit_s + machine.start_s)
    if miss in ("cpu", "split"):
        seconds += accesses * (machine.cpu_call_s + each / machine.cpu_rate)
        seconds += rows * expert_flop.max() / machine.cpu_flop_per_s
    if miss == "zero_copy":
        seconds += accesses * each / machine.zero_copy_rate
    if disk is not None:
        seconds += copies * (machine.disk_latency_s + each / machine.disk_bytes_per_s)
    if not seconds < LONGEST_S:
        raise InputError(
            f"timing: got up to {seconds:.2g} s on machine {machine.name}; expected less than {LONGEST_S:.0e} s; check its "
            "numbers, or time a shorter trace"
        )
