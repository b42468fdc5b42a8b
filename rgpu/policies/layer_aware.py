"""Layer-aware eviction: the expert whose layer comes up latest goes; of one layer the least recently used.

Source: layers run in a fixed order, so a layer's experts cannot be needed before its turn: the layer-distance term of
HOBBIT's multidimensional eviction (arXiv 2411.01433, 2024) and DP/layer-ordered caches as in AdapMoE (arXiv 2408.10284).
Kept: that term alone, as a strict order. Differs: no frequency or score is mixed in. In a pool of one layer all distances
are equal and this is LRU; it only decides something where layers share a pool.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rgpu.policies.heap import HEAP_FROM, HEAP_ROWS, remove, settle, smallest
from rgpu.policies.hooks import lean
from rgpu.policies.loop import (
    CAP,
    CLOCK,
    KEY_OF,
    MADE,
    OWN,
    PIN,
    R0,
    R1,
    R2,
    REG,
    SLOT_OF,
    WAVE,
    always,
    compiled,
    loop,
    no_wish,
)
from rgpu.policies.policy import Setting, Traits

LAST, HEAP = OWN, OWN + 1  # clock of the last use or load; in large pools a heap by it for each layer
EXPERTS, LAYER, LAYERS = R0, R1, R2  # experts a layer; layer of the current event; layers of the pool


@lean
def begin(m, f, keys, weights, feature):
    if keys.shape[0] > 0:
        m[REG, LAYER] = keys[0] // m[REG, EXPERTS]


@lean
def arrive(m, f, key):
    m[LAST, key] = m[REG, CLOCK]
    if m[REG, MADE] >= HEAP_FROM:
        settle(m, HEAP, m, LAST, SLOT_OF, m[REG, EXPERTS], key)


@lean
def touch(m, f, key, hit):
    arrive(m, f, key)


@lean
def leave(m, f, key):
    if m[REG, MADE] >= HEAP_FROM:
        remove(m, HEAP, m, LAST, SLOT_OF, m[REG, EXPERTS], key)


@lean
def victim(m, f):
    layer = m[REG, LAYER]
    layers = m[REG, LAYERS]
    if m[REG, MADE] >= HEAP_FROM:
        for back in range(layers):  # the layer at work comes up latest, then the one before it, and so on
            key = smallest(m, HEAP, m, LAST, SLOT_OF, m[REG, EXPERTS], (layer - back + layers) % layers)
            if key >= 0:
                return m[SLOT_OF, key]
    slot = -1
    nearest = layers
    oldest = 0
    for c in range(m[REG, CAP]):
        key = m[KEY_OF, c]
        if key >= 0 and m[PIN, key] != m[REG, WAVE]:
            back = layer - key // m[REG, EXPERTS]
            if back < 0:
                back += layers
            if back < nearest or (back == nearest and m[LAST, key] < oldest):
                nearest = back
                oldest = m[LAST, key]
                slot = c
    return slot


@compiled
def run(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog):
    loop(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog,
         begin, always, victim, leave, arrive, touch, no_wish)  # fmt: skip


@dataclass(frozen=True, slots=True)
class LayerAware:
    """Latest next turn in layer order, then least recent; no parameters."""

    name: ClassVar[str] = "layer_aware"
    traits: ClassVar[Traits] = Traits(rows=1 + HEAP_ROWS)
    run: ClassVar = staticmethod(run)

    def prepare(self, setting: Setting) -> None:
        setting.m[:, REG, EXPERTS] = setting.shape.experts
        setting.m[:, REG, LAYERS] = np.bincount(setting.pool_of, minlength=len(setting.m))
