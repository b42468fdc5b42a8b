"""The semantics in plain Python, by their words and slowly: LRU, FIFO, LFU, and the fewest loads by exhaustive search.

An event is (pool, members in rank order). Nothing here uses the decision loop, its state or its policies.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

Event = tuple[int, tuple[int, ...]]
POLICIES = ("lru", "fifo", "lfu")


@dataclass
class Answer:
    """`decisions[e]`: (member, "hit" or "load", victim or None) for each member of event e in rank order."""

    hits: int = 0
    loads: int = 0
    decisions: list[list[tuple[int, str, int | None]]] = field(default_factory=list)


@dataclass
class _Pool:
    resident: list[int] = field(default_factory=list)
    last_use: dict[int, int] = field(default_factory=dict)
    loaded: dict[int, int] = field(default_factory=dict)
    uses: dict[int, int] = field(default_factory=dict)
    clock: int = 0


def simulate(events: Sequence[Event], slots: int, policy: str) -> Answer:
    """What an engine must do under `policy`, one of `POLICIES`, with `slots` in every pool.

    Hits are decided before the event; misses are loaded in rank order; members of the wave are never victims; when all
    residents are, they have been served and a new wave begins; then every resident member is touched in rank order.
    """
    answer, pools = Answer(), {number: _Pool() for number, _ in events}
    for number, members in events:
        pool = pools[number]
        present = [k for k in members if k in pool.resident]
        pinned = set(present)
        victims: dict[int, int | None] = {}
        for key in members:
            if key in present:
                continue
            victims[key] = None
            if len(pool.resident) == slots:
                if pinned >= set(pool.resident):
                    pinned = set()
                victims[key] = gone = min((k for k in pool.resident if k not in pinned), key=_rank(pool, policy))
                pool.resident.remove(gone)
            pool.clock += 1
            pool.resident.append(key)
            pool.loaded[key] = pool.last_use[key] = pool.clock
            pool.uses[key] = 0
            pinned.add(key)
        for key in members:
            pool.clock += 1
            if key in pool.resident:
                pool.last_use[key] = pool.clock
                pool.uses[key] += 1
        answer.hits += len(present)
        answer.loads += len(victims)
        answer.decisions.append([(k, "load" if k in victims else "hit", victims.get(k)) for k in members])
    return answer


def _rank(pool: _Pool, policy: str):  # type: ignore[no-untyped-def]
    if policy == "lru":
        return lambda k: pool.last_use[k]
    if policy == "fifo":
        return lambda k: pool.loaded[k]
    assert policy == "lfu"
    return lambda k: (pool.uses[k], pool.last_use[k])  # uses while resident; of equals the least recent


def fewest_loads(events: Sequence[Event], slots: int, *, forced: bool) -> int | None:
    """Fewest loads over every choice of what stays after each event, pool by pool, by exhaustive search.

    Forced: all members of an event stay until the next one (None where an event is larger than the pool). Otherwise
    anything resident or just routed may stay: what bypass-Belady reaches.
    """
    total = 0
    for number in sorted({pool for pool, _ in events}):
        sets = tuple(frozenset(members) for pool, members in events if pool == number)
        if forced and max(map(len, sets)) > slots:
            return None
        total += _fewest(sets, slots, forced)
    return total


def _fewest(sets: tuple[frozenset[int], ...], slots: int, forced: bool) -> int:
    @cache
    def best(i: int, resident: frozenset[int]) -> int:
        if i == len(sets):
            return 0
        cost, have = len(sets[i] - resident), resident | sets[i]
        must = sets[i] if forced else frozenset()
        rest = sorted(have - must)
        keeps = itertools.combinations(rest, min(slots - len(must), len(rest)))
        return cost + min(best(i + 1, must | frozenset(k)) for k in keeps)

    return best(0, frozenset())
