"""Admission plugs: which misses a policy may keep. Beside any policy: `policy=lru admission=second_hit`.

A miss that is refused is served from a staging slot (or in place) and not kept, so staging comes out of the budget.
Sources: bypass of low gate scores as in HOBBIT (arXiv 2411.01433), second hit as in 2Q's A1out (Johnson and Shasha
1994) and CDN caches, capped inserts as in llama.cpp pull request 27861 (`--moe-expert-cache-inserts`).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from rgpu.errors import InputError
from rgpu.policies.gate import CAPPED, LOW_SCORE, PARTS, SECOND_HIT
from rgpu.policies.policy import Policy, Setting, Traits
from rgpu.policies.state import GATE, GATE_VALUE, REG


@dataclass(frozen=True, slots=True)
class Always:
    """Every miss the policy wants is kept; no parameters."""

    name: ClassVar[str] = "always"


@dataclass(frozen=True, slots=True)
class LowScore:
    """Refuse a miss whose gate weight is under `share` of the mean weight of its event's members."""

    share: float = 0.5
    name: ClassVar[str] = "low_score"
    kind: ClassVar[int] = LOW_SCORE

    def __post_init__(self) -> None:
        if isinstance(self.share, bool) or not 0 <= self.share <= 1000:
            raise InputError(f"admission.share: got {self.share!r}; expected a number from 0; set admission.share=0.5")

    @property
    def value(self) -> int:
        return round(self.share * PARTS)


@dataclass(frozen=True, slots=True)
class SecondHit:
    """Keep a miss only if the expert also missed within the last `window` passes (events of its layer)."""

    window: int = 64
    name: ClassVar[str] = "second_hit"
    kind: ClassVar[int] = SECOND_HIT

    def __post_init__(self) -> None:
        _whole("window", self.window)

    @property
    def value(self) -> int:
        return self.window


@dataclass(frozen=True, slots=True)
class Capped:
    """Keep at most `inserts` misses of an event, the first in rank order."""

    inserts: int = 1
    name: ClassVar[str] = "capped"
    kind: ClassVar[int] = CAPPED

    def __post_init__(self) -> None:
        _whole("inserts", self.inserts)

    @property
    def value(self) -> int:
        return self.inserts


def _whole(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"admission.{name}: got {value!r}; expected a whole number from 1; set admission.{name}=1")


@dataclass(frozen=True)
class Admitted:
    """`policy` behind an admission plug; everything else is the policy's own."""

    policy: Any
    plug: Any

    @property
    def name(self) -> str:
        return f"{self.policy.name}+{self.plug.name}"

    @property
    def traits(self) -> Traits:
        own: Traits = self.policy.traits
        return replace(own, staging=True, weights=own.weights or isinstance(self.plug, LowScore))

    @property
    def run(self) -> Callable[..., None] | None:
        return getattr(self.policy, "run", None)

    @property
    def hooks(self) -> dict[str, Any] | None:
        return getattr(self.policy, "hooks", None)

    def prepare(self, setting: Setting) -> None:
        if prepare := getattr(self.policy, "prepare", None):
            prepare(setting)
        setting.m[:, REG, GATE], setting.m[:, REG, GATE_VALUE] = self.plug.kind, self.plug.value
        if isinstance(self.plug, SecondHit):  # a pool of several layers sees an event of each in every pass
            setting.m[:, REG, GATE_VALUE] *= np.bincount(setting.pool_of, minlength=len(setting.m))

    def resized(self, m: np.ndarray, f: np.ndarray) -> None:
        if resized := getattr(self.policy, "resized", None):
            resized(m, f)

    def fill(self, setting: Setting) -> list[np.ndarray]:
        if fill := getattr(self.policy, "fill", None):
            return fill(setting)  # type: ignore[no-any-return]
        return [np.zeros(0, np.int64)] * len(setting.m)


def admitted(policy: Policy, plug: Any) -> Policy:
    """The policy with the plug before it; `Always` changes nothing. A bound decides admission itself: InputError."""
    if isinstance(plug, Always):
        return policy
    if policy.traits.needs_future:
        raise InputError(
            f"admission: got {plug.name} for the clairvoyant {policy.name}; expected a policy that does not know the "
            "future; set admission=always"
        )
    return Admitted(policy, plug)
