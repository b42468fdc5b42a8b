"""What became of every proactive load of a decision log: useful, wasted or pending, and whether it did harm.

A load is `harmful` when the expert evicted for it misses afterwards where a shadow pool without prefetch would have hit. Late
and cancelled are matters of time: the clock counts them (docs/timing.md). Legend: R proactive loads.
"""

from dataclasses import dataclass

import numpy as np

from rgpu.errors import InputError
from rgpu.policies.loop import BYPASS, HIT, PREFETCH_HIT
from rgpu.replay.log import DecisionLog

PENDING, USEFUL, WASTED = range(3)


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Of each row of `DecisionLog.proactive`: `ended` int8 [R] (PENDING, USEFUL, WASTED); `harmful` bool [R], beside that;
    `used` and `cost` int64 [R]: the event that used it, and the one whose miss was its harm (-1 none)."""

    ended: np.ndarray
    harmful: np.ndarray
    used: np.ndarray
    cost: np.ndarray

    def counts(self, which: np.ndarray | slice = slice(None)) -> dict[str, int]:
        """How many loads of each kind among rows `which`."""
        names = {"pending": PENDING, "useful": USEFUL, "wasted": WASTED}
        found = {name: int((self.ended[which] == code).sum()) for name, code in names.items()}
        return found | {"harmful": int(self.harmful[which].sum())}


def outcomes(log: DecisionLog, shadow: DecisionLog) -> Outcomes:
    """Follow every proactive load of `log`; `shadow` decided the same events in the same pools without prefetch.

    Equal expert sizes (one load evicts at most one expert). InputError where the logs are not of the same events.
    """
    if not np.array_equal(log.events.keys, shadow.events.keys) or not np.array_equal(log.stretches, shadow.stretches):
        raise InputError("shadow: got a log of other events; expected one of the same trace, scope and resets")
    events, rows = log.events, log.proactive
    ended, used = np.full(len(rows), PENDING, np.int8), np.full(len(rows), -1, np.int64)
    cost = np.full(len(rows), -1, np.int64)
    stretches, row = set(log.stretches[1:].tolist()), 0
    waiting: dict[tuple[int, int], int] = {}  # (pool, key): its load that nothing has used
    evicted: dict[tuple[int, int], int] = {}  # (pool, key): the load that it had to go for
    hit_A = shadow.hit
    pool_V, offs, keys, codes, victims = (
        a.tolist() for a in (events.pool, events.offs, events.keys, log.codes, log.victims)
    )
    table = rows.tolist()
    for e, pool in enumerate(pool_V):
        if e in stretches:
            waiting.clear()
            evicted.clear()
        for a in range(offs[e], offs[e + 1]):
            at, code = (pool, keys[a]), codes[a]
            cause = evicted.pop(at, None)
            if code == PREFETCH_HIT:
                load = waiting.pop(at)
                ended[load], used[load] = USEFUL, e
            elif code not in (HIT, PREFETCH_HIT) and cause is not None and hit_A[a]:
                cost[cause] = e
        for a in range(offs[e], offs[e + 1]):
            if codes[a] >= 0 and codes[a] != BYPASS and victims[a] >= 0:
                _leave(waiting, (pool, victims[a]), ended)
                evicted.pop((pool, victims[a]), None)
        while row < len(table) and table[row][0] == e:
            _, own, key, _, victim = table[row]
            if victim >= 0:
                _leave(waiting, (own, victim), ended)
                evicted[own, victim] = row
            waiting[own, key] = row
            evicted.pop((own, key), None)
            row += 1
    return Outcomes(ended, cost >= 0, used, cost)


def _leave(waiting: dict[tuple[int, int], int], at: tuple[int, int], ended: np.ndarray) -> None:
    """An expert is evicted: a load of it that nothing used was for nothing."""
    load = waiting.pop(at, None)
    if load is not None:
        ended[load] = WASTED
