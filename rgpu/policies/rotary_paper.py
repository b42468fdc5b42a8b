"""Rotary residency as published, every open choice a parameter: what is resident never depends on counts or recency.

Source: KR 10-2026-0070380 (published application), claims 1 to 10; arXiv 2605.29135 reports the system. The four
transforms (projection, phase, cyclic shift, trajectory), alone or added up; W_r identity, random, calibrated on the
orthogonal group, unconstrained linear, turned online; heads; per-layer, grouped, synchronised and switching modes;
adaptive step, cycle and window; return on recurrence. What the record leaves open is named in `rotation.options`.

Hit rate and misses may set the step, the mode and how W_r turns (claims 5, 7, 8), never which id. The mode follows the
pools: a pool is one rotation domain, so grouped needs pool.scope=groupN and synchronised pool.scope=global; there the
first layer's input decides once a token for every layer, and signatures of the others are taken in its space. A layer's
share of a pool is fixed. With router rows as signatures, W_r the identity and no step limit this is `router_lag` on
logits; with the defaults it is `rotary`, except that after an event its members may make room like any other.
"""

from dataclasses import dataclass
from typing import ClassVar

from rgpu.policies.loop import compiled, loop, no_access, nothing
from rgpu.policies.rotation.decide import decide
from rgpu.policies.rotation.options import Rotation
from rgpu.policies.rotation.slots import admit, arrive, victim, wish


@compiled
def run(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog):
    loop(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog,
         decide, admit, victim, nothing, arrive, no_access, wish)  # fmt: skip


@dataclass(frozen=True, slots=True)
class RotaryPaper(Rotation):
    """The published method; parameters in `Rotation`."""

    name: ClassVar[str] = "rotary_paper"
    run: ClassVar = staticmethod(run)
