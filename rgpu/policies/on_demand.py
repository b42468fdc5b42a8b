"""On demand: keep nothing; every routed expert is loaded into staging for its event. The floor in bytes of doing nothing."""

from dataclasses import dataclass
from typing import ClassVar

from rgpu.policies.hooks import oldest
from rgpu.policies.loop import CLOCK, OWN, REG, compiled, hook, loop, never, no_access, no_event, no_wish, nothing
from rgpu.policies.policy import Traits

BORN = OWN  # m[BORN, key]: clock of the load; only a prefetcher's loads are ever kept, the oldest goes first


@hook
def arrive(m, f, key):
    m[BORN, key] = m[REG, CLOCK]


@hook
def victim(m, f):
    return oldest(m, BORN)


@compiled
def run(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog):
    loop(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog,
         no_event, never, victim, nothing, arrive, no_access, no_wish)  # fmt: skip


@dataclass(frozen=True, slots=True)
class OnDemand:
    """No cache; no parameters."""

    name: ClassVar[str] = "on_demand"
    traits: ClassVar[Traits] = Traits(rows=1, staging=True)
    run: ClassVar = staticmethod(run)
