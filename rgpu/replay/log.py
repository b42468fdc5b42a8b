"""What a replay decided, as arrays: the timing model, the bounds and the auditor read this and nothing else of a policy.

Decisions that do not read the clock are made once for a policy and a capacity; every hardware point reuses their log.
Legend: V events, A accesses, P proactive loads, F initial loads, R stretches between two resets.
"""

from dataclasses import dataclass

import numpy as np

from rgpu.policies.loop import BYPASS, HIT, PREFETCH_HIT
from rgpu.replay.events import Events
from rgpu.replay.pool import Layout

AFTER, POOL, KEY, SLOT, VICTIM = range(5)  # columns of `proactive` and of `fills`


@dataclass(slots=True)
class DecisionLog:
    """Decisions in the order they were made, pass by pass and layer by layer.

    `codes` int32 [A] as in `policies.loop` (HIT, PREFETCH_HIT, BYPASS, or the slot a miss was loaded into); `victims`
    int32 [A] the key evicted for it, -1 none. `proactive` int64 [P, 5] rows (event after which it was submitted, pool,
    key, slot, victim key or -1), by event; `fills` int64 [F, 5] likewise, where the event is the first one of the
    stretch it precedes. `stretches` int64 [R + 1]: event bounds; at each but the last every pool starts empty.
    """

    policy: str
    events: Events
    layout: Layout
    codes: np.ndarray
    victims: np.ndarray
    proactive: np.ndarray
    fills: np.ndarray
    stretches: np.ndarray

    @property
    def hit(self) -> np.ndarray:
        """bool [A]: resident when its event began."""
        return (self.codes == HIT) | (self.codes == PREFETCH_HIT)

    @property
    def kept(self) -> np.ndarray:
        """bool [A]: missed, loaded and kept in a slot."""
        return self.codes >= 0

    @property
    def staged(self) -> np.ndarray:
        """bool [A]: missed and served without being kept."""
        return self.codes == BYPASS

    @property
    def sizes(self) -> np.ndarray:
        """int64 [A]: bytes of each access's expert (0 where sizes are unknown)."""
        return self.layout.size_of[np.repeat(self.events.pool, np.diff(self.events.offs)), self.events.keys]


def proactive_rows(first: int, pool_V: np.ndarray, plog: np.ndarray) -> np.ndarray:
    """Rows of `proactive` from the loop's own log (local event, key, slot, victim) of a run that began at event `first`."""
    event = plog[:, 0] + first
    return np.column_stack([event, pool_V[event].astype(np.int64), plog[:, 1:]])


def fill_rows(first: int, pool: int, keys: np.ndarray, slots: tuple[int, ...]) -> np.ndarray:
    """Rows of `fills`: what pool `pool` was given before event `first`."""
    placed = np.asarray(slots, np.int64)
    keys, placed = np.asarray(keys, np.int64)[placed >= 0], placed[placed >= 0]
    n = len(keys)
    return np.column_stack([np.full(n, first), np.full(n, pool), keys, placed, np.full(n, -1)])
