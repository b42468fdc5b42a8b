"""Static hot set: the experts most used on calibration text, loaded once and never exchanged; misses pass through staging.

What profile-guided offloading does (for example MoE hot-expert pinning in llama.cpp forks); the calibration text is
disjoint from the scored text.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rgpu.policies.hooks import lowest
from rgpu.policies.loop import CAP, REG, compiled, hook, loop, never, no_access, no_event, no_wish, nothing
from rgpu.policies.policy import Setting, Traits

SCORE = 0  # f[SCORE, key]: uses on the calibration split


@hook
def victim(m, f):
    return lowest(m, f, SCORE)


@compiled
def run(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog):
    loop(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog,
         no_event, never, victim, nothing, nothing, no_access, no_wish)  # fmt: skip


@dataclass(frozen=True, slots=True)
class StaticHot:
    """Hot set profiled on the calibration split; no parameters."""

    name: ClassVar[str] = "static_hot"
    traits: ClassVar[Traits] = Traits(frows=1, staging=True, calibration=True, demand=False)
    run: ClassVar = staticmethod(run)

    def prepare(self, setting: Setting) -> None:
        trace = setting.calibration
        for layer in range(setting.shape.layers):
            ids = trace.expert_ids[:, layer].ravel()
            counts = np.bincount(ids[ids != trace.missing], minlength=setting.shape.experts)
            base = setting.base[layer]
            setting.f[setting.pool_of[layer], SCORE, base : base + setting.shape.experts] = counts

    def fill(self, setting: Setting) -> list[np.ndarray]:
        keys = int(setting.base[-1]) + setting.shape.experts
        tops = np.argsort(-setting.f[:, SCORE, :keys], axis=1, kind="stable")
        return [top[: setting.m[p, REG, CAP]] for p, top in enumerate(tops)]
