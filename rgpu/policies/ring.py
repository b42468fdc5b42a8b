"""Ring: blind rotation. The pool holds consecutive expert ids and moves `step` ids on after every event of its layer.

The control for every rotary claim: it knows nothing, so its expected hit rate is the share of experts that fit, N/E.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rgpu.errors import InputError
from rgpu.policies.hooks import oldest
from rgpu.policies.loop import (
    CAP,
    CHANGES,
    CLOCK,
    OWN,
    R0,
    R1,
    REG,
    WANT,
    compiled,
    hook,
    loop,
    never,
    no_access,
    no_event,
    nothing,
)
from rgpu.policies.policy import Setting, Traits

BORN = OWN  # m[BORN, key]: clock of the load: the ring's trailing end is the oldest
POSITION, LENGTH = R0, R1  # registers: next id to load, ids on the ring


@hook
def arrive(m, f, key):
    m[BORN, key] = m[REG, CLOCK]


@hook
def advance(m, f):
    n = min(m[REG, CHANGES], m[REG, CAP])
    for j in range(n):
        m[WANT, j] = (m[REG, POSITION] + j) % m[REG, LENGTH]
    m[REG, POSITION] = (m[REG, POSITION] + n) % m[REG, LENGTH]
    return n


@hook
def victim(m, f):
    return oldest(m, BORN)


@compiled
def run(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog):
    loop(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog,
         no_event, never, victim, nothing, arrive, no_access, advance)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Ring:
    """Blind rotation by `step` experts an event."""

    step: int = 1
    name: ClassVar[str] = "ring"
    traits: ClassVar[Traits] = Traits(rows=1, staging=True, demand=False)
    run: ClassVar = staticmethod(run)

    def __post_init__(self) -> None:
        if self.step < 1:
            raise InputError(f"policy.step: got {self.step}; expected a whole number from 1; set policy.step=1")

    def prepare(self, setting: Setting) -> None:
        length = int(setting.base[-1]) + setting.shape.experts
        for registers in setting.m[:, REG]:
            registers[CHANGES] = self.step
            registers[LENGTH] = length
            registers[POSITION] = min(registers[CAP], length)

    def fill(self, setting: Setting) -> list[np.ndarray]:
        return [np.arange(min(r[CAP], r[LENGTH])) for r in setting.m[:, REG]]
