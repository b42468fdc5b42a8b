"""Whether a decision log could have happened, and whether it is what a policy would have decided.

The log is replayed slot by slot by code of its own, which shares nothing with the decision loop. Rules are those of
design/semantics.md: an event's hits are what was resident before it; misses are admitted in rank order; a load goes into a
free slot or one whose occupant is named as its victim; members of the current wave are pinned, and a new wave begins only
when every resident is. Legend as in `rgpu.replay.log`.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numba import njit

from rgpu.errors import InputError
from rgpu.policies.loop import BYPASS, COUNTS, HIT, PREFETCH_HIT
from rgpu.policies.policy import Policy, runner
from rgpu.replay.engine import fill_pools
from rgpu.replay.events import next_uses
from rgpu.replay.log import DecisionLog
from rgpu.replay.log_file import HANDLERS, LogFile
from rgpu.replay.pool import Layout, initial_state
from rgpu.types import MoEShape

RULES = (
    "legal",
    "a hit is claimed but the expert is not resident",
    "an expert that is resident is loaded or staged again",
    "the slot is outside the pool",
    "the slot is taken and no victim is named",
    "the named victim is not in that slot",
    "the victim is a member of the wave being served",
    "a miss is staged but no slot is set aside for staging",
    "a proactive load names an expert that is resident",
    "a proactive load names a victim that is not in its slot",
    "the pool holds more bytes than its budget",
)
STAGES = ("fill", "event", "proactive load after the event")


@dataclass(frozen=True, slots=True)
class Verdict:
    """`problem` is None for a log that holds; else one line that names the first place where it does not."""

    hits: int
    prefetch_hits: int
    demand_loads: int
    proactive_loads: int
    fill_loads: int
    staged: int
    bytes_loaded: int | None
    waves_beyond_first: int
    problem: str | None


@njit(cache=True, nogil=True)
def _legal(  # type: ignore[no-untyped-def]
    pool, offs, keys, codes, victims, proactive, fills, stretches, slots, staging_ok, size_of, byte_cap, pins, counts
):
    """-> (rule broken or 0, event, access or row, stage); `counts`: prefetch hits, waves beyond the first of an event."""
    pools, width = size_of.shape
    where = np.full((pools, width), -1, np.int64)
    widest = 1
    for p in range(pools):
        widest = max(widest, slots[p])
    held = np.full((pools, widest), -1, np.int64)
    used = np.zeros(pools, np.int64)
    load = np.zeros(pools, np.int64)
    ahead = np.zeros((pools, width), np.bool_)
    wave = np.full((pools, width), -1, np.int64)
    now = 0
    r = 0
    row = 0
    filled = 0
    for e in range(pool.shape[0]):
        if r < stretches.shape[0] and stretches[r] == e:
            where[:] = -1
            held[:] = -1
            used[:] = 0
            load[:] = 0
            ahead[:] = False
            r += 1
        while filled < fills.shape[0] and fills[filled, 0] <= e:
            p, key, slot, old = fills[filled, 1], fills[filled, 2], fills[filled, 3], fills[filled, 4]
            if slot < 0 or slot >= slots[p]:
                return 3, e, filled, 0
            if where[p, key] >= 0:
                return 8, e, filled, 0
            if held[p, slot] != old:
                return 9, e, filled, 0
            where[p, key] = slot
            held[p, slot] = key
            used[p] += 1
            load[p] += size_of[p, key]
            filled += 1
        p = pool[e]
        now += 1
        pinned = 0
        for a in range(offs[e], offs[e + 1]):
            key = keys[a]
            hit = codes[a] == HIT or codes[a] == PREFETCH_HIT
            if hit and where[p, key] < 0:
                return 1, e, a, 1
            if not hit and where[p, key] >= 0:
                return 2, e, a, 1
            if hit:
                wave[p, key] = now
                pinned += 1
                if ahead[p, key]:
                    counts[0] += 1
                    ahead[p, key] = False
        for a in range(offs[e], offs[e + 1]):
            key = keys[a]
            if codes[a] == BYPASS:
                if not staging_ok[a]:
                    return 7, e, a, 1
            elif codes[a] >= 0:
                slot = codes[a]
                old = victims[a]
                if slot >= slots[p]:
                    return 3, e, a, 1
                if old < 0 and held[p, slot] >= 0:
                    return 4, e, a, 1
                if old >= 0:
                    if held[p, slot] != old:
                        return 5, e, a, 1
                    if pins and wave[p, old] == now:
                        if pinned < used[p] or used[p] < slots[p]:
                            return 6, e, a, 1
                        now += 1  # every resident has been served: a new wave
                        pinned = 0
                        counts[1] += 1
                    where[p, old] = -1
                    ahead[p, old] = False
                    used[p] -= 1
                    load[p] -= size_of[p, old]
                where[p, key] = slot
                held[p, slot] = key
                used[p] += 1
                load[p] += size_of[p, key]
                wave[p, key] = now
                pinned += 1
                if byte_cap[p] > 0 and load[p] > byte_cap[p]:
                    return 10, e, a, 1
        while row < proactive.shape[0] and proactive[row, 0] <= e:
            q, key, slot, old = proactive[row, 1], proactive[row, 2], proactive[row, 3], proactive[row, 4]
            if slot < 0 or slot >= slots[q]:
                return 3, e, row, 2
            if where[q, key] >= 0:
                return 8, e, row, 2
            if held[q, slot] != old:
                return 9, e, row, 2
            if old >= 0:
                where[q, old] = -1
                ahead[q, old] = False
                used[q] -= 1
                load[q] -= size_of[q, old]
            where[q, key] = slot
            held[q, slot] = key
            ahead[q, key] = True
            used[q] += 1
            load[q] += size_of[q, key]
            row += 1
    return 0, 0, 0, 0


def audit(file: LogFile, *, pins: bool = True) -> Verdict:
    """Replay the log slot by slot and count. `pins=False` for offline bounds, which spare nobody.

    Raises InputError for a pool with a byte budget over several sizes: one load may evict several experts there, and a
    log names one.
    """
    log, events, layout = file.log, file.log.events, file.log.layout
    if layout.byte_cap.any() and any(len(set(row.tolist())) > 1 for row in layout.size_of):
        raise InputError(
            "audit: got a byte budget over experts of several sizes; expected pools in slots, because a log names one "
            "victim a load; audit a run with pool.slots"
        )
    counts = np.zeros(2, np.int64)
    rule, event, at, stage = _legal(
        events.pool.astype(np.int64), events.offs, events.keys, log.codes, log.victims, log.proactive, log.fills,
        log.stretches[:-1], np.asarray(layout.main, np.int64), _may_stage(file, pins), layout.size_of, layout.byte_cap,
        pins, counts,
    )  # fmt: skip
    sizes = layout.size_of
    known = bool(sizes.all())
    demand, moved = int((log.codes >= 0).sum() + log.staged.sum()), 0
    if known:
        fetched = (log.codes >= 0) | (log.staged & _copies(file))
        moved = int(log.sizes[fetched].sum())
        for table in (log.proactive, log.fills):
            moved += int(sizes[table[:, 1], table[:, 2]].sum())
    problem = None if rule == 0 else f"{_place(file, int(event), int(at), int(stage))}: {RULES[rule]}"
    found = Verdict(
        int(log.hit.sum()), int(counts[0]), demand, len(log.proactive), len(log.fills), int(log.staged.sum()),
        moved if known else None, int(counts[1]), problem,
    )  # fmt: skip
    return found if problem else _claimed(found, file)


def _may_stage(file: LogFile, pins: bool) -> np.ndarray:
    """bool [A]: whether the access could be served without being kept (bounds always may)."""
    if not pins or file.log.layout.staging > 0:
        return np.ones(len(file.log.codes), bool)
    return ~_copies(file)


def _copies(file: LogFile) -> np.ndarray:
    """bool [A]: served by a copy to the device, where it was a miss."""
    if file.handler is None:
        return np.ones(len(file.log.codes), bool)
    return np.isin(file.handler, [HANDLERS.index("none"), HANDLERS.index("fetch"), HANDLERS.index("split")])


def _claimed(found: Verdict, file: LogFile) -> Verdict:
    loads = found.demand_loads + found.proactive_loads + found.fill_loads
    counted = {"hits": found.hits, "loads": loads, "bytes_loaded": found.bytes_loaded, "misses": found.demand_loads,
               "accesses": len(file.log.codes)}  # fmt: skip
    for name, value in file.claims.items():
        if name not in counted:
            raise InputError(f"audit: got a claim {name!r}; expected some of {', '.join(counted)}")
        if counted[name] is not None and counted[name] != value:
            problem = f"claims: {name} is given as {value}, the decisions add up to {counted[name]}"
            return replace(found, problem=problem)
    return found


def _place(file: LogFile, event: int, at: int, stage: int) -> str:
    events, layout = file.log.events, file.log.layout
    where = f"event {event} (pass {int(events.pass_id[event])}, layer {int(events.layer[event])})"
    if stage == 1:
        return f"{where}, expert {expert_name(layout, file.experts, int(events.pool[event]), int(events.keys[at]))}"
    table = file.log.proactive if stage == 2 else file.log.fills
    return f"{where}, {STAGES[stage]}, expert {expert_name(layout, file.experts, int(table[at, 1]), int(table[at, 2]))}"


def expert_name(layout: Layout, experts: int, pool: int, key: int) -> str:
    """`5`, or `3/5` (layer/expert) in a pool of several layers."""
    first = int(np.argmax(layout.pool_of == pool))
    return str(key) if layout.keys == experts else f"{first + key // experts}/{key % experts}"


def decided_by(file: LogFile, policy: Policy, *, seed: int = 0) -> DecisionLog:
    """What `policy` decides on the log's own events and pools. Raises InputError where it needs more than a log holds."""
    log, events, layout = file.log, file.log.events, file.log.layout
    traits = policy.traits
    lacking = "a calibration trace" if traits.calibration else f"{traits.feature} features" if traits.feature else ""
    if not lacking and traits.weights and not events.weights.any():
        lacking = "gate weights"
    if traits.forecast:
        lacking = "forecasts"
    if lacking or not traits.demand:
        what = lacking or "its own clock of proactive loads"
        raise InputError(
            f"audit policy={policy.name}: got a decision log, which has no {what}; expected a demand policy"
        )
    sizes = tuple(int(layout.size_of[layout.pool_of[i], layout.base[i]]) for i in range(file.layers))
    shape = MoEShape(file.layers, file.experts, 1, 0, sizes, tuple(range(file.layers)))
    m, f, fill = initial_state(layout, policy, shape, "", 0, None, seed)
    run, (m0, f0) = runner(policy), (m.copy(), f.copy())
    n = len(events.keys)
    codes, victims, counts = np.empty(n, np.int32), np.empty(n, np.int32), np.zeros(COUNTS, np.int64)
    for start, stop in zip(log.stretches[:-1], log.stretches[1:], strict=True):
        m[:], f[:] = m0, f0
        fill_pools(run, m, f, fill, counts)
        offs = events.offs[start : stop + 1]
        base, part = int(offs[0]), slice(int(offs[0]), int(offs[-1]))
        pool = events.pool[start:stop]
        nexts = np.zeros(0, np.int64)
        if traits.needs_future:
            nexts = next_uses(pool, offs - base, events.keys[part], layout.pools, layout.keys)
        run(m, f, pool, events.kind[start:stop], offs - base, events.keys[part], events.weights[part], nexts,
            events.touch[part], np.zeros((1, 0), np.float32), codes[part], victims[part], counts,
            np.zeros((0, 4), np.int64))  # fmt: skip
    return DecisionLog(policy.name, events, layout, codes, victims, log.proactive[:0], log.fills[:0], log.stretches)


def divergence(file: LogFile, expected: DecisionLog) -> str | None:
    """The first decision that differs, in one line, or None. Slots are names: hits, keeping and victims are compared."""
    log, events = file.log, file.log.events
    ours, theirs = _sorts(log), _sorts(expected)
    wrong = np.flatnonzero((ours != theirs) | (log.victims != expected.victims))
    if not len(wrong):
        return None
    a = int(wrong[0])
    e = int(np.searchsorted(events.offs, a, side="right")) - 1
    told = (_told(file, log, a, e), _told(file, expected, a, e))
    return f"{_place(file, e, a, 1)}: {expected.policy} {told[1]}; the log {told[0]}"


def _sorts(log: DecisionLog) -> np.ndarray:
    return np.select([log.hit, log.staged], [0, 1], 2)  # type: ignore[no-any-return]


def _told(file: LogFile, log: DecisionLog, a: int, event: int) -> str:
    if log.hit[a]:
        return "hits"
    if log.staged[a]:
        return "serves it without keeping it"
    if log.victims[a] < 0:
        return "loads it into a free slot"
    pool = int(log.events.pool[event])
    return f"evicts expert {expert_name(log.layout, file.experts, pool, int(log.victims[a]))}"


def totals(verdict: Verdict) -> dict[str, Any]:
    """The verdict as JSON data."""
    return {name: getattr(verdict, name) for name in Verdict.__dataclass_fields__}
