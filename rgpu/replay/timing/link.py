"""The link and the disk as queues: background copies wait in order, demand copies go first and interrupt at chunk borders.

State is lazy: `settle` runs background work up to a moment. A slot has at most one copy that has not landed. All times are
int64 picoseconds. Legend: q the slots' table [slots, FIELDS], reg
registers, ring the order of background copies (a power of two of places).
"""

import numpy as np

from rgpu.policies.loop import NEVER
from rgpu.replay.timing.compiled import index, inner

# Columns of q. STATE is 0 (landed, or nothing ever came) or 1 (waiting or under way); READY is when a copy may start;
# WANTED is the first wave of the event that found its copy late and has not served it yet.
KEY, STATE, LEFT, FULL, LATENCY, READY, TICKET, ORIGIN, UNUSED, BYTES, WAVE, WANTED, FIELDS = range(13)
# Registers. BEGUN and DISK_BEGUN: when the copy under way went on, -1 none; LIVE copies that have not landed.
(
    FREE, BEGUN, HEAD, TAIL, BUSY, LIVE, BACKLOG, DISK_FREE, DISK_BEGUN, DISK_HEAD, DISK_TAIL, DISK_BUSY, DISK_DONE, RECORD,
    REGISTERS,
) = map(np.int64, range(15))  # fmt: skip
# Counted bytes (PROACTIVE ones end useful, late, wasted, cancelled or pending) and, last, counted copies.
(
    DEMAND_BYTES, FILL_BYTES, PROACTIVE_BYTES, UPLOAD_BYTES, CPU_BYTES, USEFUL, LATE, WASTED, CANCELLED, PENDING, LATE_HITS,
    CANCELLED_COPIES, DROPPED_UPLOADS, LINK_COPIES, CPU_EXPERTS, TALLIES,
) = range(16)  # fmt: skip
# Constants handed to kernels have a type of their own: plain ints would be compiled once for each value.
FILL, PROACTIVE, UPLOAD = map(np.int64, range(3))  # ORIGIN of background copies
GPU_TRACK, LINK_TRACK, CPU_TRACK, DISK_TRACK = map(np.int64, range(4))
DENSE, SYNC, EXPERTS, COPY, AHEAD, READ, CPU_EXPERT = map(np.int64, range(7))  # what a recorded slice shows
NONE, ZERO = np.int64(-1), np.int64(0)
NOTED = 8  # columns of a recording: track, what, begin, end, event, slot, key, bytes; row 0 holds the count


@inner
def note(rec, reg, track, what, begin, end, event, slot, key, nbytes):  # type: ignore[no-untyped-def]
    """Record a slice where there is a recording, its window is open and it has room."""
    if reg[RECORD] and end > begin and rec[0, 0] + 1 < rec.shape[0]:
        rec[0, 0] += 1
        at = index(rec[0, 0])
        rec[at, 0], rec[at, 1], rec[at, 2], rec[at, 3] = track, what, begin, end
        rec[at, 4], rec[at, 5], rec[at, 6], rec[at, 7] = event, slot, key, nbytes


@inner
def settle_disk(q, reg, disk, until, rec):  # type: ignore[no-untyped-def]
    """Run queued reads up to `until`; the copies that waited for them may start."""
    while reg[DISK_HEAD] < reg[DISK_TAIL]:
        at = index(reg[DISK_HEAD] & (disk.shape[0] - 1))
        slot = index(disk[at, 0])
        live = disk[at, 1] == q[slot, TICKET] and q[slot, READY] == NEVER
        if reg[DISK_BEGUN] < 0:
            if not live:
                reg[DISK_HEAD] += 1
                continue
            begin = max(reg[DISK_FREE], disk[at, 3])
            if begin >= until:
                return
            reg[DISK_BEGUN] = begin
        end = reg[DISK_BEGUN] + disk[at, 2]
        if end > until:
            return
        note(rec, reg, DISK_TRACK, READ, reg[DISK_BEGUN], end, NONE, slot, disk[at, 4], disk[at, 5])
        reg[DISK_BUSY] += disk[at, 2]
        reg[DISK_DONE] += disk[at, 5]
        reg[DISK_FREE], reg[DISK_BEGUN] = end, -1
        reg[DISK_HEAD] += 1
        if live:
            q[slot, READY] = end


@inner
def settle(q, reg, ring, disk, until, rec):  # type: ignore[no-untyped-def]
    """Run background copies in order up to `until`. Copies behind one that waits for the disk wait with it."""
    settle_disk(q, reg, disk, until, rec)
    while reg[HEAD] < reg[TAIL]:
        at = index(reg[HEAD] & (ring.shape[0] - 1))
        slot = index(ring[at, 0])
        if ring[at, 1] != q[slot, TICKET]:  # evicted or wanted before its turn came
            reg[HEAD] += 1
            continue
        if reg[BEGUN] < 0:
            begin = max(reg[FREE], q[slot, READY])
            if begin >= until:
                return
            reg[BEGUN] = begin
        end = reg[BEGUN] + q[slot, LEFT]
        if end > until:
            return
        run_on(q, reg, slot, q[slot, LEFT], rec)
        reg[HEAD] += 1


@inner
def run_on(q, reg, slot, spent, rec):  # type: ignore[no-untyped-def]
    """The copy under way goes on for `spent` and stops: landed where nothing is left of it."""
    slot = index(slot)
    note(rec, reg, LINK_TRACK, AHEAD, reg[BEGUN], reg[BEGUN] + spent, NONE, slot, q[slot, KEY], q[slot, BYTES])
    reg[BUSY] += spent
    reg[BACKLOG] -= spent
    reg[FREE], reg[BEGUN] = reg[BEGUN] + spent, -1
    q[slot, LEFT] -= spent
    q[slot, LATENCY] = max(0, q[slot, LATENCY] - spent)
    if q[slot, LEFT] == 0:
        q[slot, STATE] = 0
        reg[LIVE] -= 1


@inner
def interrupt(q, reg, ring, now, chunk, rec):  # type: ignore[no-untyped-def]
    """Stop the background copy under way at its next chunk border; FREE is then when a demand copy may start."""
    if reg[BEGUN] < 0:
        return
    slot = index(ring[index(reg[HEAD] & (ring.shape[0] - 1)), 0])
    ran, latency = now - reg[BEGUN], q[slot, LATENCY]
    border = q[slot, LEFT]
    if chunk > 0:
        border = min(border, latency + max(0, -((latency - ran) // chunk)) * chunk)
    run_on(q, reg, slot, border, rec)
    if q[slot, LEFT] == 0:
        reg[HEAD] += 1


@inner
def demand(q, reg, ring, now, earliest, spent, rec, event, slot, key, nbytes):  # type: ignore[no-untyped-def]
    """A copy that goes first, begun at the earliest at `earliest`; call `interrupt` before. -> when it has landed."""
    begin = max(now, reg[FREE], earliest)
    note(rec, reg, LINK_TRACK, COPY, begin, begin + spent, event, slot, key, nbytes)
    reg[FREE] = begin + spent
    reg[BUSY] += spent
    return begin + spent


@inner
def read_now(reg, disk, q, now, spent, rec, event, slot, key, nbytes):  # type: ignore[no-untyped-def]
    """A disk read that goes first, after the request under way. -> when it is done."""
    if reg[DISK_BEGUN] >= 0:
        at = index(reg[DISK_HEAD] & (disk.shape[0] - 1))
        settle_disk(q, reg, disk, reg[DISK_BEGUN] + disk[at, 2], rec)
    begin = max(now, reg[DISK_FREE])
    note(rec, reg, DISK_TRACK, READ, begin, begin + spent, event, slot, key, nbytes)
    reg[DISK_FREE] = begin + spent
    reg[DISK_BUSY] += spent
    reg[DISK_DONE] += nbytes
    return begin + spent


@inner
def promote(q, reg, ring, disk, now, chunk, read, slot, rec, event):  # type: ignore[no-untyped-def]
    """A background copy becomes a demand copy; `read` is what its disk read takes where it is not done.
    -> when it has landed."""
    slot = index(slot)
    if reg[BEGUN] >= 0 and ring[index(reg[HEAD] & (ring.shape[0] - 1)), 0] == slot:
        end = reg[BEGUN] + q[slot, LEFT]
        run_on(q, reg, slot, q[slot, LEFT], rec)
        reg[HEAD] += 1
        return end
    interrupt(q, reg, ring, now, chunk, rec)
    if q[slot, READY] == NEVER:
        under_way = reg[DISK_BEGUN] >= 0 and disk[reg[DISK_HEAD] & (disk.shape[0] - 1), 0] == slot
        if under_way:
            settle_disk(q, reg, disk, reg[DISK_BEGUN] + disk[reg[DISK_HEAD] & (disk.shape[0] - 1), 2], rec)
        if q[slot, READY] == NEVER:
            q[slot, READY] = read_now(reg, disk, q, now, read, rec, event, slot, q[slot, KEY], q[slot, BYTES])
    q[slot, TICKET] += 1
    reg[BACKLOG] -= q[slot, LEFT]
    reg[LIVE] -= 1
    q[slot, STATE] = 0
    return demand(q, reg, ring, now, q[slot, READY], q[slot, LEFT], rec, event, slot, q[slot, KEY], q[slot, BYTES])


@inner
def drop(q, reg, slot, tally):  # type: ignore[no-untyped-def]
    """A copy that is not under way ends here, its rest never moves. -> bytes of it that had moved."""
    slot = index(slot)
    data = q[slot, LEFT] - q[slot, LATENCY]
    moved = np.int64(0)
    if data < q[slot, FULL]:
        moved = q[slot, BYTES] - round(q[slot, BYTES] * (data / q[slot, FULL]))
    q[slot, STATE] = 0
    q[slot, TICKET] += 1
    reg[BACKLOG] -= q[slot, LEFT]
    reg[LIVE] -= 1
    tally[FILL_BYTES + q[slot, ORIGIN]] -= q[slot, BYTES] - moved
    return moved


@inner
def vacate(q, reg, ring, slot, now, chunk, tally, rec):  # type: ignore[no-untyped-def]
    """The slot's expert is evicted: a copy that has not landed ends here (at a chunk border), its rest never moves."""
    slot = index(slot)
    moved = q[slot, BYTES]
    if q[slot, STATE] and reg[BEGUN] >= 0 and ring[index(reg[HEAD] & (ring.shape[0] - 1)), 0] == slot:
        interrupt(q, reg, ring, now, chunk, rec)
    if q[slot, STATE]:
        moved = drop(q, reg, slot, tally)
        if q[slot, ORIGIN] == PROACTIVE:
            tally[CANCELLED_COPIES] += moved == 0
        elif q[slot, ORIGIN] == UPLOAD:
            tally[DROPPED_UPLOADS] += 1
    if q[slot, UNUSED]:
        tally[WASTED] += moved
        tally[CANCELLED] += q[slot, BYTES] - moved
        q[slot, UNUSED] = 0


@inner
def enqueue(q, reg, ring, disk, slot, key, origin, nbytes, latency, data, ready, read, tally):  # type: ignore[no-untyped-def]
    """Submit a background copy into a slot that was vacated; `read` above 0: after a disk read that takes so long."""
    slot = index(slot)
    q[slot, TICKET] += 1
    q[slot, KEY], q[slot, STATE], q[slot, ORIGIN], q[slot, BYTES] = key, 1, origin, nbytes
    q[slot, LATENCY], q[slot, FULL], q[slot, LEFT] = latency, data, latency + data
    q[slot, READY] = NEVER if read else ready
    q[slot, UNUSED] = origin == PROACTIVE
    reg[BACKLOG] += latency + data
    reg[LIVE] += 1
    tally[FILL_BYTES + origin] += nbytes
    tally[LINK_COPIES] += 1
    _compact(q, reg, ring, HEAD, TAIL, reg[BEGUN] >= 0)
    at = index(reg[TAIL] & (ring.shape[0] - 1))
    ring[at, 0], ring[at, 1] = slot, q[slot, TICKET]
    reg[TAIL] += 1
    if read:
        _compact(q, reg, disk, DISK_HEAD, DISK_TAIL, reg[DISK_BEGUN] >= 0)
        at = index(reg[DISK_TAIL] & (disk.shape[0] - 1))
        disk[at, 0], disk[at, 1], disk[at, 2], disk[at, 3] = slot, q[slot, TICKET], read, ready
        disk[at, 4], disk[at, 5] = key, nbytes
        reg[DISK_TAIL] += 1


@inner
def begun(q, reg, ring, slot, latency):  # type: ignore[no-untyped-def]
    """Whether a copy that has not landed has moved anything yet."""
    slot = index(slot)
    running = reg[BEGUN] >= 0 and ring[index(reg[HEAD] & (ring.shape[0] - 1)), 0] == slot
    return running or q[slot, LEFT] < q[slot, FULL] + latency


@inner
def restart(q, reg, ring, disk, where, now, chunk, tally, rec):  # type: ignore[no-untyped-def]
    """Every pool is emptied: what is under way ends at its next border (a read with all of it), nothing waits any more, and
    what was never used stays pending."""
    settle(q, reg, ring, disk, now, rec)
    interrupt(q, reg, ring, now, chunk, rec)
    if reg[DISK_BEGUN] >= 0:
        settle_disk(q, reg, disk, reg[DISK_BEGUN] + disk[reg[DISK_HEAD] & (disk.shape[0] - 1), 2], rec)
    for s in range(q.shape[0]):
        if q[s, UNUSED]:
            tally[PENDING] += q[s, BYTES]
        if q[s, STATE]:
            drop(q, reg, s, tally)
        q[s, KEY] = -1
        q[s, UNUSED] = 0
        q[s, WAVE] = 0
    for p in range(where.shape[0]):
        for k in range(where.shape[1]):
            where[p, k] = q.shape[0] - 1
    reg[HEAD], reg[TAIL], reg[DISK_HEAD], reg[DISK_TAIL] = 0, 0, 0, 0
    reg[FREE], reg[DISK_FREE] = max(reg[FREE], now), max(reg[DISK_FREE], now)


@inner
def _compact(q, reg, ring, head, tail, busy):  # type: ignore[no-untyped-def]
    """Drop entries of copies that were evicted or promoted once the ring is full; live ones are at most one a slot.
    What is under way (`busy`) stays first."""
    if reg[tail] - reg[head] < ring.shape[0]:
        return
    mask, end = ring.shape[0] - 1, reg[head]
    for i in range(reg[head], reg[tail]):
        at = i & mask
        if ring[at, 1] == q[ring[at, 0], TICKET] or (busy and i == reg[head]):
            for c in range(ring.shape[1]):
                ring[end & mask, c] = ring[at, c]
            end += 1
    reg[tail] = end
