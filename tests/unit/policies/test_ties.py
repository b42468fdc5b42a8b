"""What a hook picks where two keys are equal, or a number is just at its bound: no count of hits shows it."""

from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rgpu.policies import (
    activation_map,
    belady,
    belady_bypass,
    class_lru,
    fading,
    forecast_evict,
    gate_score,
    layer_aware,
    learned_next_use,
    least_stale,
    levels,
    lfru,
    lru_k,
    next_use,
    on_demand,
    size_aware_farthest,
)
from rgpu.policies.loop import (
    BYTE_CAP,
    BYTES,
    CLOCK,
    EVENT,
    KEY_OF,
    NEXT,
    OWN,
    PIN,
    REG,
    SIZE,
    SLOT_OF,
    USED,
    WAVE,
    make_state,
)

KEYS = 8


def full(slots: int, rows: int) -> tuple[Any, Any]:
    """A pool whose slot s holds key slots - 1 - s, none of them pinned."""
    m, f = make_state(1, KEYS, [slots], rows=rows)
    m[0, KEY_OF, :slots] = np.arange(slots)[::-1]
    m[0, SLOT_OF, :slots] = np.arange(slots)[::-1]
    m[0, SIZE], m[0, REG, USED], m[0, REG, BYTES], m[0, REG, WAVE] = 1, slots, slots, 1
    return m[0], f[0]


@pytest.mark.parametrize("search", [belady.victim, belady_bypass.farthest])
def test_of_next_uses_equally_far_the_lowest_slot_goes(search: Any) -> None:
    m, f = full(4, next_use.ROWS)
    m[NEXT] = (9, 3, 9, 9, 0, 0, 0, 0, *[0] * (len(m[NEXT]) - 8))
    assert search.py_func(m, f) == 0
    m[NEXT, 3] = 5
    assert search.py_func(m, f) == 1


def test_the_bound_keeps_a_newcomer_only_where_it_is_needed_sooner() -> None:
    m, f = full(4, next_use.ROWS)
    m[NEXT, :6] = 5, 3, 5, 5, 5, 4
    assert not belady_bypass.worth.py_func(m, f, 4) and belady_bypass.worth.py_func(m, f, 5)
    m[KEY_OF, 3], m[SLOT_OF, 0], m[REG, USED], m[REG, BYTES] = -1, -1, 3, 3
    m[REG, BYTE_CAP] = 5
    for size, kept in ((1, True), (2, True), (3, False)):
        m[SIZE, 4] = size
        assert belady_bypass.worth.py_func(m, f, 4) == kept


def test_a_key_loaded_ahead_is_ranked_by_its_next_use(monkeypatch: pytest.MonkeyPatch) -> None:
    m, f = full(4, next_use.ROWS)
    ranks: list[int] = []
    monkeypatch.setattr(next_use, "track", lambda m, at, p, row, tie, key: ranks.append(int(p[row, key])))
    m[NEXT, 2] = 7
    next_use.arrive.py_func(m, f, 2)
    assert ranks == [-7]
    m[NEXT, 2] = 9
    size_aware_farthest.arrive.py_func(m, f, 2)
    assert m[size_aware_farthest.SOONEST, 2] == -9


def test_lru_k_takes_the_lowest_slot_of_equals_outside_their_period() -> None:
    m, f = full(4, lru_k.HISTORY - OWN + 2)
    m[lru_k.RANK, :4] = 7, 6, 6, 9
    assert lru_k.scan.py_func(m, False) == 1
    assert lru_k.LruK(k=2).traits.rows == lru_k.HISTORY - OWN + 2 and lru_k.HISTORY == OWN + 9


def test_class_lru_has_as_many_classes_as_lists() -> None:
    m, f = full(4, class_lru.ClassLru.traits.rows)
    setting: Any = SimpleNamespace(m=m[None], f=f[None], pool_of=np.zeros(1, int))
    class_lru.ClassLru(half_life=9).prepare(setting)
    for exponent, level in ((-2, 0), (0, 0), (1, 1), (6, 6), (7, 7), (8, 7), (9, 7), (30, 7)):
        m[class_lru.COUNT, 2] = (64 + exponent) << 40
        class_lru.arrive.py_func(m, f, 2)
        assert m[class_lru.CLASS, 2] == level


@pytest.mark.parametrize("seed", range(40))
def test_lfru_finds_the_least_among_counts_that_share_a_list(seed: int) -> None:
    rng, slots = np.random.default_rng(seed), lfru.HEAP_FROM
    m = make_state(1, slots, [slots], rows=lfru.Lfru.traits.rows)[0][0]
    m[KEY_OF, :slots] = m[SLOT_OF, :slots] = np.arange(slots)
    m[lfru.COUNT, :slots] = rng.integers(seed % 2 * 40 + 1, 43 + seed * 3, slots)
    m[lfru.LAST, :slots] = rng.permutation(slots * (1 + seed % 3))[:slots] + 1
    m[PIN, :slots], m[REG, WAVE] = rng.integers(0, 1 + seed % 4, slots), 2
    m[REG, CLOCK] = slots * (1 + seed % 3) + seed % 5
    for key in np.argsort(m[lfru.LAST, :slots]):
        lfru.place.py_func(m, key)
    now = int(m[REG, CLOCK]) + 1
    free = [k for k in range(slots) if m[PIN, k] != 2]
    least = min(free, key=lambda k: (Fraction(int(m[lfru.COUNT, k]), now - int(m[lfru.LAST, k])), m[lfru.LAST, k]))
    assert lfru.victim.py_func(m, None) == least


@pytest.mark.parametrize("seed", range(20))
def test_layer_aware_goes_back_layer_by_layer_past_those_without_a_victim(seed: int) -> None:
    rng, slots, experts, layers = np.random.default_rng(seed), layer_aware.HEAP_FROM, 40, 4
    m = make_state(1, experts * layers, [slots], rows=layer_aware.LayerAware.traits.rows)[0][0]
    keys = rng.permutation(experts * layers)[:slots]
    m[KEY_OF, :slots], m[SLOT_OF, keys] = keys, np.arange(slots)
    m[REG, layer_aware.EXPERTS], m[REG, layer_aware.LAYERS], m[REG, WAVE] = experts, layers, 3
    for clock, key in enumerate(rng.permutation(keys)):
        m[REG, CLOCK] = clock + 1
        layer_aware.arrive.py_func(m, None, key)
    layer = seed % layers
    layer_aware.begin.py_func(m, None, np.array([layer * experts + 3]), None, None)
    layer_aware.begin.py_func(m, None, np.zeros(0, int), None, None)
    for back in range(layers):
        free = [k for k in keys if m[PIN, k] != 3]
        least = min(free, key=lambda k: ((layer - k // experts) % layers, m[layer_aware.LAST, k]))
        assert layer_aware.victim.py_func(m, None) == m[SLOT_OF, least] and (layer - least // experts) % layers == back
        pinned = (layer - back) % layers * experts
        m[PIN, pinned : pinned + experts] = 3


def test_gate_score_ranks_equals_by_their_last_use(monkeypatch: pytest.MonkeyPatch) -> None:
    m, f = full(4, gate_score.GateScore.traits.rows)
    tracked: list[int] = []
    monkeypatch.setattr(gate_score, "track", lambda m, at, p, row, tie, key: tracked.append(key))
    for clock, key in enumerate((2, 0, 3, 1)):
        m[REG, CLOCK] = clock + 5
        if key == 3:
            gate_score.arrive.py_func(m, f, key)
        else:
            gate_score.touch.py_func(m, f, key, True)
    assert tracked == [2, 0, 3, 1] and m[gate_score.LAST, :4].tolist() == [6, 8, 5, 7]


@pytest.mark.parametrize("layers", [1, 2])
def test_a_forecast_s_residents_move_on_with_their_age(layers: int) -> None:
    m, _ = full(4, forecast_evict.ForecastEvict.traits.rows)
    m[REG, forecast_evict.LAYERS], m[forecast_evict.LAST, :4], used = layers, 1, 2
    m[forecast_evict.USED, 3] = used
    levels.link(m, forecast_evict.LISTS, used * fading.AGE_BUCKETS, 3)
    for event in range(1, 140 * layers):
        m[REG, EVENT] = event
        forecast_evict.move_on.py_func(m)
        bucket = fading.age_bucket(-((1 - event) // layers))
        assert m[forecast_evict.LISTS + levels.LEVEL, 3] == used * fading.AGE_BUCKETS + bucket + 1
        assert m[REG, forecast_evict.AGED] == event


def test_of_maps_as_near_the_first_is_taken() -> None:
    m, f = make_state(1, KEYS, [4], rows=activation_map.ActivationMap.traits.rows, frows=9)
    m[0, REG, activation_map.STORED], m[0, REG, activation_map.MATCH] = 3, -1
    f[0, activation_map.NEARNESS, :3] = 2, 5, 5
    activation_map.choose.py_func(m[0], f[0])
    assert m[0, REG, activation_map.MATCH] == 1


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_a_learned_distance_is_the_model_s(layers: int) -> None:
    own = learned_next_use
    m, f = make_state(1, KEYS, [4], rows=own.LearnedNextUse(weights=True).traits.rows, frows=4, width=24)
    m, f = m[0], f[0]
    fading.start_clock(f[None], own.FADE, 8)
    m[REG, own.LAYERS], m[REG, own.EXPERTS] = layers, 4
    f[own.MODEL, [own.BY_AGE, own.BY_COUNT, own.BY_WEIGHT, own.LOW, own.WIDTH]] = 0.75, -0.5, 2.0, -1.0, 0.25
    f[own.BASE, :2] = 0.5, 0.25
    m[REG, EVENT] = 1
    own.count.py_func(m, f, np.array([1, 6]), np.array([0.5, 0.125]), None)
    assert f[own.GATE, [1, 6]].tolist() == [0.5, 0.125]
    for key, uses, said in ((1, 1.0, 10), (6, 1.0, 6), (6, 4.0, 2), (6, 2.0**40, 0), (1, 2.0**-20, 14)):
        m[own.USES, key] = (64 + int(np.log2(uses))) << 40
        f[own.FADE, fading.NOW] = 1.0
        own.arrive.py_func(m, f, key)
        assert m[own.SAID, key] == said
    for age, log2_age in ((0, 0), (1, 0), (2, 1), (3, 1), (4, 2), (8, 3)):
        for event in range(max(0, (age - 1) * layers + 1), age * layers + 1):
            m[REG, EVENT] = m[own.LAST, 6] + event
            assert own.distance.py_func(m, f, 6) == 0.5 * 0.25 + 0.75 * log2_age
    m[own.SAID, 6] = 3
    assert own.distance.py_func(m, f, 6) == 3.5 * 0.25 + 0.75 * 3


@pytest.mark.parametrize("seed", range(40))
def test_the_farthest_of_all_lists_goes_and_of_equals_the_least_recent(seed: int) -> None:
    own, slots, rng = learned_next_use, learned_next_use.LISTS_FROM, np.random.default_rng(seed)
    m, f = make_state(1, slots, [slots], rows=own.LearnedNextUse().traits.rows, frows=4)
    m, f = m[0], f[0]
    m[KEY_OF, :slots] = m[SLOT_OF, :slots] = np.arange(slots)
    m[REG, own.LAYERS], m[REG, EVENT], m[REG, WAVE] = 1, 20, 2
    f[own.MODEL, [own.BY_AGE, own.WIDTH]] = 0.5, 0.25
    m[own.TURN, :slots] = rng.permutation(slots)
    m[own.LAST, :slots] = np.sort(rng.integers(1, 20, slots))[m[own.TURN, :slots]]
    m[own.SAID, :slots], m[PIN, :slots] = rng.integers(0, 4, slots), rng.integers(1, 3, slots)
    for key in np.argsort(m[own.TURN, :slots]):
        levels.link(m, own.LISTS, m[own.SAID, key], key)
    free = [k for k in range(slots) if m[PIN, k] != 2]
    away = {k: (m[own.SAID, k] + 0.5) / 4 + int(np.log2(20 - m[own.LAST, k])) / 2 for k in free}
    assert own.victim.py_func(m, f) == max(free, key=lambda k: (away[k], -m[own.TURN, k]))


@pytest.mark.parametrize(("uses", "age", "many_age"), [(21, 10, 20), (1, 1, 42)])
def test_lfru_looks_on_while_the_smallest_count_of_the_last_list_could_score_as_low(
    uses: int, age: int, many_age: int
) -> None:  # fmt: skip
    slots = lfru.HEAP_FROM
    m = make_state(1, slots, [slots], rows=lfru.Lfru.traits.rows)[0][0]
    m[KEY_OF, :slots] = m[SLOT_OF, :slots] = np.arange(slots)
    m[REG, CLOCK], m[REG, WAVE], m[PIN, 3:slots] = 99, 2, 2
    m[lfru.COUNT, :3], m[lfru.LAST, :3] = (10_000, lfru.LEVELS, uses), (100 - 50, 100 - many_age, 100 - age)
    for key in range(3):
        lfru.place.py_func(m, key)
    assert lfru.victim.py_func(m, None) == 1  # as low as the last, and used longer ago


def test_a_pass_begins_where_a_layer_does_not_come_after_the_last() -> None:
    m = make_state(1, 16, [4], rows=least_stale.LeastStale.traits.rows)[0]
    setting: Any = SimpleNamespace(m=m, shape=SimpleNamespace(experts=8))
    least_stale.LeastStale().prepare(setting)
    passes = []
    for key in (3, 9, 10, 0, 1, None, 8):
        keys = np.array([] if key is None else [key], int)
        least_stale.begin.py_func(m[0], None, keys, None, None)
        passes.append(int(m[0, REG, least_stale.NUMBER]))
    assert passes == [0, 0, 1, 2, 3, 3, 3]


def test_what_on_demand_was_given_ahead_leaves_in_order_of_its_load() -> None:
    m, f = full(4, on_demand.OnDemand.traits.rows)
    for clock, key in enumerate((2, 0, 3, 1)):
        m[REG, CLOCK] = clock + 5
        on_demand.arrive.py_func(m, f, key)
    assert m[on_demand.BORN, :4].tolist() == [6, 8, 5, 7]
