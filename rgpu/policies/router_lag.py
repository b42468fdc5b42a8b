"""Lagged router: hold the experts that the layer's router scored highest at its last event.

The free baseline of every rotary or learned residency claim (a rotation with router rows as signatures and no rotation
is exactly this). Where a trace has router logits all experts are ranked; otherwise only the routed ones carry weight.
"""

from dataclasses import dataclass
from typing import ClassVar

from rgpu.errors import InputError
from rgpu.policies.hooks import beats, lowest, wish_by_score
from rgpu.policies.loop import CAP, CHANGES, R0, R1, R2, R3, REG, compiled, hook, loop, no_access, nothing
from rgpu.policies.policy import Setting, Traits

SCORE = 0  # f[SCORE, key]: the router's probability at the layer's last event
EXPERTS, FIRST, STEP, LEFT = R0, R1, R2, R3  # registers: experts a layer, its first key, slots a step, slots left


@hook
def score(m, f, keys, weights, feature):
    m[REG, LEFT] = m[REG, STEP]
    if keys.shape[0] == 0:
        return
    first = keys[0] // m[REG, EXPERTS] * m[REG, EXPERTS]
    m[REG, FIRST] = first
    for e in range(m[REG, EXPERTS]):
        f[SCORE, first + e] = feature[e]


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
    return wish_by_score(m, f, SCORE, m[REG, FIRST], m[REG, EXPERTS], 0.0)


@compiled
def run(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog):
    loop(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog,
         score, admit, victim, nothing, arrive, no_access, wish)  # fmt: skip


@dataclass(frozen=True, slots=True)
class RouterLag:
    """Top of the last event's router probabilities. `step`: slots that may change an event (null: no limit)."""

    step: int | None = None
    name: ClassVar[str] = "router_lag"
    traits: ClassVar[Traits] = Traits(frows=1, staging=True, weights=True, feature="router", demand=False)
    run: ClassVar = staticmethod(run)

    def __post_init__(self) -> None:
        if self.step is not None and (self.step < 1 or self.step != int(self.step)):
            raise InputError(f"policy.step: got {self.step}; expected a whole number from 1 or null; set policy.step=2")

    def prepare(self, setting: Setting) -> None:
        setting.m[:, REG, EXPERTS] = setting.shape.experts
        # an event admits at most its union and wishes for at most the pool
        setting.m[:, REG, STEP] = setting.m[:, REG, CAP] + setting.shape.experts if self.step is None else self.step
