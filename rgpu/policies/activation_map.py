"""Activation map: match the running sequence's expert counts to maps of past sequences; evict what the match uses least.

Source: MoE-Infinity (arXiv 2401.14361, 2024), expert activation matrices and their collection. Kept: a map of counts by
layer and expert, cosine similarity to a stored collection of representative maps, eviction of the lowest expected activation
share, weighted so that early layers stay. Differs: the collection is spherical k-means (started from the farthest maps) of
the calibration sequences; events do not say where a sequence ends, so the running map fades with a half-life and is only
emptied with the pool (`replay.reset=sequence`); the match is looked at again every `rematch` passes, and until the first
time the calibration mean serves; no prefetching. A per-layer pool sees its own layer's row of the maps. Ties: least recent.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rgpu.errors import InputError
from rgpu.policies.calibration import activation_maps
from rgpu.policies.fading import NOW, start_clock, tick
from rgpu.policies.heap import HEAP_FROM, HEAP_ROWS, drop, least, rebuild, track
from rgpu.policies.hooks import lean
from rgpu.policies.loop import (
    CLOCK,
    EVENT,
    MADE,
    OWN,
    R0,
    R1,
    R2,
    R3,
    REG,
    always,
    compiled,
    loop,
    no_wish,
)
from rgpu.policies.policy import Setting, Traits

LAST, HEAP = OWN, OWN + 1
MOST = 8  # maps a collection can hold
# The clock; expected share of each key (what is evicted by); similarity so far; layer weights; the maps, of length 1.
FADE, SHARE, NEARNESS, EARLY, MAPS = range(5)
LAYERS, MATCH, REMATCH, STORED = R0, R1, R2, R3  # layers of the pool; the map in use; passes between looks; maps


@lean
def follow(m, f, keys, weights, feature):
    if (m[REG, EVENT] - 1) % m[REG, LAYERS] == 0:
        time = (m[REG, EVENT] - 1) // m[REG, LAYERS] + 1
        before = f[FADE, NOW]
        tick(f, FADE, time)
        if f[FADE, NOW] <= before:  # a new epoch of the clock: what was counted so far weighs half as much in it
            for i in range(m[REG, STORED]):
                f[NEARNESS, i] *= 0.5
        if time > 1 and (time - 1) % m[REG, REMATCH] == 0:
            choose(m, f)
    for i in range(m[REG, STORED]):
        total = 0.0
        for j in range(keys.shape[0]):
            total += f[MAPS + i, keys[j]]
        f[NEARNESS, i] += total * f[FADE, NOW]


@lean
def choose(m, f):
    """Take the stored map most like the running one, ties to the first."""
    best = 0
    for i in range(1, m[REG, STORED]):
        if f[NEARNESS, i] > f[NEARNESS, best]:
            best = i
    if best != m[REG, MATCH]:
        m[REG, MATCH] = best
        for key in range(f.shape[1]):
            f[SHARE, key] = f[MAPS + best, key] * f[EARLY, key]
        if m[REG, MADE] >= HEAP_FROM:
            rebuild(m, HEAP, f, SHARE, LAST)


@lean
def touch(m, f, key, hit):
    m[LAST, key] = m[REG, CLOCK]
    track(m, HEAP, f, SHARE, LAST, key)


@lean
def arrive(m, f, key):
    m[LAST, key] = m[REG, CLOCK]
    track(m, HEAP, f, SHARE, LAST, key)


@lean
def leave(m, f, key):
    drop(m, HEAP, f, SHARE, LAST, key)


@lean
def victim(m, f):
    return least(m, HEAP, f, SHARE, LAST)


@compiled
def run(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog):
    loop(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog,
         follow, always, victim, leave, arrive, touch, no_wish)  # fmt: skip


def collection(maps_SK: np.ndarray, count: int, rounds: int = 20) -> np.ndarray:
    """float64 [<= count, K]: centres of spherical k-means, started from the first map and then the least similar ones."""
    length = np.linalg.norm(maps_SK, axis=1)
    maps_SK = maps_SK[length > 0] / length[length > 0, None]
    if not len(maps_SK):
        return np.zeros((1, maps_SK.shape[1]))
    chosen = [0]
    while len(chosen) < min(count, len(maps_SK)):
        chosen.append(int((maps_SK @ maps_SK[chosen].T).max(1).argmin()))
    centres = maps_SK[chosen]
    for _ in range(rounds):
        owner = (maps_SK @ centres.T).argmax(1)
        for i in range(len(centres)):
            if (owner == i).any():
                mean = maps_SK[owner == i].mean(0)
                centres[i] = mean / np.linalg.norm(mean)
    return centres


@dataclass(frozen=True, slots=True)
class ActivationMap:
    """`maps`: stored maps a pool, up to 8; `rematch`: passes between two looks; `half_life`: passes, of the running map."""

    maps: int = 8
    rematch: int = 16
    half_life: int = 256
    name: ClassVar[str] = "activation_map"
    traits: ClassVar[Traits] = Traits(rows=1 + HEAP_ROWS, frows=MAPS + MOST, calibration=True)
    run: ClassVar = staticmethod(run)

    def __post_init__(self) -> None:
        for name, most in (("maps", MOST), ("rematch", 1 << 30), ("half_life", 1 << 30)):
            if not 1 <= getattr(self, name) <= most:
                raise InputError(f"policy.{name}: got {getattr(self, name)}; expected 1 to {most}; set it so")

    def prepare(self, setting: Setting) -> None:
        start_clock(setting.f, FADE, self.half_life)
        setting.m[:, REG, [MATCH, REMATCH]] = -1, self.rematch
        maps_SLE = activation_maps(setting.calibration)
        for p in range(len(setting.m)):
            mine = np.flatnonzero(setting.pool_of == p)
            keys = (setting.base[mine][:, None] + np.arange(setting.shape.experts)).ravel()
            centres_IK = collection(maps_SLE[:, mine].reshape(len(maps_SLE), -1), self.maps)
            setting.m[p, REG, [LAYERS, STORED]] = len(mine), len(centres_IK)
            f = setting.f[p]
            f[MAPS : MAPS + len(centres_IK), keys] = centres_IK
            f[EARLY, keys] = np.repeat(1.0 - np.arange(len(mine)) / len(mine), setting.shape.experts)
            f[SHARE, keys] = maps_SLE[:, mine].mean(0).ravel() * f[EARLY, keys]
