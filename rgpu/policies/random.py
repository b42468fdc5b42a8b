"""Random: evict any expert the current event does not need, each equally likely. The no-skill demand policy."""

from dataclasses import dataclass
from typing import ClassVar

from rgpu.policies.hooks import random_slot
from rgpu.policies.loop import always, compiled, hook, loop, no_access, no_event, no_wish, nothing
from rgpu.policies.policy import Traits


@hook
def victim(m, f):
    return random_slot(m)


@compiled
def run(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog):
    loop(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog,
         no_event, always, victim, nothing, nothing, no_access, no_wish)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Random:
    """Uniform random eviction; the run's seed keys the draws."""

    name: ClassVar[str] = "random"
    traits: ClassVar[Traits] = Traits()
    run: ClassVar = staticmethod(run)
