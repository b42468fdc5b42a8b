"""What each eviction cost against the best choice at that moment.

For an eviction of v at a state s, the best choice b is the resident that could have gone and is needed last (Belady). The
regret of the eviction is loads(s without v) - loads(s without b), both continued by forced Belady: the loads that this one
choice added for good. It telescopes: over a log that keeps every miss of equal size the regrets add up to the policy's
loads minus forced Belady's, to the load. The two continuations differ in few residents and are followed only until they
meet again, or for `HORIZON` events of the pool (then counted as unresolved). An eviction is optimal if nothing that could
have gone is needed later than v: the share of those is what Zhang (arXiv 2608.07911, tables 15 and 16) reports.
Proactive evictions change the residents but are not scored: no miss forced them. Legend as in `rgpu.replay.log`.
"""

from dataclasses import dataclass

import numpy as np
from numba import njit

from rgpu.policies.loop import HIT, NEVER, PREFETCH_HIT
from rgpu.replay.events import next_uses
from rgpu.replay.log_file import LogFile

HORIZON = 2048
NUMBER, COUNT, WAVE, PINNED, LOADS, MOVED = range(6)  # registers of a continuation: its stamp, residents, wave, ...


@dataclass(frozen=True, slots=True)
class Regret:
    """`share_optimal` of `evictions`; `sooner_mean`: events of the pool's layers by which a poor victim was needed sooner
    than the best one, where both are used again; `extra_loads`, `extra_bytes`: sums of the regrets; `stall_s`: of their
    copies, None without a link. Arrays, one an eviction: its access in the log, regret in loads and bytes, optimal or not."""

    evictions: int
    share_optimal: float
    sooner_mean: float
    extra_loads: int
    extra_bytes: int | None
    stall_s: float | None
    unresolved: int
    access: np.ndarray
    loads_each: np.ndarray
    bytes_each: np.ndarray
    optimal: np.ndarray


@njit(cache=True, nogil=True)
def _take(held, place, stamp, pin, coming, reg, size, key, other):  # type: ignore[no-untyped-def]
    """Load a missed key, Belady's victim going if the pool is full; -> change of |own - other| and of |other - own|."""
    mine, theirs = 0, 0
    if reg[COUNT] == held.shape[0]:
        if reg[PINNED] >= reg[COUNT]:
            reg[WAVE] += 1
            reg[PINNED] = 0
        far, out = -1, -1
        for c in range(held.shape[0]):
            k = held[c]
            if pin[k] != reg[WAVE] and coming[k] > far:
                far = coming[k]
                out = c
        old = held[out]
        stamp[old] = 0
        if other[old] == reg[NUMBER]:
            theirs += 1
        else:
            mine -= 1
        held[out] = key
        place[key] = out
    else:
        held[reg[COUNT]] = key
        place[key] = reg[COUNT]
        reg[COUNT] += 1
    stamp[key] = reg[NUMBER]
    pin[key] = reg[WAVE]
    reg[PINNED] += 1
    reg[LOADS] += 1
    reg[MOVED] += size[key]
    if other[key] == reg[NUMBER]:
        theirs -= 1
    else:
        mine += 1
    return mine, theirs


@njit(cache=True, nogil=True)
def _serve(held, place, stamp, pin, coming, reg, size, keys, other):  # type: ignore[no-untyped-def]
    """One whole event of one continuation, as the semantics say; -> as `_take`."""
    reg[WAVE] += 1
    reg[PINNED] = 0
    mine, theirs = 0, 0
    for k in keys:
        if stamp[k] == reg[NUMBER]:
            pin[k] = reg[WAVE]
            reg[PINNED] += 1
    for k in keys:
        if stamp[k] != reg[NUMBER]:
            d, o = _take(held, place, stamp, pin, coming, reg, size, k, other)
            mine += d
            theirs += o
    return mine, theirs


@njit(cache=True, nogil=True)
def _follow(  # type: ignore[no-untyped-def]
    residents, v, b, wave, now, a, stop_a, line, at, stop_line, offs, keys, nexts, coming0, size, number, horizon, work
):
    """Evicting v instead of b before access a + 1: (loads, bytes, resolved). `residents` holds both and the new key."""
    stamp, place, pin, coming = work[0:2], work[2:4], work[4:6], work[6]
    n = residents.shape[0] - 1
    held = np.empty((2, n), np.int64)
    reg = np.zeros((2, 6), np.int64)
    for s in range(2):  # 0: the policy's choice, v gone; 1: the best, b gone
        gone = v if s == 0 else b
        c = 0
        reg[s, NUMBER] = number
        reg[s, WAVE] = number * 4 * (horizon + 2) * 64
        for key in residents:
            if key == gone:
                continue
            held[s, c] = key
            place[s, key] = c
            stamp[s, key] = number
            if wave[key] == now:
                pin[s, key] = reg[s, WAVE]
                reg[s, PINNED] += 1
            c += 1
        stamp[s, gone] = 0
        reg[s, COUNT] = n
    coming[:] = coming0
    apart, other = 1, 1  # |policy - best|, |best - policy|
    for j in range(a + 1, stop_a):
        k = keys[j]
        if wave[k] != now and stamp[0, k] != number:
            d, o = _take(held[0], place[0], stamp[0], pin[0], coming, reg[0], size, k, stamp[1])
            apart, other = apart + d, other + o
        if wave[k] != now and stamp[1, k] != number:
            d, o = _take(held[1], place[1], stamp[1], pin[1], coming, reg[1], size, k, stamp[0])
            apart, other = apart + o, other + d
    done = apart == 0 and other == 0
    i = at + 1
    while not done and i < stop_line and i <= at + horizon:
        e = line[i]
        part = keys[offs[e] : offs[e + 1]]
        for j in range(offs[e], offs[e + 1]):
            coming[keys[j]] = nexts[j]
        d, o = _serve(held[0], place[0], stamp[0], pin[0], coming, reg[0], size, part, stamp[1])
        apart, other = apart + d, other + o
        d, o = _serve(held[1], place[1], stamp[1], pin[1], coming, reg[1], size, part, stamp[0])
        apart, other = apart + o, other + d
        done = apart == 0 and other == 0
        i += 1
    return reg[0, LOADS] - reg[1, LOADS], reg[0, MOVED] - reg[1, MOVED], done or i >= stop_line


@njit(cache=True, nogil=True)
def _regret(  # type: ignore[no-untyped-def]
    pool,
    offs,
    keys,
    codes,
    victims,
    nexts,
    first_next,
    proactive,
    fills,
    stretches,
    slots,
    size_of,
    pins,
    horizon,
    line,
    line_first,
    rank,
    access,
    optimal,
    sooner,
    loads,
    moved,
    resolved,
):
    """Walk the log, scoring each eviction. `line` holds the events of each pool in order, `rank` where an event is in it."""
    pools, width = size_of.shape
    widest = 1
    for p in range(pools):
        widest = max(widest, slots[p])
    held = np.full((pools, widest), -1, np.int64)
    coming = np.full((pools, width), NEVER)
    wave = np.full((pools, width), -1, np.int64)
    work = np.full((7, width), -1, np.int64)
    residents = np.empty(widest + 1, np.int64)
    now, n, r, row, filled = 0, 0, 0, 0, 0
    for e in range(pool.shape[0]):
        if r + 1 < stretches.shape[0] and stretches[r] == e:
            held[:] = -1
            coming[:] = first_next[r]
            r += 1
        while filled < fills.shape[0] and fills[filled, 0] <= e:
            held[fills[filled, 1], fills[filled, 3]] = fills[filled, 2]
            filled += 1
        p = pool[e]
        now += 1
        pinned, used = 0, 0
        for a in range(offs[e], offs[e + 1]):
            coming[p, keys[a]] = nexts[a]
            if codes[a] == HIT or codes[a] == PREFETCH_HIT:
                wave[p, keys[a]] = now
                pinned += 1
        for c in range(slots[p]):
            used += held[p, c] >= 0
        for a in range(offs[e], offs[e + 1]):
            if codes[a] < 0:
                continue
            old = victims[a]
            if old < 0:
                used += 1
            else:
                if pins and pinned >= used:
                    now += 1
                    pinned = 0
                far, best, count = coming[p, old], old, 0
                for c in range(slots[p]):
                    key = held[p, c]
                    if key >= 0:
                        residents[count] = key
                        count += 1
                        if coming[p, key] > far and (not pins or wave[p, key] != now):
                            far, best = coming[p, key], key
                access[n], optimal[n], sooner[n] = a, best == old, 0
                loads[n], moved[n], resolved[n] = 0, 0, True
                if best != old:
                    if far < NEVER:
                        sooner[n] = rank[far] - rank[coming[p, old]]
                    wave[p, keys[a]] = now
                    residents[count] = keys[a]
                    end = stretches[r]
                    last = line_first[p] + np.searchsorted(line[line_first[p] : line_first[p + 1]], end)
                    loads[n], moved[n], resolved[n] = _follow(
                        residents[: count + 1], old, best, wave[p], now, a, offs[e + 1], line, rank[e], last, offs, keys,
                        nexts, coming[p], size_of[p], n + 1, horizon, work,
                    )  # fmt: skip
                n += 1
            held[p, codes[a]] = keys[a]
            wave[p, keys[a]] = now
            pinned += 1
        while row < proactive.shape[0] and proactive[row, 0] <= e:
            held[proactive[row, 1], proactive[row, 3]] = proactive[row, 2]
            row += 1
    return n


def regret(
    file: LogFile, *, pins: bool = True, link_bytes_per_s: float = 0.0, latency_s: float = 0.0, horizon: int = HORIZON
) -> Regret:
    """Of a legal log (`audit` first). `link_bytes_per_s` > 0 gives the stall of the extra copies, each `latency_s` plus
    bytes over bandwidth; `pins=False` for logs of offline bounds."""
    log, events, layout = file.log, file.log.events, file.log.layout
    n = len(events.keys)
    nexts, first = np.empty(n, np.int64), []
    for start, stop in zip(log.stretches[:-1], log.stretches[1:], strict=True):
        offs = events.offs[start : stop + 1]
        part, pool = slice(int(offs[0]), int(offs[-1])), events.pool[start:stop]
        keys = events.keys[part]
        found = next_uses(pool, offs - offs[0], keys, layout.pools, layout.keys)
        nexts[part] = np.where(found < NEVER, found + start, NEVER)
        upcoming = np.full((layout.pools, layout.keys), NEVER)
        owner = np.repeat(np.arange(start, stop), np.diff(offs))
        upcoming[np.repeat(pool, np.diff(offs))[::-1], keys[::-1]] = owner[::-1]
        first.append(upcoming)
    line = np.argsort(events.pool, kind="stable")
    rank = np.empty(len(line), np.int64)
    rank[line] = np.arange(len(line))
    line_first = np.concatenate([[0], np.cumsum(np.bincount(events.pool, minlength=layout.pools))]).astype(np.int64)
    access, sooner, loads, moved = (np.empty(n, np.int64) for _ in range(4))
    optimal, resolved = np.empty(n, np.bool_), np.empty(n, np.bool_)
    count = _regret(
        events.pool.astype(np.int64), events.offs, events.keys.astype(np.int64), log.codes, log.victims, nexts,
        np.stack(first), log.proactive, log.fills, log.stretches, np.asarray(layout.main, np.int64), layout.size_of, pins,
        horizon, line, line_first, rank, access, optimal, sooner, loads, moved, resolved,
    )  # fmt: skip
    sooner, loads, moved = sooner[:count], loads[:count], moved[:count]
    optimal, known = optimal[:count], bool(layout.size_of.all())
    both = sooner > 0
    stalls = link_bytes_per_s > 0 and known
    stall = float(loads.sum() * latency_s + moved.sum() / link_bytes_per_s) if stalls else None
    return Regret(
        count, float(optimal.mean()) if count else 1.0, float(sooner[both].mean()) if both.any() else 0.0,
        int(loads.sum()), int(moved.sum()) if known else None, stall, int((~resolved[:count]).sum()), access[:count],
        loads, moved, optimal,
    )  # fmt: skip
