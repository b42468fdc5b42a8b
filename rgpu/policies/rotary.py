"""Rotary residency in its simplest published form: score z = W_r h against expert signatures, move a few slots a step.

Source: KR 10-2026-0070380 (published application), transform (i) "rotation projection", one head, each layer by itself;
arXiv 2605.29135 reports the system. The public record leaves these open, and here they are: signatures are the mean
input of the tokens routed to each expert on the calibration split, centred on the layer's mean and scaled to length 1;
W_r is the identity, or a random rotation as a control; at most `step` slots change an event; the pool starts with the
lowest ids; a routed expert that is not resident is always served, and kept only if its score earns it a slot. Counts
and recency are never used. On traces without hidden states the routing vector takes the hidden state's place.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rgpu.errors import InputError
from rgpu.policies.calibration import mean_inputs
from rgpu.policies.hooks import beats, lowest, wish_by_score
from rgpu.policies.loop import CAP, CHANGES, R0, R1, R2, R3, REG, compiled, hook, loop, no_access, nothing
from rgpu.policies.policy import Setting, Traits

SCORE, SIGNATURE = 0, 1  # f[SCORE, key]; f[SIGNATURE + key, :F] the rotated signature
EXPERTS, FIRST, STEP, LEFT = R0, R1, R2, R3  # registers: experts a layer, its first key, slots a step, slots left


@hook
def project(m, f, keys, weights, feature):
    m[REG, LEFT] = m[REG, STEP]
    if keys.shape[0] == 0:
        return
    first = keys[0] // m[REG, EXPERTS] * m[REG, EXPERTS]
    m[REG, FIRST] = first
    for e in range(m[REG, EXPERTS]):
        total = 0.0
        for d in range(feature.shape[0]):
            total += f[SIGNATURE + first + e, d] * feature[d]
        f[SCORE, first + e] = total


@hook
def admit(m, f, key):
    return m[REG, LEFT] > 0 and beats(m, f, SCORE, key)


@hook
def arrive(m, f, key):
    m[REG, LEFT] -= 1


@hook
def victim(m, f):
    return lowest(m, f, SCORE)


@hook
def wish(m, f):
    m[REG, CHANGES] = max(0, m[REG, LEFT])
    return wish_by_score(m, f, SCORE, m[REG, FIRST], m[REG, EXPERTS], -np.inf)


@compiled
def run(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog):
    loop(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog,
         project, admit, victim, nothing, arrive, no_access, wish)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Rotary:
    """`step`: slots that may change an event; `rotation`: "identity" or "random" (orthogonal, keyed by the run's seed)."""

    step: int = 2
    rotation: str = "identity"
    name: ClassVar[str] = "rotary"
    traits: ClassVar[Traits] = Traits(
        frows=1, signatures=True, staging=True, feature="hidden", calibration=True, demand=False
    )
    run: ClassVar = staticmethod(run)

    def __post_init__(self) -> None:
        if self.step < 1:
            raise InputError(f"policy.step: got {self.step}; expected a whole number from 1; set policy.step=2")
        if self.rotation not in ("identity", "random"):
            raise InputError(f"policy.rotation: got {self.rotation!r}; expected identity or random; choose one")

    def prepare(self, setting: Setting) -> None:
        setting.m[:, REG, EXPERTS] = setting.shape.experts
        setting.m[:, REG, STEP] = self.step
        for layer in range(setting.shape.layers):
            signature_EF = mean_inputs(setting.calibration, layer, setting.feature)
            if self.rotation == "random":
                rng = np.random.default_rng((setting.seed, layer))
                q, _ = np.linalg.qr(rng.standard_normal((signature_EF.shape[1],) * 2))
                signature_EF = signature_EF @ q  # <W_r h, s> = <h, W_r^T s>
            first = SIGNATURE + int(setting.base[layer])
            rows = slice(first, first + setting.shape.experts)
            setting.f[setting.pool_of[layer], rows, : signature_EF.shape[1]] = signature_EF

    def fill(self, setting: Setting) -> list[np.ndarray]:
        keys = int(setting.base[-1]) + setting.shape.experts
        return [np.arange(min(r[CAP], keys)) for r in setting.m[:, REG]]
