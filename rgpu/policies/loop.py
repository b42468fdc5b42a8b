"""The decision loop: every hit, admission, eviction, staged miss and proactive load of rgpu is decided here.

State is two arrays whatever the policy (`state.py`): rows from `OWN` on of `m` and all of `f` belong to the policy. A miss
is kept if both the policy's `admit` and the admission plug (`gate.py`) let it in.

A policy is a set of hooks; one that is missing takes its default:
    on_event(m, f, keys, weights, feature)   the event's union in rank order, before anything is decided
    admit(m, f, key) -> bool                 False: the miss is served from a staging slot and not kept
    victim(m, f) -> slot                     called when nothing is free; only a slot for which `evictable(m, slot)` holds
    on_evict(m, f, key)                      still in its slot
    on_admit(m, f, key)                      just placed, on demand or proactively
    on_access(m, f, key, hit)                every resident member of the union in touch order, after all admissions
    desired(m, f) -> n                       after the event: fills m[WANT, :n] with keys to hold, most wanted first;
                                             m[REG, CHANGES] bounds how many of them are loaded

`loop` is inlined into each policy's compiled `run` before typing, so every policy gets its own machine code and numba can
cache it on disk; hooks passed as arguments to one shared compiled loop would defeat that cache.
"""

import contextlib
import hashlib
import pathlib
import types
from collections.abc import Callable, Iterator
from typing import Any

import numba
import numpy as np
from numba import njit

from rgpu.policies.gate import open_gate, passes
from rgpu.policies.state import *  # a policy finds every name it is written with here


def _stamp() -> str:
    """Hash of every source inlined into a policy's `run`: numba itself watches only the policy's own file."""
    folder = pathlib.Path(__file__).parent
    parts = ("state", "decide", "projection", "ring", "trajectory", "slots", "adaptive", "memory", "spaces")
    shared = ("state", "gate", "loop", "hooks", "lists", "heap", "levels", "fading", "next_use")
    names = (*shared, *(f"rotation/{part}" for part in parts))
    sources = b"".join((folder / f"{name}.py").read_bytes() for name in names)
    return hashlib.sha256(sources + numba.__version__.encode()).hexdigest()[:12]


@contextlib.contextmanager
def _cache_folder() -> Iterator[None]:
    base = numba.config.CACHE_DIR or str(pathlib.Path.home() / ".cache" / "rgpu" / "numba")
    previous = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = f"{base}/{_stamp()}"
    try:
        yield
    finally:
        numba.config.CACHE_DIR = previous


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a policy's `run` on first use and cache it on disk, in a folder named after the loop's sources.

    Its views of arrays are not reference counted (atomically, at every event: a quarter of the time), so no hook may allocate.
    """
    with _cache_folder():
        return njit(cache=True, **{**OPTIONS, "_nrt": False})(function)  # type: ignore[no-any-return]


@hook
def nothing(m, f, key):
    pass


@hook
def no_access(m, f, key, hit):
    pass


@hook
def no_event(m, f, keys, weights, feature):
    pass


@hook
def always(m, f, key):
    return True


@hook
def never(m, f, key):
    return False


@hook
def no_wish(m, f):
    return 0


@hook
def evictable(m, slot):
    """Whether the slot holds an expert that no member of the current wave needs."""
    key = m[KEY_OF, slot]
    return key >= 0 and m[PIN, key] != m[REG, WAVE]


@inlined
def give_back(m):
    """Take the last slot out of a pool that has a free one; who is in it moves. -> the slot moved to, or -1"""
    last = m[REG, CAP] - 1
    free = m[REG, CAP] - m[REG, USED]
    key = m[KEY_OF, last]
    moved = np.int64(-1)
    if key >= 0:
        moved = m[FREE, free - 1]
        m[KEY_OF, moved] = key
        m[SLOT_OF, key] = moved
        m[KEY_OF, last] = -1
    else:
        at = 0
        while m[FREE, at] != last:
            at += 1
        for i in range(at, free - 1):
            m[FREE, i] = m[FREE, i + 1]
    m[REG, CAP] = last
    return moved


@inlined
def place(m, f, key, counts, demand, proactive, leaving, victim, on_evict, on_admit):
    """Put `key` into a slot, evicting until it fits. -> (slot, first victim's key or -1); slot -1: all pinned, dropped.

    On demand, a pool whose residents are all pinned begins a new wave: those members have been served by then.
    `leaving`: a slot is wanted that nobody is in, and `key` stays where it is. `proactive` loads, unlike demand and the
    initial fill, are accounted for as useful, wasted or pending.
    """
    first = np.int64(-1)
    stuck = False
    while m[REG, USED] >= m[REG, CAP] or m[REG, BYTES] + m[SIZE, key] > m[REG, BYTE_CAP]:
        if m[REG, PINNED] >= m[REG, USED]:
            if not demand:
                stuck = True
                break
            m[REG, WAVE] += 1
            m[REG, PINNED] = 0
        out = victim(m, f)
        old = m[KEY_OF, out]
        on_evict(m, f, old)
        counts[WASTED] += m[ORIGIN, old]
        m[ORIGIN, old] = 0
        m[SLOT_OF, old] = -1
        m[KEY_OF, out] = -1
        m[REG, USED] -= 1
        m[REG, BYTES] -= m[SIZE, old]
        m[FREE, m[REG, CAP] - m[REG, USED] - 1] = out
        if first < 0:
            first = old
    slot = np.int64(-1)
    if not stuck and not leaving:
        slot = m[FREE, m[REG, CAP] - m[REG, USED] - 1]
        m[REG, USED] += 1
        m[REG, BYTES] += m[SIZE, key]
        m[KEY_OF, slot] = key
        m[SLOT_OF, key] = slot
        m[REG, CLOCK] += 1
        m[PIN, key] = m[REG, WAVE]
        m[REG, PINNED] += 1
        m[ORIGIN, key] = 1 if proactive else 0
        counts[LOADED_BYTES] += m[SIZE, key]
        on_admit(m, f, key)
    return slot, first


@inlined
def loop(
    m3, f3, pool, kind, offs, keys, weights, nexts, touch, features, codes, victims, counts, plog,
    on_event, admit, victim, on_evict, on_admit, on_access, desired,
):  # fmt: skip
    """Decide events in order. Event e is duplicate-free keys[offs[e]:offs[e + 1]] of pool[e].

    `nexts` (event number of each key's next use) and `touch` (touch order as offsets within the event) may be empty;
    `features` is [events, F] or one empty row. Fills codes and victims (one an access), counts, and `plog` with a row
    (event, key, slot, victim) for each proactive load a policy asked for, as long as there is room.

    An event of kind `SHRINK` or `GROW` has one key, which means nothing: the pool has one slot less or more from then on.
    A full pool gives up whom the policy chooses (`victims`); who was in the last slot moves (to slot `codes`, -1: nobody).
    """
    for e in range(pool.shape[0]):
        m = m3[pool[e]]
        f = f3[pool[e]]
        a0 = offs[e]
        a1 = offs[e + 1]
        if kind[e] == DEMAND:
            m[REG, EVENT] += 1
            m[REG, WAVE] += 1
            resident = 0
            for a in range(a0, a1):
                key = np.int64(keys[a])
                m[PIN, key] = m[REG, WAVE]
                victims[a] = -1
                if nexts.shape[0]:
                    m[NEXT, key] = nexts[a]
                if m[SLOT_OF, key] < 0:
                    codes[a] = BYPASS
                elif m[ORIGIN, key]:
                    codes[a] = PREFETCH_HIT
                    counts[PREFETCH_HITS] += 1
                    m[ORIGIN, key] = 0
                    m[SEEN, key] = 1
                    resident += 1
                else:
                    codes[a] = HIT
                    m[SEEN, key] = 1
                    resident += 1
            counts[HITS] += resident
            m[REG, PINNED] = resident
            on_event(m, f, keys[a0:a1], weights[a0:a1], features[e if features.shape[0] > 1 else 0])
            if resident < a1 - a0:
                open_gate(m, weights[a0:a1])
                for a in range(a0, a1):
                    if codes[a] != BYPASS:
                        continue
                    key = np.int64(keys[a])
                    counts[COLD] += 1 - m[SEEN, key]
                    m[SEEN, key] = 1
                    counts[DEMAND_LOADS] += 1
                    if m[REG, CAP] > 0 and admit(m, f, key) and passes(m, key, weights[a]):
                        slot, old = place(m, f, key, counts, True, False, False, victim, on_evict, on_admit)
                        codes[a] = slot
                        victims[a] = old
                    else:
                        counts[LOADED_BYTES] += m[SIZE, key]
            for j in range(a0, a1):
                a = a0 + touch[j] if touch.shape[0] else j
                key = np.int64(keys[a])
                m[REG, CLOCK] += 1
                if m[SLOT_OF, key] >= 0:
                    on_access(m, f, key, codes[a] < 0)
            n = desired(m, f)
            changes = 0
            if n > 0:  # the event is over: its members need no protection from what the policy wants next
                m[REG, WAVE] += 1
                m[REG, PINNED] = 0
            for j in range(n):
                key = m[WANT, j]
                if m[SLOT_OF, key] >= 0 and m[PIN, key] != m[REG, WAVE]:
                    m[PIN, key] = m[REG, WAVE]
                    m[REG, PINNED] += 1
            for j in range(n):
                key = m[WANT, j]
                if m[SLOT_OF, key] < 0 and changes < m[REG, CHANGES]:
                    slot, old = place(m, f, key, counts, False, True, False, victim, on_evict, on_admit)
                    if slot >= 0:
                        changes += 1
                        counts[PROACTIVE_LOADS] += 1
                        if counts[LOGGED] < plog.shape[0]:
                            plog[counts[LOGGED], 0] = e
                            plog[counts[LOGGED], 1] = key
                            plog[counts[LOGGED], 2] = slot
                            plog[counts[LOGGED], 3] = old
                            counts[LOGGED] += 1
        elif kind[e] == GROW:
            m[FREE, m[REG, CAP] - m[REG, USED]] = m[REG, CAP]
            m[REG, CAP] += 1
            codes[a0] = -1
            victims[a0] = -1
        else:
            if kind[e] != PREFETCH_BUSY:  # the pool's last event is over: its members need no protection
                m[REG, WAVE] += 1
                m[REG, PINNED] = 0
            for a in range(a0, a1):
                key = np.int64(keys[a])
                codes[a] = DROPPED
                victims[a] = -1
                if m[SLOT_OF, key] >= 0 and kind[e] != SHRINK:
                    codes[a] = KEPT
                    if m[PIN, key] != m[REG, WAVE]:
                        m[PIN, key] = m[REG, WAVE]
                        m[REG, PINNED] += 1
            for a in range(a0, a1):
                if codes[a] == DROPPED and m[REG, CAP] > 0:
                    key = np.int64(keys[a])
                    leaving = kind[e] == SHRINK
                    slot, old = place(m, f, key, counts, False, kind[e] != FILL, leaving, victim, on_evict, on_admit)
                    if leaving:
                        codes[a] = give_back(m)
                        victims[a] = old
                    elif slot >= 0:
                        codes[a] = slot
                        victims[a] = old
                        counts[FILL_LOADS if kind[e] == FILL else PROACTIVE_LOADS] += 1


DEFAULTS = {
    "on_event": no_event, "admit": always, "on_evict": nothing, "on_admit": nothing, "on_access": no_access,
    "desired": no_wish,
}  # fmt: skip


def plain(**hooks: Callable[..., Any]) -> Callable[..., None]:
    """The same loop, uncompiled, for hooks in plain Python (a user's own policy, or a debugger)."""
    given = {name: getattr(h, "py_func", h) for name, h in (DEFAULTS | hooks).items()}
    source = loop.py_func
    parts = {part.__name__: part.py_func for part in (give_back, place, open_gate, passes)}
    uncompiled = types.FunctionType(source.__code__, source.__globals__ | parts, "loop")
    return lambda *arrays: uncompiled(*arrays, **given)
