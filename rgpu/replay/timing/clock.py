"""The virtual clock: a decision log on a machine, event by event. The equations are in docs/timing.md.

An event takes: its dense part (attention, router, shared experts, launch), router read-back, experts. Resident members
compute first; a miss is served by its handler; the event ends when all members are computed. All times int64 picoseconds.
"""

import numpy as np

from rgpu.policies.loop import BYPASS, NEVER
from rgpu.replay.timing.compiled import compiled, index, inner
from rgpu.replay.timing.link import (
    BACKLOG,
    BEGUN,
    BUSY,
    BYTES,
    DEMAND_BYTES,
    DENSE,
    DISK_BEGUN,
    DISK_BUSY,
    DISK_FREE,
    FIELDS,
    FILL,
    FREE,
    GPU_TRACK,
    HEAD,
    KEY,
    LINK_COPIES,
    LIVE,
    NONE,
    PROACTIVE,
    READY,
    RECORD,
    REGISTERS,
    STATE,
    SYNC,
    UNUSED,
    USEFUL,
    WANTED,
    WAVE,
    ZERO,
    enqueue,
    note,
    restart,
    run_on,
    settle,
    vacate,
)
from rgpu.replay.timing.machine import BYTE, CHUNK, DISK_BYTE, DISK_READ, FLOP, LAUNCH, LINK_BYTE, START, SUBMIT
from rgpu.replay.timing.machine import COPY as COPY_PS
from rgpu.replay.timing.machine import SYNC as SYNC_PS
from rgpu.replay.timing.serve import (
    BASE,
    BUSY_UNTIL,
    CHUNK_PS,
    CLOSED,
    COMPUTED,
    CPU,
    CPU_AT,
    EACH,
    FETCH,
    FIELDS_EV,
    FLOPS,
    GPU,
    LANDED,
    LATENCY_PS,
    NBYTES,
    ONE_COPY,
    ONE_READ,
    OVERLAP,
    PENDING_PS,
    POOL,
    SPLIT,
    START_PS,
    SUBMIT_PS,
    WAVE_FIRST,
    WAVE_NOW,
    E,
    T,
    close_wave,
    compute,
    fetch,
    keep,
    last_read,
    on_cpu,
    ps,
    serve_late,
    split,
    zero_copy,
)

WALL, COMPUTE, EXPOSED, CPU_WAIT, SYNCED, PARTS = range(6)  # columns of the result, picoseconds a pass


@inner
def dense_ps(cost, work, mach):  # type: ignore[no-untyped-def]
    """A layer beside its routed experts: the slower of its bytes and its operations, and the launch. The output head counts
    where rows of the pass yield a token, and its operations for these only."""
    kv = work[2] if cost[5] else work[1]
    pairs = work[4] if cost[5] else work[3]
    nbytes = cost[0] + cost[2] * kv
    flop = cost[1] * work[0] + cost[3] * pairs + cost[8] * work[5]
    if work[5] > 0:
        nbytes += cost[7]
    return ps(max(nbytes * mach[BYTE], flop * mach[FLOP])) + np.int64(mach[LAUNCH])


@inner
def open_event(ev, t, nbytes, cost, tokens, members, mach):  # type: ignore[no-untyped-def]
    """Set `ev` for an event of `members` experts whose routing is known at `t`."""
    flop = cost[4] * max(1.0, tokens * cost[6] / max(1, members))
    ev[T], ev[NBYTES], ev[FLOPS] = t, np.int64(nbytes), np.int64(flop)
    ev[EACH] = ps(max(nbytes * mach[BYTE], flop * mach[FLOP]))
    ev[ONE_COPY] = ev[LATENCY_PS] + ps(nbytes * mach[LINK_BYTE])
    ev[ONE_READ] = ps(nbytes * mach[DISK_BYTE] + mach[DISK_READ]) if mach[DISK_BYTE] < np.inf else ZERO
    ev[SUBMIT_PS], ev[START_PS] = np.int64(mach[SUBMIT]), np.int64(mach[START])
    ev[GPU], ev[CPU_AT], ev[LANDED], ev[CLOSED], ev[PENDING_PS], ev[COMPUTED] = t, t, t, t, 0, 0
    ev[WAVE_NOW] += 1
    ev[WAVE_FIRST] = ev[WAVE_NOW]


@inner
def order_after(ev, parts, p, copies):  # type: ignore[no-untyped-def]
    """What submitting background copies at the end of an event takes of the device's own time; counted as compute."""
    spent = copies * ev[SUBMIT_PS] + ev[START_PS]
    parts[p, WALL] += spent
    parts[p, COMPUTE] += spent
    return spent


@compiled
def run_clock(  # type: ignore[no-untyped-def]
    pool, layer, offs, keys, codes, size, key_layer, disk_A, proactive, disk_P, fills, disk_F, stretches, staging, slots,
    work, cost, mach, layers, handler, overlap, first, last, parts, tally, rec,
):  # fmt: skip
    """Fills `parts` int64 [P, PARTS] and `tally`; -> registers. Arrays are those of `DecisionLog` in event order: event e is
    layer e % layers of pass e // layers. `size` float64 [L]: bytes of an expert; `key_layer` [pools, keys]: whose a key
    is; `disk_*` uint8 (or empty: none): the load comes from the disk. `rec` int64 [R, NOTED] takes the slices
    of passes first..last."""
    pools, width = key_layer.shape
    q = np.zeros((pools * slots + 1, FIELDS), np.int64)  # the last one is of members that nothing in the log has loaded
    where = np.full((pools, width), pools * slots, np.int64)
    reg = np.zeros(REGISTERS, np.int64)
    reg[BEGUN], reg[DISK_BEGUN] = -1, -1
    places = 16
    while places < 2 * pools * slots + 16:
        places *= 2
    ring, disk = np.zeros((places, 2), np.int64), np.zeros((places, 6), np.int64)
    spare = np.zeros(max(1, staging), np.int64)
    ev = np.zeros(FIELDS_EV, np.int64)
    ev[CHUNK_PS], ev[LATENCY_PS], ev[OVERLAP] = np.int64(mach[CHUNK]), np.int64(mach[COPY_PS]), overlap
    tracked = proactive.shape[0] + fills.shape[0] > 0 or handler in (CPU, SPLIT)
    disks = disk_A.shape[0] > 0
    turns = 2 if disks else 1  # what is in host memory is served before what the disk must be read for
    sync = np.int64(mach[SYNC_PS])
    t = np.int64(0)
    load, filled, stretch = 0, 0, 0
    for e in range(pool.shape[0]):
        p, at = e // layers, layer[e]
        reg[RECORD] = first <= p < last
        if stretch < stretches.shape[0] - 1 and e == stretches[stretch]:
            stretch += 1
            restart(q, reg, ring, disk, where, t, ev[CHUNK_PS], tally, rec)
            while filled < fills.shape[0] and fills[filled, 0] <= e:
                row = fills[filled]
                read = disks and disk_F[filled] == 1
                _submit(
                    q, reg, ring, disk, where, slots, row, size[key_layer[row[1], row[2]]], FILL, t, read, mach, tally
                )
                filled += 1
        spent = dense_ps(cost[at], work[p], mach)
        note(rec, reg, GPU_TRACK, DENSE, t, t + spent, e, NONE, NONE, ZERO)
        note(rec, reg, GPU_TRACK, SYNC, t + spent, t + spent + sync, e, NONE, NONE, ZERO)
        began = t
        t += spent + sync
        a0, a1 = offs[e], offs[e + 1]
        if reg[LIVE] > 0:
            settle(q, reg, ring, disk, t, rec)
        nbytes = size[at]
        ev[E], ev[POOL], ev[BASE] = e, pool[e], pool[e] * slots
        open_event(ev, t, nbytes, cost[at], work[p, 0], a1 - a0, mach)
        misses, kept, late = ZERO, ZERO, 0
        for a in range(a0, a1):
            if codes[a] >= 0:
                misses += 1
                kept += 1
            elif codes[a] == BYPASS:
                misses += 1
            else:
                s = index(where[index(pool[e]), index(keys[a])])
                q[s, WAVE] = ev[WAVE_NOW]
                if tracked:
                    if q[s, STATE]:
                        late += 1
                        q[s, WANTED] = ev[WAVE_FIRST]
                        continue
                    if q[s, UNUSED]:
                        tally[USEFUL] += q[s, BYTES]
                        q[s, UNUSED] = 0
                compute(ev, reg, t, s, np.int64(keys[a]), rec)
        if handler == CPU and misses + late:
            ev[BUSY_UNTIL] = (reg[BEGUN] if reg[BEGUN] >= 0 else max(reg[FREE], t)) + reg[BACKLOG]
            if disks and reg[LIVE] > 0:
                ev[BUSY_UNTIL] = NEVER  # copies wait for the disk: when they run is not known yet
        if late:
            if reg[BEGUN] >= 0:  # the copy under way goes on where it is wanted itself, rather than give way to another
                s = index(ring[index(reg[HEAD] & (ring.shape[0] - 1)), 0])
                if q[s, WANTED] == ev[WAVE_FIRST]:
                    serve_late(ev, q, reg, ring, disk, mach, handler, s, q[s, KEY], tally, rec)
            for turn in range(turns):
                for a in range(a0, a1):
                    if codes[a] >= 0 or codes[a] == BYPASS:
                        continue
                    key = index(np.int64(keys[a]))
                    s = index(where[index(pool[e]), key])
                    if q[s, WANTED] == ev[WAVE_FIRST] and (turn + 1 == turns or q[s, READY] != NEVER):
                        serve_late(ev, q, reg, ring, disk, mach, handler, s, key, tally, rec)
        moved = np.float64(nbytes * kept)
        if misses:
            if handler == FETCH:
                fetch(
                    ev, q, reg, ring, disk, where, keys, codes, a0, a1, kept, misses, spare, disk_A, tracked, tally, rec
                )
                tally[DEMAND_BYTES] += ev[NBYTES] * misses
                tally[LINK_COPIES] += misses
            elif handler == CPU:
                moved = np.float64(0.0)
                for turn in range(turns):
                    for a in range(a0, a1):
                        if (codes[a] >= 0 or codes[a] == BYPASS) and (not disks or disk_A[a] == turn):
                            there = t
                            if turn:
                                there = last_read(ev, q, reg, disk, keys, codes, a, a + 1, disk_A, rec)
                            on_cpu(ev, reg, mach, there, np.int64(keys[a]), tally, rec)
            elif handler == SPLIT:
                moved = split(ev, q, reg, ring, disk, keys, codes, a0, a1, misses, disk_A, mach, tally, rec)
            else:
                zero_copy(ev, q, reg, ring, disk, keys, codes, a0, a1, misses, disk_A, mach, tally, rec)
        close_wave(ev, reg, rec)
        end = max(ev[GPU], ev[CPU_AT])
        parts[p, WALL] += end - began
        parts[p, COMPUTE] += spent + ev[COMPUTED]
        parts[p, SYNCED] += sync
        parts[p, EXPOSED] += ev[GPU] - t - ev[COMPUTED]
        parts[p, CPU_WAIT] += end - ev[GPU]
        t = end
        if kept and handler == CPU:
            t += order_after(ev, parts, p, kept)
        if kept and handler != FETCH:
            if reg[LIVE] > 0:
                settle(q, reg, ring, disk, t, rec)
            keep(ev, q, reg, ring, disk, where, keys, codes, a0, a1, moved, mach, t, tally, rec)
        if load < proactive.shape[0] and proactive[load, 0] == e:
            ahead = ZERO
            while load + ahead < proactive.shape[0] and proactive[load + ahead, 0] == e:
                ahead += 1
            t += order_after(ev, parts, p, ahead)
            if reg[LIVE] > 0:
                settle(q, reg, ring, disk, t, rec)
            while load < proactive.shape[0] and proactive[load, 0] == e:
                row = proactive[load]
                vacate(q, reg, ring, row[1] * slots + row[3], t, ev[CHUNK_PS], tally, rec)
                read = disks and disk_P[load] == 1
                of = size[key_layer[row[1], row[2]]]
                _submit(q, reg, ring, disk, where, slots, row, of, PROACTIVE, t, read, mach, tally)
                load += 1
    settle(q, reg, ring, disk, t, rec)
    if reg[BEGUN] >= 0:
        run_on(q, reg, ring[index(reg[HEAD] & (ring.shape[0] - 1)), 0], t - reg[BEGUN], rec)
    restart(q, reg, ring, disk, where, t, ev[CHUNK_PS], tally, rec)
    reg[BUSY] -= max(ZERO, reg[FREE] - t)  # what goes on beyond the end is not of this run
    reg[DISK_BUSY] -= max(ZERO, reg[DISK_FREE] - t)
    return reg


@inner
def _submit(q, reg, ring, disk, where, slots, row, nbytes, origin, now, from_disk, mach, tally):  # type: ignore[no-untyped-def]
    """Queue the proactive or initial load of a log's row."""
    slot = row[1] * slots + row[3]
    where[row[1], row[2]] = slot
    read = ps(nbytes * mach[DISK_BYTE] + mach[DISK_READ]) if from_disk else ZERO
    enqueue(q, reg, ring, disk, slot, row[2], origin, np.int64(nbytes), np.int64(mach[COPY_PS]), ps(nbytes * mach[LINK_BYTE]),
            now, read, tally)  # fmt: skip
