"""The clock for logs without background copies: events of one kind take the same time, so each kind is clocked once.

A kind is (layer, tokens, hits, kept misses, staged misses). Nothing carries over from one event to the next when every copy
is a demand copy and no member's slot is reused within its event: `classify` refuses other logs, which take the whole clock.
Legend: V events, C kinds, P passes.
"""

from dataclasses import dataclass

import numpy as np

from rgpu.policies.loop import BYPASS, HIT
from rgpu.replay.log import DecisionLog
from rgpu.replay.timing.clock import (
    COMPUTE,
    CPU_WAIT,
    EXPOSED,
    PARTS,
    SYNCED,
    WALL,
    dense_ps,
    open_event,
)
from rgpu.replay.timing.compiled import compiled
from rgpu.replay.timing.facts import PassFacts
from rgpu.replay.timing.link import (
    BEGUN,
    BUSY,
    DEMAND_BYTES,
    DISK_BEGUN,
    FIELDS,
    FREE,
    LINK_COPIES,
    NONE,
    NOTED,
    REGISTERS,
    ZERO,
)
from rgpu.replay.timing.machine import CHUNK, COPY, SYNC
from rgpu.replay.timing.serve import (
    CHUNK_PS,
    COMPUTED,
    CPU_AT,
    FETCH,
    FIELDS_EV,
    GPU,
    LATENCY_PS,
    OVERLAP,
    SPLIT,
    ZERO_COPY,
    close_wave,
    compute,
    fetch,
    on_cpu,
    split,
    zero_copy,
)

KIND_BITS, LAYER_BITS = (
    10,
    10,
)  # of hits, kept and staged each, and of the layer, in a packed kind; tokens take the rest
TABLE = 1 << 17  # places of the hash table of kinds; more than half of it full: the log is refused


@dataclass(frozen=True, slots=True)
class EventClasses:
    """`of_event` int32 [V]; `kinds` int64 [C, 5] (layer, tokens, hits, kept, staged); `counts` int64 [C]."""

    of_event: np.ndarray
    kinds: np.ndarray
    counts: np.ndarray

    @property
    def keeps(self) -> bool:
        """Whether any miss was kept."""
        return bool(self.kinds[:, 3].any())


def classify(log: DecisionLog, facts: PassFacts) -> EventClasses | None:
    """Kinds of a demand-only log's events; None where the log needs the whole clock."""
    if len(log.proactive) or len(log.fills) or log.layout.byte_cap.any():
        return None
    layers = len(log.layout.pool_of)
    tokens_P = facts.work[:, 0].astype(np.int64)
    if tokens_P.max(initial=0) >= 1 << 20 or layers >= 1 << LAYER_BITS:
        return None
    of_event = np.empty(len(log.events.pool), np.int32)
    packed, counts = np.full(TABLE, -1), np.zeros(TABLE, np.int64)
    found = _classify(
        log.events.offs, log.events.keys, log.codes, log.victims, tokens_P, layers, of_event, packed, counts
    )
    if found < 0:
        return None
    mask = (1 << KIND_BITS) - 1
    packed, counts = packed[:found], counts[:found]
    fields = [packed >> (3 * KIND_BITS) & ((1 << LAYER_BITS) - 1), packed >> (3 * KIND_BITS + LAYER_BITS)]
    fields += [packed >> (2 * KIND_BITS) & mask, packed >> KIND_BITS & mask, packed & mask]
    return EventClasses(of_event, np.column_stack(fields), counts)


@compiled
def _classify(offs, keys, codes, victims, tokens_P, layers, of_event, packed, counts):  # type: ignore[no-untyped-def]
    """Fills the kind of each event, the packed kinds and their counts; -> number of kinds, or -1: needs the whole clock."""
    places = np.full(packed.shape[0], -1)
    found = 0
    for e in range(of_event.shape[0]):
        hits, kept, staged = 0, 0, 0
        for a in range(offs[e], offs[e + 1]):
            if codes[a] >= 0:
                kept += 1
                if victims[a] >= 0:
                    for b in range(offs[e], offs[e + 1]):
                        if keys[b] == victims[a]:
                            return -1
            elif codes[a] == BYPASS:
                staged += 1
            else:
                hits += 1
        if max(hits, kept, staged) >= 1 << KIND_BITS:
            return -1
        kind = (
            ((((tokens_P[e // layers] << LAYER_BITS) | (e % layers)) << KIND_BITS | hits) << KIND_BITS | kept)
            << KIND_BITS
        ) | staged
        at = (kind * 0x9E3779B97F4A7C1) >> 20 & (packed.shape[0] - 1)
        while places[at] >= 0 and packed[places[at]] != kind:
            at = (at + 1) & (packed.shape[0] - 1)
        if places[at] < 0:
            if found > packed.shape[0] // 2:
                return -1
            places[at] = found
            packed[found] = kind
            found += 1
        of_event[e] = places[at]
        counts[places[at]] += 1
    return found


@compiled
def run_classes(kinds, counts, size, staging, cost, mach, handler, overlap, phase, tally):  # type: ignore[no-untyped-def]
    """Clock one event of each kind: `phase` int64 [C, PARTS] from routing on, `tally` over all events; -> link busy time."""
    widest = 1
    for c in range(kinds.shape[0]):
        widest = max(widest, kinds[c, 2] + kinds[c, 3] + kinds[c, 4])
    q = np.zeros((widest, FIELDS), np.int64)
    where = np.zeros((1, widest), np.int64)
    ring, disk, rec = np.zeros((1, 2), np.int64), np.zeros((1, 6), np.int64), np.zeros((1, NOTED), np.int64)
    reg, ev = np.zeros(REGISTERS, np.int64), np.zeros(FIELDS_EV, np.int64)
    spare, from_disk = np.zeros(max(1, staging), np.int64), np.zeros(0, np.uint8)
    keys, codes = np.arange(widest).astype(np.int32), np.zeros(widest, np.int32)
    one = np.zeros(tally.shape[0], np.int64)
    reg[BEGUN], reg[DISK_BEGUN] = -1, -1
    ev[CHUNK_PS], ev[LATENCY_PS], ev[OVERLAP] = np.int64(mach[CHUNK]), np.int64(mach[COPY]), overlap
    busy = ZERO
    for c in range(kinds.shape[0]):
        at, hits, kept, staged = kinds[c, 0], kinds[c, 2], kinds[c, 3], kinds[c, 4]
        members, misses = hits + kept + staged, kept + staged
        open_event(ev, ZERO, size[at], cost[at], np.float64(kinds[c, 1]), members, mach)
        reg[BUSY], reg[FREE] = 0, 0
        for i in range(one.shape[0]):
            one[i] = 0
        for i in range(hits):
            codes[i] = HIT
            compute(ev, reg, ZERO, NONE, NONE, rec)
        for i in range(hits, hits + kept):
            codes[i] = i
        for i in range(hits + kept, members):
            codes[i] = BYPASS
        if misses:
            if handler == FETCH:
                fetch(ev, q, reg, ring, disk, where, keys, codes, ZERO, members, kept, misses, spare, from_disk, False, one,
                      rec)  # fmt: skip
                one[DEMAND_BYTES] += np.int64(size[at]) * misses
                one[LINK_COPIES] += misses
            elif handler == SPLIT:
                split(ev, q, reg, ring, disk, keys, codes, ZERO, members, misses, from_disk, mach, one, rec)
            elif handler == ZERO_COPY:
                zero_copy(ev, q, reg, ring, disk, keys, codes, ZERO, members, misses, from_disk, mach, one, rec)
            else:
                for _ in range(misses):
                    on_cpu(ev, reg, mach, ZERO, NONE, one, rec)
        close_wave(ev, reg, rec)
        phase[c, WALL] = max(ev[GPU], ev[CPU_AT])
        phase[c, COMPUTE] = ev[COMPUTED]
        phase[c, EXPOSED] = ev[GPU] - ev[COMPUTED]
        phase[c, CPU_WAIT] = phase[c, WALL] - ev[GPU]
        busy += reg[BUSY] * counts[c]
        for i in range(one.shape[0]):
            tally[i] += one[i] * counts[c]
    return busy


@compiled
def add_classes(of_event, phase, work, cost, mach, layers, parts):  # type: ignore[no-untyped-def]
    """`parts` of every pass: each layer's dense part and read-back, and the phase of its event's kind."""
    sync = np.int64(mach[SYNC])
    for p in range(parts.shape[0]):
        wall, compute_, exposed, cpu = ZERO, ZERO, ZERO, ZERO
        for at in range(layers):
            c = of_event[p * layers + at]
            spent = dense_ps(cost[at], work[p], mach)
            wall += spent + sync + phase[c, WALL]
            compute_ += spent + phase[c, COMPUTE]
            exposed += phase[c, EXPOSED]
            cpu += phase[c, CPU_WAIT]
        parts[p, WALL], parts[p, COMPUTE], parts[p, EXPOSED], parts[p, CPU_WAIT] = wall, compute_, exposed, cpu
        parts[p, SYNCED] = sync * layers


def clock_classes(
    classes: EventClasses, facts: PassFacts, size: np.ndarray, cost: np.ndarray, mach: np.ndarray, staging: int, handler: int,
    overlap: int, parts: np.ndarray, tally: np.ndarray,
) -> int:  # fmt: skip
    """As `run_clock`, for a log that `classify` took; -> picoseconds the link was busy."""
    phase = np.zeros((len(classes.kinds), PARTS), np.int64)
    busy = run_classes(classes.kinds, classes.counts, size, staging, cost, mach, handler, overlap, phase, tally)
    add_classes(classes.of_event, phase, facts.work, cost, mach, len(cost), parts)
    return int(busy)
