"""How the members of one event are computed and their misses served: the part of the clock inside an event.

`ev` holds the event's own moments and sizes (int64 picoseconds and bytes), so that the functions share them.
"""

import numpy as np

from rgpu.policies.loop import BYPASS, NEVER
from rgpu.replay.timing.compiled import index, inner
from rgpu.replay.timing.link import (
    BACKLOG,
    BYTES,
    CPU_BYTES,
    CPU_EXPERT,
    CPU_EXPERTS,
    CPU_TRACK,
    DEMAND_BYTES,
    EXPERTS,
    FREE,
    GPU_TRACK,
    KEY,
    LATE,
    LATE_HITS,
    LINK_COPIES,
    LIVE,
    NONE,
    READY,
    UNUSED,
    UPLOAD,
    WANTED,
    WAVE,
    ZERO,
    begun,
    demand,
    enqueue,
    interrupt,
    note,
    promote,
    read_now,
    vacate,
)
from rgpu.replay.timing.machine import CPU_BYTE, CPU_CALL, CPU_FLOP, CPU_SLOW_BYTE, IN_PLACE, LINK_BYTE, READ_BYTE

FETCH, CPU, SPLIT, ZERO_COPY = range(4)  # miss handlers
BY_WAVE, BY_EXPERT, STREAMED = range(3)  # when computing may begin beside copies
# `ev`: the event's number, pool, first slot of the pool; begin of its experts; when the device and the CPU are free; compute
# that waits for its wave and when the wave's copies have landed; end of the last closed wave; compute in all; number of the
# current and the first wave; what computing one, copying one and reading one from disk take; bytes and flop of one; what
# submitting a copy and setting copying going take of the device's time.
(
    E, POOL, BASE, T, GPU, CPU_AT, PENDING_PS, LANDED, CLOSED, COMPUTED, WAVE_NOW, WAVE_FIRST, EACH, ONE_COPY, LATENCY_PS,
    ONE_READ, NBYTES, FLOPS, CHUNK_PS, OVERLAP, BUSY_UNTIL, SUBMIT_PS, START_PS, FIELDS_EV,
) = range(24)  # fmt: skip


@inner
def ps(x):  # type: ignore[no-untyped-def]
    """Whole picoseconds, rounded up: the clock is never faster than the machine."""
    return np.int64(np.ceil(x))


@inner
def compute(ev, reg, ready, slot, key, rec):  # type: ignore[no-untyped-def]
    """The device computes one member that is there from `ready` on; with waves, once its wave is gathered."""
    ev[COMPUTED] += ev[EACH]
    if ev[OVERLAP] == BY_WAVE:
        ev[PENDING_PS] += ev[EACH]
        ev[LANDED] = max(ev[LANDED], ready)
        return
    if ev[OVERLAP] == BY_EXPERT:
        ev[GPU] = max(ev[GPU], ready) + ev[EACH]
    else:
        ev[GPU] = max(ev[GPU] + ev[EACH], ready)
    note(rec, reg, GPU_TRACK, EXPERTS, ev[GPU] - ev[EACH], ev[GPU], ev[E], slot, key, ev[NBYTES])


@inner
def close_wave(ev, reg, rec):  # type: ignore[no-untyped-def]
    """The wave gathered so far is computed."""
    begin = max(ev[GPU], ev[LANDED])
    ev[GPU] = begin + ev[PENDING_PS]
    if ev[PENDING_PS]:
        note(rec, reg, GPU_TRACK, EXPERTS, begin, ev[GPU], ev[E], NONE, NONE, ZERO)
    ev[PENDING_PS], ev[LANDED] = 0, ev[T]
    ev[CLOSED] = ev[GPU]
    ev[WAVE_NOW] += 1


@inner
def serve_late(ev, q, reg, ring, disk, mach, handler, slot, key, tally, rec):  # type: ignore[no-untyped-def]
    """A member whose copy was submitted but has not landed: its rest goes first. Where the CPU serves misses and nothing
    of it has moved, the CPU computes it from host memory as it would a miss, and the copy stays where it is."""
    tally[LATE_HITS] += 1
    q[slot, WANTED] = 0
    if q[slot, UNUSED]:
        tally[LATE] += q[slot, BYTES]
        q[slot, UNUSED] = 0
    if handler == CPU and not begun(q, reg, ring, slot, ev[LATENCY_PS]):
        ready = ev[T]
        if q[slot, READY] == NEVER:
            ready = read_now(reg, disk, q, ev[T], ev[ONE_READ], rec, ev[E], slot, key, ev[NBYTES])
            q[slot, READY] = ready
        on_cpu(ev, reg, mach, ready, key, tally, rec)
        return
    at = promote(q, reg, ring, disk, ev[T], ev[CHUNK_PS], ev[ONE_READ], slot, rec, ev[E])
    compute(ev, reg, at, slot, key, rec)


@inner
def cpu_ps(ev, mach, nbytes, begin, busy):  # type: ignore[no-untyped-def]
    """What the CPU takes for bytes of experts from `begin` on, more slowly until `busy`, while copies share host memory."""
    spent = nbytes * mach[CPU_BYTE]
    if begin < busy and mach[CPU_SLOW_BYTE] > mach[CPU_BYTE]:
        shared = np.float64(busy - begin)
        slow = nbytes * mach[CPU_SLOW_BYTE]
        spent = slow if slow <= shared else shared + (nbytes - shared / mach[CPU_SLOW_BYTE]) * mach[CPU_BYTE]
    return ps(max(spent, nbytes / max(1.0, np.float64(ev[NBYTES])) * ev[FLOPS] * mach[CPU_FLOP]))


@inner
def on_cpu(ev, reg, mach, ready, key, tally, rec):  # type: ignore[no-untyped-def]
    """The CPU computes one expert where it lies, more slowly while copies share host memory."""
    alone = mach[IN_PLACE] == 0.0
    begin = max(ev[CPU_AT] if alone else ev[GPU], ready)
    spent = cpu_ps(ev, mach, np.float64(ev[NBYTES]), begin, ev[BUSY_UNTIL]) + np.int64(mach[CPU_CALL])
    if alone:
        ev[CPU_AT] = begin + spent
        note(rec, reg, CPU_TRACK, CPU_EXPERT, begin, ev[CPU_AT], ev[E], NONE, key, ev[NBYTES])
    else:
        ev[GPU] = begin + spent
        ev[COMPUTED] += spent
        note(rec, reg, GPU_TRACK, EXPERTS, begin, ev[GPU], ev[E], NONE, key, ev[NBYTES])
    tally[CPU_BYTES] += ev[NBYTES]
    tally[CPU_EXPERTS] += 1


@inner
def order(ev, copies, starts):  # type: ignore[no-untyped-def]
    """The device's own time for submitting copies and setting copying going."""
    spent = copies * ev[SUBMIT_PS] + starts * ev[START_PS]
    ev[GPU] += spent
    ev[COMPUTED] += spent


@inner
def wave_end(ev, q, codes, first, last):  # type: ignore[no-untyped-def]
    """Where the wave of kept misses that begins at `first` ends: before a slot that the wave uses already."""
    for b in range(first, last):
        if codes[b] >= 0:
            if q[index(ev[BASE] + codes[b]), WAVE] == ev[WAVE_NOW]:
                return b
            for c in range(first, b):
                if codes[c] == codes[b]:
                    return b
    return last


@inner
def fetch(ev, q, reg, ring, disk, where, keys, codes, a0, a1, kept, misses, staging, from_disk, tracked, tally, rec):  # type: ignore[no-untyped-def]
    """Misses are copied in rank order: kept ones wave by wave into their slots, then the others through staging slots; in
    each wave, and of the others, those in host memory before those that the disk must be read for.

    A copy into a slot that this event uses waits until the slot's wave is computed.
    """
    interrupt(q, reg, ring, ev[T], ev[CHUNK_PS], rec)
    disks = from_disk.shape[0] > 0
    turns = 2 if disks else 1
    first = a0
    while kept and first < a1:
        last = wave_end(ev, q, codes, first, a1) if disks else a1
        fresh = True  # nothing of this wave is submitted yet
        for turn in range(turns):
            for a in range(first, last):
                if codes[a] < 0 or (disks and from_disk[a] != turn):
                    continue
                slot, key = index(ev[BASE] + codes[a]), index(np.int64(keys[a]))
                if q[slot, WAVE] == ev[WAVE_NOW]:
                    close_wave(ev, reg, rec)
                    fresh = True
                order(ev, 1, 1 if fresh else 0)
                fresh = False
                earliest = (ev[CLOSED] if q[slot, WAVE] >= ev[WAVE_FIRST] else ev[T]) + ev[SUBMIT_PS]
                if tracked:
                    vacate(q, reg, ring, slot, ev[T], ev[CHUNK_PS], tally, rec)
                if turn:
                    read = read_now(reg, disk, q, ev[T], ev[ONE_READ], rec, ev[E], slot, key, ev[NBYTES])
                    earliest = max(earliest, read)
                at = demand(q, reg, ring, ev[T], earliest, ev[ONE_COPY], rec, ev[E], slot, key, ev[NBYTES])
                q[slot, WAVE] = ev[WAVE_NOW]
                q[slot, KEY] = key
                where[index(ev[POOL]), key] = slot
                compute(ev, reg, at, slot, key, rec)
        if last < a1:
            close_wave(ev, reg, rec)
        first = last
    if kept == misses:
        return
    n = 0
    for turn in range(turns):
        for a in range(a0, a1):
            if codes[a] != BYPASS or (disks and from_disk[a] != turn):
                continue
            key = np.int64(keys[a])
            if n == 0:
                close_wave(ev, reg, rec)
                for i in range(staging.shape[0]):
                    staging[i] = ev[T]
            place = n % staging.shape[0]
            if ev[OVERLAP] == BY_WAVE and place == 0 and n:
                close_wave(ev, reg, rec)
                for i in range(staging.shape[0]):
                    staging[i] = ev[GPU]
            earliest = staging[place] + ev[SUBMIT_PS]
            order(ev, 1, 1 if place == 0 else 0)
            if turn:
                earliest = max(earliest, read_now(reg, disk, q, ev[T], ev[ONE_READ], rec, ev[E], NONE, key, ev[NBYTES]))
            at = demand(q, reg, ring, ev[T], earliest, ev[ONE_COPY], rec, ev[E], NONE, key, ev[NBYTES])
            compute(ev, reg, at, NONE, key, rec)
            if ev[OVERLAP] != BY_WAVE:
                staging[place] = ev[GPU]
            n += 1


@inner
def last_read(ev, q, reg, disk, keys, codes, a0, a1, from_disk, rec):  # type: ignore[no-untyped-def]
    """Read every miss that is not in host memory; -> when the last one is there."""
    at = ev[T]
    for a in range(a0, a1):
        if (codes[a] >= 0 or codes[a] == BYPASS) and from_disk.shape[0] and from_disk[a]:
            at = read_now(reg, disk, q, ev[T], ev[ONE_READ], rec, ev[E], NONE, np.int64(keys[a]), ev[NBYTES])
    return at


@inner
def zero_copy(ev, q, reg, ring, disk, keys, codes, a0, a1, misses, from_disk, mach, tally, rec):  # type: ignore[no-untyped-def]
    """The kernel reads misses over the link while it computes; kept ones land in their slots on the way."""
    read = last_read(ev, q, reg, disk, keys, codes, a0, a1, from_disk, rec)
    interrupt(q, reg, ring, ev[T], ev[CHUNK_PS], rec)
    close_wave(ev, reg, rec)
    one = np.float64(ev[NBYTES]) * mach[READ_BYTE]
    at = demand(
        q, reg, ring, ev[T], ev[T], ev[LATENCY_PS] + ps(misses * one), rec, ev[E], NONE, NONE, ev[NBYTES] * misses
    )
    if read > ev[T]:
        at = max(at, read + ev[LATENCY_PS] + ps(one))
    spent = misses * ev[EACH]
    ev[COMPUTED] += spent
    ev[GPU] = max(ev[GPU] + spent, at)
    note(rec, reg, GPU_TRACK, EXPERTS, ev[GPU] - spent, ev[GPU], ev[E], NONE, NONE, ev[NBYTES] * misses)
    tally[DEMAND_BYTES] += ev[NBYTES] * misses
    tally[LINK_COPIES] += 1


@inner
def over_link(ev, reg, mach, misses, moved, read):  # type: ignore[no-untyped-def]
    """Ends of (link, device) when `moved` of the missed bytes go over the link: a latency for each expert of which anything
    does. `read`: when the last miss has left the disk, and is divided like the others."""
    at = ev[T]
    if moved > 0:
        size = max(1.0, np.float64(ev[NBYTES]))
        at = max(reg[FREE], ev[T]) + ev[LATENCY_PS] * np.int64(np.ceil(moved / size)) + ps(moved * mach[LINK_BYTE])
        if read > ev[T]:
            at = max(at, read + ps(moved / misses * mach[LINK_BYTE]))
    return at, max(ev[GPU] + ps(ev[EACH] * (moved / max(1.0, np.float64(ev[NBYTES])))), at)


@inner
def beside_link(ev, reg, mach, misses, moved, at, read, never):  # type: ignore[no-untyped-def]
    """When the CPU has computed what of the misses does not go over the link, which is busy with that until `at`: a call for
    each expert of which it computes anything. `never`: background copies wait for the disk, so that nobody knows when the
    link is idle."""
    size = max(1.0, np.float64(ev[NBYTES]))
    left = size * misses - moved
    if left <= 0:
        return ev[T]
    busy = NEVER if never else max(reg[FREE], ev[T], at) + reg[BACKLOG]
    call = np.int64(mach[CPU_CALL])
    done = ev[T] + cpu_ps(ev, mach, left, ev[T], busy) + call * (misses - np.int64(moved / size))
    if read > ev[T]:
        done = max(done, read + cpu_ps(ev, mach, left / misses, read, busy) + call)
    return done


@inner
def best_division(ev, reg, mach, misses, read, never):  # type: ignore[no-untyped-def]
    """Bytes over the link with which the event ends first: whole experts, or one divided so that both sides end together."""
    size = max(1.0, np.float64(ev[NBYTES]))
    total = size * misses
    cpu = max(mach[CPU_SLOW_BYTE], ev[FLOPS] * mach[CPU_FLOP] / size)
    link, device = mach[LINK_BYTE], np.float64(ev[EACH]) / size
    wait, computed = np.float64(max(reg[FREE], ev[T]) - ev[T]), np.float64(ev[GPU] - ev[T])
    least = max(mach[CPU_BYTE], ev[FLOPS] * mach[CPU_FLOP] / size)  # what the CPU takes for a byte at the very least
    best, first = total, NEVER
    for candidate in range(2 * misses, -1, -1):
        n = candidate // 2
        x = n * size
        if (total - min(total, x + size)) * least > first - ev[T]:
            break  # the CPU alone takes longer, and still longer for what follows
        if candidate % 2:  # n experts and a part of one more
            if not cpu < np.inf or link + cpu == 0:
                continue
            there = total * cpu + (misses - n) * mach[CPU_CALL]
            x = (there - wait - (n + 1) * ev[LATENCY_PS]) / (link + cpu)
            if x <= n * size:
                continue
            if device + cpu > 0:  # the device may compute longer than the link copies
                x = min(x, (there - computed) / (device + cpu))
            x = np.floor(x)
            if not n * size < x < (n + 1) * size:
                continue
        at, end = over_link(ev, reg, mach, misses, x, read)
        if end < first:
            end = max(end, beside_link(ev, reg, mach, misses, x, at, read, never))
            if end < first:
                best, first = x, end
    return best


@inner
def split(ev, q, reg, ring, disk, keys, codes, a0, a1, misses, from_disk, mach, tally, rec):  # type: ignore[no-untyped-def]
    """Misses are divided between the link and the CPU so that the event ends first; -> bytes that went over the link.

    One expert can be divided (by rows of its width). What arrives is computed as it arrives.
    """
    read = last_read(ev, q, reg, disk, keys, codes, a0, a1, from_disk, rec)
    interrupt(q, reg, ring, ev[T], ev[CHUNK_PS], rec)
    close_wave(ev, reg, rec)
    never = from_disk.shape[0] > 0 and reg[LIVE] > 0
    size, total = max(1.0, np.float64(ev[NBYTES])), np.float64(ev[NBYTES]) * misses
    moved = best_division(ev, reg, mach, misses, read, never)
    at, end = over_link(ev, reg, mach, misses, moved, read)
    done = beside_link(ev, reg, mach, misses, moved, at, read, never)
    if moved > 0:
        copies = np.int64(np.ceil(moved / size))
        spent = ev[LATENCY_PS] * copies + ps(moved * mach[LINK_BYTE])
        demand(q, reg, ring, ev[T], ev[T], spent, rec, ev[E], NONE, NONE, np.int64(moved))
        reg[FREE] = max(reg[FREE], at)
        tally[LINK_COPIES] += copies
    if moved < total:
        tally[CPU_EXPERTS] += misses - np.int64(moved / size)
    note(rec, reg, CPU_TRACK, CPU_EXPERT, ev[T], done, ev[E], NONE, NONE, np.int64(total - moved))
    ev[CPU_AT] = done
    spent = ps(ev[EACH] * (moved / size))  # as in `over_link`, to the last picosecond
    ev[COMPUTED] += spent
    ev[GPU] = end
    note(rec, reg, GPU_TRACK, EXPERTS, ev[GPU] - spent, ev[GPU], ev[E], NONE, NONE, np.int64(moved))
    tally[DEMAND_BYTES] += np.int64(moved)
    tally[CPU_BYTES] += np.int64(total - moved)
    return moved


@inner
def keep(ev, q, reg, ring, disk, where, keys, codes, a0, a1, moved, mach, now, tally, rec):  # type: ignore[no-untyped-def]
    """Slots of kept misses after an event that did not fetch them: the first `moved` bytes are there, the rest of them is
    uploaded in the background."""
    left = moved
    for a in range(a0, a1):
        if codes[a] < 0:
            continue
        slot, key = index(ev[BASE] + codes[a]), index(np.int64(keys[a]))
        vacate(q, reg, ring, slot, now, ev[CHUNK_PS], tally, rec)
        q[slot, KEY], where[index(ev[POOL]), key] = key, slot
        rest = np.float64(ev[NBYTES]) - min(left, np.float64(ev[NBYTES]))
        left = max(0.0, left - np.float64(ev[NBYTES]))
        if rest >= 1:
            enqueue(q, reg, ring, disk, slot, key, UPLOAD, np.int64(rest), ev[LATENCY_PS], ps(rest * mach[LINK_BYTE]), now,
                    ZERO, tally)  # fmt: skip
