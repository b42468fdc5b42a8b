"""FIFO: evict the expert that was loaded first, whatever its use since."""

from dataclasses import dataclass
from typing import ClassVar

from rgpu.policies.hooks import oldest
from rgpu.policies.loop import CLOCK, OWN, REG, always, compiled, hook, loop, no_access, no_event, no_wish, nothing
from rgpu.policies.policy import Traits

BORN = OWN  # m[BORN, key]: clock of the load


@hook
def arrive(m, f, key):
    m[BORN, key] = m[REG, CLOCK]


@hook
def victim(m, f):
    return oldest(m, BORN)


@compiled
def run(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog):
    loop(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog,
         no_event, always, victim, nothing, arrive, no_access, no_wish)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fifo:
    """First in, first out; no parameters."""

    name: ClassVar[str] = "fifo"
    traits: ClassVar[Traits] = Traits(rows=1)
    run: ClassVar = staticmethod(run)
