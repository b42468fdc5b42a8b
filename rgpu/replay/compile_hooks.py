"""A user's plain Python policy compiled like the built-in ones, where numba can, and trusted only after it was compared."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numba.core.errors import NumbaError

from rgpu.errors import InputError
from rgpu.policies.guard import CHECKED, checked_victim, checked_wish
from rgpu.policies.loop import DEFAULTS, loop
from rgpu.policies.plain import Plain
from rgpu.policies.policy import Policy, Traits, runner
from rgpu.replay.audit import audit
from rgpu.replay.engine import ReplayResult, replay
from rgpu.replay.log import KEY, POOL
from rgpu.replay.log_file import LogFile
from rgpu.replay.pool import PoolConfig


@dataclass(frozen=True)
class CompiledPlain:
    """The same policy with a compiled `run` that checks every index, victim and wish."""

    name: str
    traits: Traits
    file: str
    run: Any


def written_by_user(policy: Any) -> Plain | CompiledPlain | None:
    """The user's own policy, behind an admission plug or not; None for one of rgpu's."""
    inner = policy
    while hasattr(inner, "policy"):  # behind a plug, or in pools that an allocator splits
        inner = inner.policy
    return inner if isinstance(inner, Plain | CompiledPlain) else None


def compiled_or_plain(policy: Policy, trace: Any, pool: PoolConfig, **options: Any) -> tuple[Policy, str]:
    """(policy to use, why): compiled if numba takes the hooks and decides as plain Python does on the whole of `trace`.

    `trace` should be a small part of what is replayed afterwards; `options` go to `replay`. Raises InputError for hooks
    that fail or decide what is not allowed.
    """
    if not isinstance(policy, Plain):
        return policy, "built in"
    slow = replay(trace, policy, pool, decisions=True, **options)
    check_decisions(policy, slow)
    fast = CompiledPlain(policy.name, policy.traits, policy.file, _compile(policy))
    try:
        found = replay(trace, fast, pool, decisions=True, **options)
    except Exception as error:  # whatever numba makes of somebody's Python
        return policy, f"plain Python: numba cannot compile it ({type(error.__cause__ or error).__name__})"
    if not same_decisions(found, slow):
        return policy, "plain Python: compiled, it decided otherwise"
    return fast, f"compiled, the same decisions as plain Python on {slow.accesses:,} accesses"


def same_decisions(a: ReplayResult, b: ReplayResult) -> bool:
    """Whether two replays with their decisions kept decided everything alike."""
    first, second = a.decisions, b.decisions
    assert first is not None and second is not None
    names = ("codes", "victims", "proactive", "fills")
    return all(np.array_equal(getattr(first, name), getattr(second, name)) for name in names)


def check_decisions(policy: Policy, result: ReplayResult) -> None:
    """Raise InputError where a user's policy decided what could not have happened; needs the decisions kept."""
    user, log = written_by_user(policy), result.decisions
    if user is None:
        return
    assert log is not None
    layout = log.layout
    if (log.proactive[:, KEY] >= layout.keys).any():
        at = int(np.argmax(log.proactive[:, KEY] >= layout.keys))
        problem = f"desired wants key {log.proactive[at, KEY]} in pool {log.proactive[at, POOL]} of {layout.keys} keys"
    elif layout.byte_cap.any():  # a load may evict several there, and a log names one
        return
    else:
        claims = {"hits": result.hits, "loads": result.loads}
        experts = layout.keys // int((layout.pool_of == layout.pool_of[0]).sum())
        found = audit(LogFile(log, experts, claims=claims), pins=not user.traits.bound)
        problem = found.problem or ""
    if problem:
        raise InputError(
            f"policy.file: {user.file}: its decisions could not have happened: {problem}; expected hooks that change no "
            "row of m below OWN; see docs/add_a_policy.md"
        )


def _compile(policy: Plain) -> Any:
    """`run` with the hooks inlined, as `rgpu.policies.loop.compiled` makes it of a file of its own; not cached on disk.

    Where a hook fails, the same events run again uncompiled, to name the hook and the line.
    """
    made = {name: njit(**CHECKED)(h) for name, h in policy.own.items()}
    every = {**DEFAULTS, **made, "victim": checked_victim(made["victim"])}
    if "desired" in made:
        every["desired"] = checked_wish(made["desired"])
    on_event, admit, victim = every["on_event"], every["admit"], every["victim"]
    on_evict, on_admit, on_access = every["on_evict"], every["on_admit"], every["on_access"]
    desired = every["desired"]

    @njit(**CHECKED)
    def run(m, f, pool, kind, offs, keys, weights, nexts, touch, features, codes, victims, counts, plog):  # type: ignore[no-untyped-def]
        loop(m, f, pool, kind, offs, keys, weights, nexts, touch, features, codes, victims, counts, plog,
             on_event, admit, victim, on_evict, on_admit, on_access, desired)  # fmt: skip

    def watched(m: np.ndarray, f: np.ndarray, *arrays: Any) -> None:
        m0, f0 = m.copy(), f.copy()
        try:
            run(m, f, *arrays)
        except NumbaError:
            raise
        except Exception as error:
            runner(policy)(m0, f0, *arrays)
            raise InputError(
                f"policy.file: {policy.file}: a hook raised {type(error).__name__}: {error}; expected it to return; correct it"
            ) from error

    return watched
