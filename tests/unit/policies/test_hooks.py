"""Searches and draws that policies share, against the plainest look at a drawn state."""

from typing import Any

import numpy as np
import pytest

from rgpu.policies import hooks
from rgpu.policies.loop import (
    CLOCK,
    EVENT,
    KEY_OF,
    NEVER,
    OWN,
    PIN,
    POOL,
    REG,
    SEED,
    SLOT_OF,
    USED,
    WANT,
    WAVE,
    make_state,
)

KEYS = 12


def drawn(seed: int) -> tuple[Any, Any, list[int], list[int]]:
    """(m, f, resident keys, those of them that may go): few different values, so that equals are common."""
    rng = np.random.default_rng(seed)
    slots = int(rng.integers(2, 8))
    state, floats = make_state(1, KEYS, [slots], rows=1, frows=1, seed=seed)
    m, f = state[0], floats[0]
    at = rng.permutation(slots)[: int(rng.integers(2, slots + 1))]
    keys = rng.permutation(KEYS)[: len(at)]
    m[KEY_OF, at], m[SLOT_OF, keys], m[REG, USED], m[REG, WAVE] = keys, at, len(at), 4
    m[OWN, :KEYS], f[0, :KEYS] = rng.integers(0, 4, KEYS), rng.integers(0, 4, KEYS) / 4
    m[PIN, :KEYS] = rng.choice([3, 4], KEYS, p=(0.7, 0.3))
    m[PIN, keys[0]] = 3
    m[REG, [EVENT, CLOCK, POOL]] = rng.integers(0, 1000, 3)
    free = [int(k) for k in keys if m[PIN, k] != 4]
    m[REG, hooks.PINNED] = len(keys) - len(free)
    return m, f, [int(k) for k in keys], free


@pytest.mark.parametrize("seed", range(60))
def test_searches_find_what_a_look_at_everything_finds(seed: int) -> None:
    m, f, resident, free = drawn(seed)
    assert hooks.oldest(m, OWN) == min((m[OWN, k], m[SLOT_OF, k]) for k in free)[1]
    assert hooks.lowest(m, f, 0) == min((f[0, k], m[SLOT_OF, k]) for k in free)[1]
    spare = (m[KEY_OF, : m[REG, hooks.CAP]] < 0).sum()
    for key in range(KEYS):
        less = [k for k in free if f[0, k] < f[0, key]]
        assert hooks.below(m, f, 0, f[0, key]) == len(less)
        assert hooks.beats(m, f, 0, key) == (spare > 0 or len(less) > 0)
    chosen = set()
    for clock in range(120):
        m[REG, CLOCK] = clock
        left = sorted(int(m[SLOT_OF, k]) for k in free)
        assert hooks.random_slot(m) == left[hooks.draw(m, len(free))]
        chosen.add(int(hooks.random_slot(m)))
    assert chosen == {int(m[SLOT_OF, k]) for k in free}


@pytest.mark.parametrize(("slots", "pinned"), [(hooks.DRAWN_FROM, 40), (200, 0), (200, 100), (200, 199)])
def test_in_a_large_pool_every_slot_that_may_go_is_as_likely(slots: int, pinned: int) -> None:
    state, _ = make_state(1, slots, [slots])
    m, rng = state[0], np.random.default_rng(pinned)
    m[KEY_OF, :slots] = rng.permutation(slots)
    m[SLOT_OF, m[KEY_OF, :slots]] = np.arange(slots)
    m[REG, [USED, hooks.PINNED, WAVE, hooks.SEED]] = slots, pinned, 4, 11
    m[PIN, :slots] = np.where(np.arange(slots) < pinned, 4, 3)
    free = np.flatnonzero(m[PIN, m[KEY_OF, :slots]] != 4)
    drawn_ = np.zeros(slots, int)
    for clock in range(40 * slots):
        m[REG, CLOCK] = clock
        drawn_[hooks.random_slot(m)] += 1
    assert drawn_.sum() == drawn_[free].sum() and drawn_[free].all()
    expected = 40 * slots / len(free)
    assert ((drawn_[free] - expected) ** 2 / expected).sum() < len(free) + 5 * np.sqrt(2 * len(free))  # chi squared


@pytest.mark.parametrize("slots", [hooks.DRAWN_FROM - 1, hooks.DRAWN_FROM, 200])
@pytest.mark.parametrize("busy", [0.0, 0.5, 0.99])
def test_slots_are_drawn_in_large_pools_and_counted_out_in_small_ones(slots: int, busy: float) -> None:
    """The same numbers in every version: draws until one may go, 64 at most, then the n-th of those that may."""

    def number(clock: int, count: int, again: int) -> int:
        x = (11 * 0x9E3779B1 ^ 3 * 0xC2B2AE3D ^ clock * 0x27D4EB2F ^ again * 0x165667B1) % 2**32
        for _ in range(2):
            for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
                x = (x ^ x >> shift) * factor % 2**32
            x ^= x >> 16
        return x % count

    state, _ = make_state(1, slots, [slots])
    m, rng = state[0], np.random.default_rng(slots)
    m[KEY_OF, :slots] = rng.permutation(slots)
    m[SLOT_OF, m[KEY_OF, :slots]] = np.arange(slots)
    pins = np.where(rng.random(slots) < busy, 4, 3)
    pins[5] = 3
    m[REG, [USED, hooks.PINNED, WAVE, hooks.SEED, hooks.EVENT]] = slots, (pins == 4).sum(), 4, 11, 3
    m[PIN, :slots] = pins
    may_go = pins[m[KEY_OF, :slots]] != 4
    for clock in range(300):
        m[REG, CLOCK] = clock
        drawn_ = [number(clock, slots, again) for again in range(64)] if slots >= 128 else []
        wanted = next((slot for slot in drawn_ if may_go[slot]), None)
        if wanted is None:
            wanted = np.flatnonzero(may_go)[number(clock, int(may_go.sum()), 0)]
        assert hooks.random_slot(m) == hooks.random_slot.py_func(m) == wanted


def test_searches_know_keys_that_are_never_used_and_pools_without_a_victim() -> None:
    m, f, _, free = drawn(1)
    m[OWN] = NEVER
    assert hooks.oldest(m, OWN) == min(m[SLOT_OF, k] for k in free)
    m[PIN, :KEYS] = m[REG, WAVE]
    assert hooks.oldest(m, OWN) == hooks.lowest(m, f, 0) == -1


@pytest.mark.parametrize("seed", range(60))
def test_wishes_are_the_best_that_replace_someone_worse(seed: int) -> None:
    m, f, resident, free = drawn(seed)
    first, count, floor = seed % 3, KEYS - 1 - seed % 5, (-1.0, 0.0, 0.25)[seed % 3]
    spare = int((m[KEY_OF, : m[REG, hooks.CAP]] < 0).sum())
    wanted: list[int] = []
    for key in sorted(range(first, first + count), key=lambda k: (-f[0, k], k)):
        if key in resident or f[0, key] <= floor:
            continue
        # the wishes so far have taken the free slots and the worst residents; this one needs one more that is worse
        if len(wanted) >= spare and sum(f[0, k] < f[0, key] for k in free) <= len(wanted) - spare:
            break
        wanted.append(key)
    n = hooks.wish_by_score(m, f, 0, first, count, floor)
    assert m[WANT, :n].tolist() == wanted


def test_draws_are_the_hash_that_they_say_and_spread_evenly() -> None:
    def by_hand(seed: int, pool: int, event: int, clock: int) -> int:
        x = (seed * 2654435761 + pool * 2246822519) % 2**32
        x = x ^ (event * 3266489917) % 2**32 ^ (clock * 668265263) % 2**32
        for _ in range(2):
            x ^= x // 2**16
            x = x * 2146121005 % 2**32
            x ^= x // 2**15
            x = x * 2221713035 % 2**32
            x ^= x // 2**16
        return x

    rng = np.random.default_rng(0)
    m: Any = make_state(1, KEYS, [3])[0][0]
    seen = np.zeros(5, int)
    for at in rng.integers(0, 2**31, (500, 4)).tolist():
        m[REG, [SEED, POOL, EVENT, CLOCK]] = at
        assert hooks.draw(m, 1 << 40) == by_hand(*at)
        assert hooks.draw(m, 5) == by_hand(*at) % 5
        seen[hooks.draw(m, 5)] += 1
    assert seen.min() > 70
