"""What a policy is to the rest of rgpu: parameters, traits, and hooks that the decision loop runs.

A policy is a frozen dataclass of parameters with
    name    what results call it
    traits  what state it keeps and what it needs (`Traits`)
    run     the compiled loop with its hooks inlined; a policy in plain Python has `hooks` instead and runs uncompiled
    prepare optional, prepare(setting): writes parameters and calibration into the state once, before the first event
    resized optional, resized(m, f) of one pool: its slots have changed (`m[REG, CAP]`); what was derived from their number is
            derived anew. One that cannot go on with other slots says so with the trait `resizes`
    fill    optional, fill(setting): keys each pool is filled with before the first event, counted as loads
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from rgpu.errors import InputError
from rgpu.policies.loop import plain
from rgpu.types import MoEShape


@dataclass(frozen=True, slots=True)
class Traits:
    """`rows`/`frows`: the policy's rows of m and f; `signatures`: so many more rows of f for each key, as wide as the feature.
    `staging`: some misses are served without being kept, so
    staging slots come out of the budget. `needs_future`: clairvoyant. `bound`: an offline bound, never run live.
    `weights`: needs gate weights. `feature`: what
    `on_event` gets: "" nothing, "router" the router's probabilities, "hidden" the router's input (see replay.events).
    `calibration`: needs a trace to calibrate on. `demand`: loads only what was just missed. `forecast`: before an event is
    decided f[pool, 0, key] holds the newest forecast of each key, the chance that its layer's next event routes it (0
    without a predictor, and where nothing was forecast of that event yet). `resizes`: goes on when a pool's slots change
    between events."""

    rows: int = 0
    frows: int = 0
    staging: bool = False
    needs_future: bool = False
    bound: bool = False
    weights: bool = False
    feature: str = ""
    calibration: bool = False
    signatures: int = 0
    demand: bool = True
    forecast: bool = False
    resizes: bool = True


@dataclass(frozen=True, slots=True)
class Setting:
    """What `prepare` may use: the state, which pool holds which keys, and calibration data (None where not needed).

    `base[l]` is the key of expert 0 of layer l in its pool `pool_of[l]`; `seed` keys random choices. `memo` is shared by
    the replays of one grid.
    """

    m: np.ndarray
    f: np.ndarray
    shape: MoEShape
    pool_of: np.ndarray
    base: np.ndarray
    feature: str
    calibration: Any
    seed: int
    memo: dict[Any, Any] = field(default_factory=dict)

    def learned(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        """What `make` learns from the calibration trace, computed once for all replays that share `memo`.

        `key` names everything it depends on beside that trace; the value must not be written to.
        """
        whole = (id(self.calibration), self.feature, *key)
        if whole not in self.memo:
            self.memo[whole] = (self.calibration, make())  # the trace is held, so that no other can take its id
        return self.memo[whole][1]


class Policy(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def traits(self) -> Traits: ...


def runner(policy: Policy) -> Callable[..., None]:
    """The function that runs the decision loop with this policy's hooks."""
    compiled_run = getattr(policy, "run", None)
    if compiled_run is not None:
        return compiled_run  # type: ignore[no-any-return]
    hooks = getattr(policy, "hooks", None)
    if not isinstance(hooks, dict) or "victim" not in hooks:
        raise InputError(
            f"policy {type(policy).__name__}: got no `run` and no `hooks`; expected hooks with at least 'victim'; "
            "see docs/add_a_policy.md"
        )
    return plain(**hooks)
