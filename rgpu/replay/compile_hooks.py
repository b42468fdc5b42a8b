"""A user's plain Python policy compiled like the built-in ones, where numba can, and trusted only after it was compared."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit

from rgpu.policies.loop import DEFAULTS, OPTIONS, loop
from rgpu.policies.plain import Plain
from rgpu.policies.policy import Policy, Traits
from rgpu.replay.engine import ReplayResult, replay
from rgpu.replay.pool import PoolConfig


@dataclass(frozen=True)
class CompiledPlain:
    """The same policy with a compiled `run`."""

    name: str
    traits: Traits
    run: Any


def compiled_or_plain(policy: Policy, trace: Any, pool: PoolConfig, **options: Any) -> tuple[Policy, str]:
    """(policy to use, why): compiled if numba takes the hooks and decides as plain Python does on the whole of `trace`.

    `trace` should be a small part of what is replayed afterwards; `options` go to `replay`.
    """
    if not isinstance(policy, Plain):
        return policy, "built in"
    fast = CompiledPlain(policy.name, policy.traits, _compile(policy.hooks))
    try:
        found = replay(trace, fast, pool, decisions=True, **options)
    except Exception as error:  # whatever numba makes of somebody's Python
        return policy, f"plain Python: numba cannot compile it ({type(error).__name__})"
    slow = replay(trace, policy, pool, decisions=True, **options)
    if not same_decisions(found, slow):
        return policy, "plain Python: compiled, it decided otherwise"
    return fast, f"compiled, the same decisions as plain Python on {slow.accesses:,} accesses"


def same_decisions(a: ReplayResult, b: ReplayResult) -> bool:
    """Whether two replays with their decisions kept decided everything alike."""
    first, second = a.decisions, b.decisions
    assert first is not None and second is not None
    names = ("codes", "victims", "proactive", "fills")
    return all(np.array_equal(getattr(first, name), getattr(second, name)) for name in names)


def _compile(hooks: dict[str, Any]) -> Any:
    """`run` with the hooks inlined, as `rgpu.policies.loop.compiled` makes it of a file of its own; not cached on disk."""
    given = {name: getattr(h, "py_func", h) for name, h in hooks.items()}
    made = {name: njit(**OPTIONS)(h) for name, h in given.items()}
    every = {**DEFAULTS, **made}
    on_event, admit, victim = every["on_event"], every["admit"], every["victim"]
    on_evict, on_admit, on_access = every["on_evict"], every["on_admit"], every["on_access"]
    desired = every["desired"]

    @njit(**OPTIONS)
    def run(m, f, pool, kind, offs, keys, weights, nexts, touch, features, codes, victims, counts, plog):  # type: ignore[no-untyped-def]
        loop(m, f, pool, kind, offs, keys, weights, nexts, touch, features, codes, victims, counts, plog,
             on_event, admit, victim, on_evict, on_admit, on_access, desired)  # fmt: skip

    return run
