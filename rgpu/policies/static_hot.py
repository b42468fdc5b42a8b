"""Static hot set: experts profiled as most used, loaded once and never exchanged; misses pass through staging.

Source: profile-guided offloading (MoE hot-expert pinning in llama.cpp forks such as thecodacus/llama.cpp pull request 5;
popularity placement of Fiddler, arXiv 2402.07033). Kept: a fixed set by counted uses. What the profile sees is `scope`:
"global" all of the calibration split, which is disjoint from the scored text; "domain" only its sequences of `domain`,
whatever is replayed; "sequence" the first `passes` passes since the pool was last emptied: nothing is resident while it
looks (every access is a staged miss), then the set is loaded at once and stays. That is once a sequence only under
`replay.reset=sequence`. Ties: lowest key.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rgpu.errors import InputError
from rgpu.policies.calibration import domain_rows
from rgpu.policies.hooks import lowest
from rgpu.policies.loop import CAP, CHANGES, EVENT, R0, REG, WANT, compiled, hook, loop, never, no_access, nothing
from rgpu.policies.policy import Setting, Traits

SCORE, TAKEN = 0, 1  # f[SCORE, key]: uses in the profile; f[TAKEN, key]: already wished
PROFILED = R0  # events after which the set is chosen; 0: it was calibrated
SCOPES = ("global", "domain", "sequence")


@hook
def profile(m, f, keys, weights, feature):
    if m[REG, EVENT] <= m[REG, PROFILED]:
        for j in range(keys.shape[0]):
            f[SCORE, keys[j]] += 1.0


@hook
def settle_in(m, f):
    """The profiled set, once: most used first, ties to the lowest key."""
    if m[REG, PROFILED] == 0 or m[REG, EVENT] != m[REG, PROFILED]:
        return 0
    n = 0
    while n < m[REG, CAP]:
        best = -1
        for key in range(f.shape[1]):
            if f[TAKEN, key] == 0 and f[SCORE, key] > 0 and (best < 0 or f[SCORE, key] > f[SCORE, best]):
                best = key
        if best < 0:
            break
        f[TAKEN, best] = 1.0
        m[WANT, n] = best
        n += 1
    return n


@hook
def victim(m, f):
    return lowest(m, f, SCORE)


@compiled
def run(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog):
    loop(m, f, pool, kind, offs, keys, weights, nexts, touch_order, features, codes, victims, counts, plog,
         profile, never, victim, nothing, nothing, no_access, settle_in)  # fmt: skip


@dataclass(frozen=True, slots=True)
class StaticHot:
    """`scope` of the profile: "global", "domain" (of the calibration split, named by `domain`), or "sequence" (the first
    `passes`)."""

    scope: str = "global"
    domain: str | None = None
    passes: int = 32
    name: ClassVar[str] = "static_hot"
    run: ClassVar = staticmethod(run)

    @property
    def traits(self) -> Traits:
        return Traits(frows=2, staging=True, calibration=self.scope != "sequence", demand=False)

    def __post_init__(self) -> None:
        if self.scope not in SCOPES:
            raise InputError(f"policy.scope: got {self.scope!r}; expected one of {', '.join(SCOPES)}")
        if (self.scope == "domain") != (self.domain is not None):
            raise InputError(
                f"policy.domain: got {self.domain!r} with policy.scope={self.scope}; expected a name with scope=domain "
                "and only there; set both or neither"
            )
        if self.passes < 1:
            raise InputError(f"policy.passes: got {self.passes}; expected passes from 1; set policy.passes=32")

    def prepare(self, setting: Setting) -> None:
        if self.scope == "sequence":
            layers = np.bincount(setting.pool_of, minlength=len(setting.m))
            setting.m[:, REG, PROFILED] = self.passes * layers
            setting.m[:, REG, CHANGES] = setting.m[:, REG, CAP]
            return
        trace = setting.calibration
        rows = slice(None) if self.domain is None else domain_rows(trace, self.domain, self.name)
        for layer in range(setting.shape.layers):
            ids = trace.expert_ids[rows, layer].ravel()
            counts = np.bincount(ids[ids != trace.missing], minlength=setting.shape.experts)
            base = setting.base[layer]
            setting.f[setting.pool_of[layer], SCORE, base : base + setting.shape.experts] = counts

    def fill(self, setting: Setting) -> list[np.ndarray]:
        if self.scope == "sequence":
            return [np.zeros(0, np.int64)] * len(setting.m)
        keys = int(setting.base.max()) + setting.shape.experts
        tops = np.argsort(-setting.f[:, SCORE, :keys], axis=1, kind="stable")
        return [top[: setting.m[p, REG, CAP]] for p, top in enumerate(tops)]
