"""`Decision`: what a controller says about one event, and in which order its members are served.

Legend: U union members.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from rgpu.policies.loop import BYPASS


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do for one event, or one batch of proactive loads. Arrays are aligned with `experts` (int32 [U]).

    `layers` int16 [U]; `codes` as in `policies.loop` (>= 0: load into that slot); `victims` keys evicted (-1 none);
    `slots`: where the member is or goes (-1: a staging slot, or dropped). `waves`: members served together, in order:
    hits in the first, staged misses at the end, at most `staging` a wave. Empty for proactive loads.
    """

    pool: int
    kind: int
    layers: np.ndarray
    experts: np.ndarray
    codes: np.ndarray
    victims: np.ndarray
    slots: np.ndarray
    waves: list[np.ndarray]


def split_waves(codes: np.ndarray, slots: np.ndarray, staging: int) -> Iterator[np.ndarray]:
    """Members served together, as index arrays. A load whose slot is taken within the current wave begins the next one:
    the loop reuses a slot only when every resident of the wave has been served."""
    if len(codes) and codes.max() < 0 and not (codes == BYPASS).any():
        yield np.arange(len(codes))
        return
    wave = [int(i) for i in np.flatnonzero((codes != BYPASS) & (codes < 0))]
    taken = {int(slots[i]) for i in wave}
    for i in np.flatnonzero(codes >= 0):
        if int(slots[i]) in taken:
            yield np.asarray(wave, np.int64)
            wave, taken = [], set()
        wave.append(int(i))
        taken.add(int(slots[i]))
    if wave:
        yield np.asarray(wave, np.int64)
    staged = np.flatnonzero(codes == BYPASS)
    for start in range(0, len(staged), max(1, staging)):
        yield staged[start : start + max(1, staging)]
