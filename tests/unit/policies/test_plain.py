"""A policy in a file of the user's own: what its hooks imply, and what they get wrong, in one line with hook and line."""

import re
from pathlib import Path

import numba
import numpy as np
import pytest

from rgpu.errors import InputError
from rgpu.policies import guard
from rgpu.policies.guard import checked_victim, checked_wish, with_checks
from rgpu.policies.loop import CAP, KEY_OF, PIN, REG, USED, WANT, WAVE, make_state
from rgpu.policies.plain import Plain
from rgpu.policies.policy import Traits
from rgpu.replay.compile_hooks import compiled_or_plain
from rgpu.replay.engine import replay
from rgpu.replay.pool import PoolConfig
from tests.support import routed_trace
from tests.user_policies import LRU, WRONG, written


@pytest.mark.parametrize("name", WRONG)
def test_a_hook_that_fails_is_one_line_with_its_place(name: str, tmp_path: Path) -> None:
    policy, routed = written(tmp_path, WRONG[name][0]), routed_trace(4, tokens=40)
    with pytest.raises(InputError, match=re.escape(WRONG[name][1])):
        replay(routed, policy, PoolConfig(slots=2))
    with pytest.raises(InputError, match=re.escape(WRONG[name][1])):
        compiled_or_plain(policy, routed, PoolConfig(slots=2))


def test_a_compiled_victim_must_be_one_that_may_go() -> None:
    m, f = make_state(1, 3, [3])
    m[0, KEY_OF, :2], m[0, REG, [CAP, WAVE]], m[0, PIN, 1] = [0, 1], (3, 7), 7
    victim = checked_victim(numba.njit(lambda m, f: m[REG, USED]))
    for slot, wrong in ((0, ""), (1, "the current wave needs"), (2, "is empty"), (3, "outside"), (-1, "outside")):
        m[0, REG, USED] = slot
        if not wrong:
            assert victim(m[0], f[0]) == slot
        else:
            with pytest.raises(IndexError, match=f"victim returned a slot .*{wrong}"):
                victim(m[0], f[0])


def test_hooks_imply_traits(tmp_path: Path) -> None:
    admit = "def admit(m, f, key):\n    return key % 2 == 0\n"
    wish = "def desired(m, f):\n    return 0\n"
    assert written(tmp_path, LRU).traits == Traits(rows=1)
    assert written(tmp_path, LRU + admit).traits == Traits(rows=1, staging=True)
    assert written(tmp_path, LRU + wish).traits == Traits(rows=1, demand=False)
    bound = "TRAITS = Traits(rows=1, needs_future=True, bound=True)\n"
    assert not written(tmp_path, LRU + admit + bound).traits.staging
    other = "OTHER = Traits(staging=False)\n"
    assert written(tmp_path, LRU + admit + other).traits == Traits(rows=1, staging=True)
    with pytest.raises(InputError, match=r"got Traits\(staging=False\) and a hook `admit`; expected staging=True"):
        written(tmp_path, LRU + admit + "TRAITS = Traits(rows=1, staging=False)\n")
    with pytest.raises(InputError, match=r"got Traits\(demand=True\) and a hook `desired`; expected demand=False"):
        written(tmp_path, LRU + wish + "TRAITS: Traits = Traits(rows=1, demand=True)\n")
    with pytest.raises(InputError, match="staging=True"):
        written(tmp_path, LRU + admit + "TRAITS = Traits(1, 0, False)\n")
    with pytest.raises(InputError, match="expected TRAITS = Traits"):
        written(tmp_path, LRU + "TRAITS = {}\n")


def test_a_compiled_wish_must_be_for_keys_that_exist() -> None:
    m, f = make_state(1, 30, [3])
    wish = checked_wish(numba.njit(lambda m, f: m[REG, USED]))
    for n, key, legal in ((0, 0, True), (30, 0, True), (1, 29, True), (1, 30, False), (1, -1, False), (31, 0, False)):
        m[0, REG, USED], m[0, WANT] = n, key
        if legal:
            assert wish(m[0], f[0]) == n
        else:
            with pytest.raises(IndexError, match="desired"):
                wish(m[0], f[0])


def test_wishes_in_python_are_held_to_the_same(tmp_path: Path) -> None:
    m, f = make_state(1, 30, [3])
    desired = written(tmp_path, LRU + "def desired(m, f):\n    return m[REG, USED]\n").hooks["desired"]
    for n, key, legal in ((0, 30, True), (1, 29, True), (30, 0, True), (1, 30, False), (1, -1, False), (31, 0, False)):
        m[0, REG, USED], m[0, WANT] = n, key
        if legal:
            assert desired(m[0], f[0]) == n
        else:
            with pytest.raises(InputError, match="desired returned"):
                desired(m[0], f[0])
    for answer in ("None", "True", "1.0"):
        desired = written(tmp_path, LRU + f"def desired(m, f):\n    return {answer}\n").hooks["desired"]
        with pytest.raises(InputError, match=f"desired returned {answer}, which is no number of keys"):
            desired(m[0], f[0])


@numba.njit
def inner(values, i):  # type: ignore[no-untyped-def]
    return values[i]


@numba.njit
def outer(values, i):  # type: ignore[no-untyped-def]
    return inner(values, i) + 1


def test_compiled_helpers_and_what_they_call_check_every_index() -> None:
    checked = with_checks(outer)
    assert checked(np.arange(3), 2) == 3
    with pytest.raises(IndexError):
        checked(np.arange(3), 3)


def test_registers_and_wishes_may_be_written(tmp_path: Path) -> None:
    text = (
        LRU
        + "def on_event(m, f, keys, weights, feature):\n    m[REG, R0] = m[REG, R7] = m[REG, CHANGES] = m[WANT, 3] = 9\n"
    )
    assert replay(routed_trace(4, tokens=10), written(tmp_path, text), PoolConfig(slots=4)).accesses
    own = LRU + "def on_event(m, f, keys, weights, feature):\n    m[REG, GATE_LEFT] = 9\n"
    with pytest.raises(InputError, match="on_event wrote to rows of m that belong to the loop"):
        replay(routed_trace(4, tokens=10), written(tmp_path, own), PoolConfig(slots=4))


def test_an_error_of_its_own_passes_through_and_a_name_may_be_given(tmp_path: Path) -> None:
    policy = written(tmp_path, "from rgpu.errors import InputError\ndef victim(m, f):\n    raise InputError('mine')\n")
    m, f = make_state(1, 3, [3])
    with pytest.raises(InputError, match="^mine$"):
        policy.hooks["victim"](m[0], f[0])
    assert (policy.name, Plain(policy.file, "called").name) == ("mine", "called")


def test_writes_are_watched_in_the_first_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "WATCHED", 2)
    text = LRU + "def on_admit(m, f, key):\n    m[SEEN, 0] += key\n"
    m, f = make_state(1, 30, [3], rows=1)
    for innocent, told in ((0, True), (1, True), (2, False), (3, False)):
        hook = written(tmp_path, text).hooks["on_admit"]
        for _ in range(innocent):
            hook(m[0], f[0], 0)
        if told:
            with pytest.raises(InputError, match="on_admit wrote to rows of m"):
                hook(m[0], f[0], 1)
        else:
            hook(m[0], f[0], 1)


def test_hooks_are_kept_as_written_beside_the_watched_ones(tmp_path: Path) -> None:
    policy = written(tmp_path, "def victim(m, f):\n    return 9999\n")
    m, f = make_state(1, 30, [3])
    assert policy.own["victim"](m[0], f[0]) == 9999
    with pytest.raises(InputError):
        policy.hooks["victim"](m[0], f[0])


def test_a_hook_without_a_line_is_told_without_one(tmp_path: Path) -> None:
    policy = written(tmp_path, "class Victim:\n    def __call__(self, m, f):\n        return 9999\nvictim = Victim()\n")
    m, f = make_state(1, 30, [3])
    with pytest.raises(InputError, match=r"mine\.py: victim returned 9999"):
        policy.hooks["victim"](m[0], f[0])
