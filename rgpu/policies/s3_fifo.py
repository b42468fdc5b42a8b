"""S3-FIFO: a small FIFO sieves out what is used once, a main FIFO gives second chances, ghosts let the sieved come back.

Yang et al. 2023, "FIFO queues are all you need for cache eviction" (SOSP), algorithm 1. Uses are counted to 3, hits only. A
miss found among the ghosts enters main, any other small. While small holds its share of the slots the victim is
sought there: from its oldest, who has `promote` uses moves to main with its count cleared, the first other goes and
becomes a ghost; otherwise main's oldest is sought, who has uses left returns to main's head with one use less. Members
of the current wave keep place and count; where they are all that a queue holds, the other queue gives the victim. With
`spill`, as libCacheSim does, misses go to main once small has its share, until the first eviction. A proactive load's
first use counts as a hit.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rgpu.errors import InputError
from rgpu.policies.lists import LINKED, drop_tail, length, move_front, oldest_free, on_list, push_front, remove, tight
from rgpu.policies.loop import CAP, OWN, R0, R1, R2, R3, REG, SLOT_OF, always, compiled, loop, no_event, no_wish
from rgpu.policies.policy import Setting, Traits

L, SMALL, MAIN, GHOST = OWN, 1, 2, 3
USES = OWN + LINKED  # m[USES, key]: hits since it was loaded or promoted, less the second chances it took; 0 to 3
SMALL_SHARE, GHOST_SHARE, PROMOTE, SPILL = R0, R1, R2, R3  # registers


@tight
def touch(m, f, key, hit):
    if hit and m[USES, key] < 3:
        m[USES, key] += 1


@tight
def arrive(m, f, key):
    m[USES, key] = 0
    if on_list(m, L, key) == GHOST:
        move_front(m, L, MAIN, key)
    elif m[REG, SPILL] and length(m, L, SMALL) >= m[REG, SMALL_SHARE]:
        push_front(m, L, MAIN, key)
    else:
        push_front(m, L, SMALL, key)
    while length(m, L, GHOST) > m[REG, GHOST_SHARE]:
        drop_tail(m, L, GHOST)


@tight
def leave(m, f, key):
    if on_list(m, L, key) == SMALL:
        move_front(m, L, GHOST, key)
    else:
        remove(m, L, key)


@tight
def from_small(m):
    key = oldest_free(m, L, SMALL)
    while key >= 0 and m[USES, key] >= m[REG, PROMOTE]:
        m[USES, key] = 0
        move_front(m, L, MAIN, key)
        key = oldest_free(m, L, SMALL)
    return key


@tight
def from_main(m):
    key = oldest_free(m, L, MAIN)
    while key >= 0 and m[USES, key] > 0:
        m[USES, key] -= 1
        move_front(m, L, MAIN, key)
        key = oldest_free(m, L, MAIN)
    return key


@tight
def victim(m, f):
    m[REG, SPILL] = 0
    key = -1
    if length(m, L, SMALL) >= m[REG, SMALL_SHARE]:
        key = from_small(m)
    if key < 0:
        key = from_main(m)
    if key < 0:
        key = from_small(m)
    if key < 0:  # all of main was pinned, all else in small has just been promoted
        key = from_main(m)
    return m[SLOT_OF, key]


@compiled
def run(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog):
    loop(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog,
         no_event, always, victim, leave, arrive, touch, no_wish)  # fmt: skip


@dataclass(frozen=True, slots=True)
class S3Fifo:
    """`small`, `ghost`: shares of the slots; `promote`: hits that earn main; `spill`: fill an empty pool's main early."""

    small: float = 0.1
    ghost: float = 0.9
    promote: int = 2
    spill: bool = False
    name: ClassVar[str] = "s3_fifo"
    traits: ClassVar[Traits] = Traits(rows=LINKED + 1)
    run: ClassVar = staticmethod(run)

    def __post_init__(self) -> None:
        if not 0 < self.small <= 1:
            raise InputError(
                f"policy.small: got {self.small}; expected a share above 0, at most 1; set policy.small=0.1"
            )
        if self.ghost <= 0:
            raise InputError(f"policy.ghost: got {self.ghost}; expected a share above 0; set policy.ghost=0.9")
        if not 1 <= self.promote <= 3:
            raise InputError(f"policy.promote: got {self.promote}; expected 1, 2 or 3; set policy.promote=2")

    def prepare(self, setting: Setting) -> None:
        setting.m[:, REG, PROMOTE], setting.m[:, REG, SPILL] = self.promote, self.spill
        for m, f in zip(setting.m, setting.f, strict=True):
            self.resized(m, f)

    def resized(self, m: np.ndarray, f: np.ndarray) -> None:
        m[REG, SMALL_SHARE] = max(1, int(self.small * m[REG, CAP]))
        m[REG, GHOST_SHARE] = max(1, int(self.ghost * m[REG, CAP]))
