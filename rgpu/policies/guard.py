"""A user's hooks, watched: what they raise or get wrong becomes one line that names the hook and the line of the file.

Interpreted hooks are watched at every call, and their writes to rows that are not theirs for the first `WATCHED` calls.
Compiled ones check every index, and their victims and wishes, and raise likewise; `told` finds the line.
"""

import types
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit
from numba.core.dispatcher import Dispatcher

from rgpu.errors import InputError
from rgpu.policies.state import CAP, CHANGES, KEY_OF, OPTIONS, OWN, PIN, R0, REG, WANT, WAVE

CHECKED = {**OPTIONS, "boundscheck": True}
WATCHED = 2000
VICTIM = "expected a slot for which evictable(m, slot) holds; see docs/add_a_policy.md"
WISH = "expected how many keys it wrote to m[WANT], each a key of the pool; see docs/add_a_policy.md"
ROWS = "expected its own rows alone to change, m[OWN] on and f; ask for some with TRAITS = Traits(rows=1)"


def told(file: str, what: str, hook: Any, error: BaseException | None = None) -> InputError:
    """The error for `what` a hook did in the user's file: at the line where `error` was raised, else where it begins."""
    code = getattr(hook, "__code__", None)
    line = code.co_firstlineno if code is not None else 0
    at = error.__traceback__ if error is not None else None
    while at is not None:
        if code is not None and at.tb_frame.f_code.co_filename == code.co_filename:
            line = at.tb_lineno
        at = at.tb_next
    return InputError(f"policy.file: {file}{f', line {line}' if line else ''}: {what}")


def guarded(name: str, hook: Callable[..., Any], file: str) -> Callable[..., Any]:
    """`hook` with its mistakes as InputErrors."""
    left = [WATCHED]

    def call(m: np.ndarray, f: np.ndarray, *rest: Any) -> Any:
        before = _owned(m) if left[0] > 0 else None
        try:
            out = hook(m, f, *rest)
        except InputError:
            raise
        except Exception as error:
            what = f"{name} raised {type(error).__name__}: {error}; expected it to return; correct it"
            raise told(file, what, hook, error) from None
        if name == "victim" and (wrong := _wrong_victim(m, out)):
            raise told(file, f"victim returned {out!r}, {wrong}; {VICTIM}", hook)
        if name == "desired" and (wrong := _wrong_wish(m, out)):
            raise told(file, f"desired returned {out!r}, {wrong}; {WISH}", hook)
        if before is not None:
            left[0] -= 1
            if not np.array_equal(before, _owned(m)):
                raise told(file, f"{name} wrote to rows of m that belong to the loop; {ROWS}", hook)
        return out

    return call


def _owned(m: np.ndarray) -> np.ndarray:
    """A copy of what hooks must not write to: the loop's rows but for wishes and registers given to policies."""
    rows = m[:OWN].copy()
    rows[WANT] = 0
    rows[REG, CHANGES] = 0
    rows[REG, R0:] = 0
    return rows


def _wrong_victim(m: np.ndarray, slot: Any) -> str:
    if not isinstance(slot, int | np.integer) or isinstance(slot, bool):
        return "which is no slot"
    if not 0 <= slot < m[REG, CAP]:
        return f"outside the pool's {m[REG, CAP]} slots"
    key = m[KEY_OF, slot]
    if key < 0:
        return "an empty slot"
    return "whose expert the current wave needs" if m[PIN, key] == m[REG, WAVE] else ""


def _wrong_wish(m: np.ndarray, n: Any) -> str:
    if not isinstance(n, int | np.integer) or isinstance(n, bool) or n > m.shape[1]:
        return f"which is no number of keys up to {m.shape[1]}"
    if n > 0 and not ((m[WANT, :n] >= 0) & (m[WANT, :n] < m.shape[1])).all():
        return "among them a key that does not exist"
    return ""


def checked_victim(victim: Any) -> Any:
    """A compiled `victim` that raises for a slot that may not go."""

    @njit(**CHECKED)
    def legal_victim(m, f):  # type: ignore[no-untyped-def]
        slot = victim(m, f)
        if slot < 0 or slot >= m[REG, CAP]:
            raise IndexError("victim returned a slot outside the pool")
        key = m[KEY_OF, slot]
        if key < 0 or m[PIN, key] == m[REG, WAVE]:
            raise IndexError("victim returned a slot that is empty or that the current wave needs")
        return slot

    return legal_victim


def checked_wish(desired: Any) -> Any:
    """A compiled `desired` that raises for keys that do not exist."""

    @njit(**CHECKED)
    def legal_wish(m, f):  # type: ignore[no-untyped-def]
        n = desired(m, f)
        if n > m.shape[1]:
            raise IndexError("desired returned more keys than there are")
        for j in range(n):
            if m[WANT, j] < 0 or m[WANT, j] >= m.shape[1]:
                raise IndexError("desired wants a key that does not exist")
        return n

    return legal_wish


def with_checks(helper: Dispatcher, done: dict[Dispatcher, Dispatcher] | None = None) -> Dispatcher:
    """A compiled helper, and those it calls, compiled again with every index checked."""
    done = {} if done is None else done
    if helper not in done:
        source = helper.py_func
        scope = dict(source.__globals__)
        copy = types.FunctionType(source.__code__, scope, source.__name__, source.__defaults__, source.__closure__)
        done[helper] = njit(**CHECKED)(copy)
        for name in source.__code__.co_names:
            if isinstance(scope.get(name), Dispatcher):
                scope[name] = with_checks(scope[name], done)
    return done[helper]
