"""Rotary residency that may also count: the scores of `rotary_paper` plus weighted recency and frequency.

Not the published method, which excludes both (KR 10-2026-0070380, [0043]): a variant of ours, kept apart by name so
that only `rotary_paper` tests the claim. Recency is 2^(-age / half_life) in events since an expert's last use, frequency
a count that halves every `half_life` events; both, like every transform, are brought to mean 0 and deviation 1 over a
layer's experts before their weights apply.
"""

from dataclasses import dataclass
from typing import ClassVar

from rgpu.policies.loop import compiled, hook, loop, no_access, nothing
from rgpu.policies.policy import Setting
from rgpu.policies.rotation import state as s
from rgpu.policies.rotation.decide import decide
from rgpu.policies.rotation.options import Rotation
from rgpu.policies.rotation.prepare import prepare
from rgpu.policies.rotation.projection import blend
from rgpu.policies.rotation.slots import admit, arrive, victim, wish


@hook
def decide_and_count(m, f, keys, weights, feature):
    decide(m, f, keys, weights, feature)
    experts = m[s.INTS, s.EXPERTS]
    if keys.shape[0] == 0:
        return
    own = keys[0] // experts * experts
    decay = f[s.MORE, s.HALF_LIFE]
    for e in range(own, own + experts):
        f[s.FREQUENCY, e] *= decay
        f[s.RECENCY, e] *= decay
    for key in keys:
        f[s.FREQUENCY, key] += 1.0
        f[s.RECENCY, key] = 1.0
    for first in range(m[s.LIVE, s.FROM], m[s.LIVE, s.TO], experts):
        for h in range(m[s.INTS, s.HEADS]):
            blend(m, f, first, h, s.RECENCY, f[s.MORE, s.WEIGHT_RECENCY], False)
            blend(m, f, first, h, s.FREQUENCY, f[s.MORE, s.WEIGHT_FREQUENCY], False)


@compiled
def run(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog):
    loop(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog,
         decide_and_count, admit, victim, nothing, arrive, no_access, wish)  # fmt: skip


@dataclass(frozen=True, slots=True)
class RotaryHybrid(Rotation):
    """`Rotation`'s parameters, and `weight_recency`, `weight_frequency`, `half_life` (events of the layer)."""

    weight_recency: float = 1.0
    weight_frequency: float = 1.0
    half_life: float = 32.0
    name: ClassVar[str] = "rotary_hybrid"
    run: ClassVar = staticmethod(run)

    @property
    def standardised(self) -> bool:
        return True

    def prepare(self, setting: Setting) -> None:
        prepare(self, setting)
        setting.f[:, s.MORE, s.WEIGHT_RECENCY] = self.weight_recency
        setting.f[:, s.MORE, s.WEIGHT_FREQUENCY] = self.weight_frequency
        setting.f[:, s.MORE, s.HALF_LIFE] = 2.0 ** (-1.0 / self.half_life)
