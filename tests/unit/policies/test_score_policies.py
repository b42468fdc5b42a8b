"""Every score policy against a model of dictionaries and sorting: same hits, same victims, in small and large pools."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rgpu.errors import InputError, TraceError
from rgpu.policies.activation_map import ActivationMap, collection
from rgpu.policies.belady import Belady
from rgpu.policies.calibration import activation_maps
from rgpu.policies.class_lru import ClassLru
from rgpu.policies.forecast_evict import ForecastEvict
from rgpu.policies.gate_score import GateScore
from rgpu.policies.gdsf import Gdsf
from rgpu.policies.heap import HEAP_FROM
from rgpu.policies.layer_aware import LayerAware
from rgpu.policies.learned_next_use import BASE, MODEL, LearnedNextUse, fit
from rgpu.policies.least_stale import LeastStale
from rgpu.policies.levels import LISTS_FROM
from rgpu.policies.lfru import Lfru
from rgpu.policies.lfu import Lfu
from rgpu.policies.lfu_decayed import LfuDecayed
from rgpu.policies.lfu_perfect import LfuPerfect
from rgpu.policies.loop import COUNTS, DEMAND, DROPPED, FILL, HIT, KEPT, PREFETCH, PREFETCH_BUSY, PREFETCH_HIT
from rgpu.policies.lru import Lru
from rgpu.policies.random import Random
from rgpu.policies.reuse import COUNT, ONE, WEIGHT, reuse_samples
from rgpu.policies.size_aware_farthest import SizeAwareFarthest
from rgpu.policies.static_hot import StaticHot
from rgpu.replay.engine import replay
from rgpu.replay.events import pass_groups
from rgpu.replay.features import trace_features
from rgpu.replay.pool import PoolConfig, initial_state, lay_out
from rgpu.traces.trace import Trace
from tests import score_models as models
from tests.score_models import Event, Model, run_model
from tests.support import routed_trace, trace_of, unions

LIVE: tuple[Any, ...] = (
    LfuPerfect(), LfuDecayed(half_life=5), Lfru(), Lfru(forget=False), Gdsf(), Gdsf(cost="bytes"), LeastStale(),
    LeastStale(order="used"), LayerAware(), GateScore(half_life=3), ClassLru(half_life=16), ForecastEvict(horizon=3),
    LearnedNextUse(), LearnedNextUse(weights=True), ActivationMap(maps=3, rematch=2, half_life=8),
    StaticHot(scope="sequence", passes=4),
)  # fmt: skip
SIZES = {0: 4, 1: 1, 2: 2}


def pool_events(trace: Trace, scope: str) -> list[list[Event]]:
    """Events of each pool in order."""
    order, starts, _ = pass_groups(trace)
    layers, experts = trace.layers, trace.header.num_experts
    scores = trace_features("router", trace, order, starts).reshape(-1, layers, experts)
    members = [unions(trace, layer) for layer in range(layers)]
    if scope == "layer":
        return [[(0, members[n][p], scores[p, n]) for p in range(len(scores))] for n in range(layers)]
    return [
        [(n, [n * experts + e for e in members[n][p]], scores[p, n]) for p in range(len(scores)) for n in range(layers)]
    ]


def prepared(policy: Any, trace: Trace, scope: str, slots: int) -> Any:
    layout = lay_out(PoolConfig(scope=scope, slots=slots), policy, trace.shape)
    return initial_state(layout, policy, trace.shape, "", 0, trace, 0)[1]


def facts_of(policy: Any, trace: Trace, scope: str, slots: int, pool: int) -> dict[str, Any]:
    """What a model is told: parameters, and what was fitted where the fit has a test of its own."""
    experts, sizes = trace.header.num_experts, trace.header.expert_bytes
    facts = {n: getattr(policy, n) for n in getattr(policy, "__dataclass_fields__", {})}
    low = (min(sizes) if scope == "global" else sizes[pool]) if sizes else 1
    facts["size"] = lambda key: (sizes[key // experts if scope == "global" else pool] / low) if sizes else 1.0
    layers = np.arange(trace.layers) if scope == "global" else np.array([pool])
    if isinstance(policy, Gdsf) and policy.cost == "bytes":
        facts["size"] = lambda key: 1.0
    if isinstance(policy, ForecastEvict):
        even = float(np.log2(max(1.0, trace.header.top_k / experts * policy.half_life / np.log(2))))
        facts["even"], facts["chance"] = even, chances(trace, layers, policy.horizon, policy.half_life, even)
    if isinstance(policy, LearnedNextUse):
        f = prepared(policy, trace, scope, slots)[pool]
        facts["model"], facts["base"] = f[MODEL, :5], f[BASE]
    if isinstance(policy, ActivationMap):
        maps = activation_maps(trace)[:, layers].reshape(trace.sequences, -1)
        facts["maps"], facts["mean"] = collection(maps, policy.maps).tolist(), maps.mean(0)
    if isinstance(policy, Belady | SizeAwareFarthest):
        facts["uses"] = defaultdict(list)
        for t, (_, members, _) in enumerate(pool_events(trace, scope)[pool]):
            for key in members:
                facts["uses"][key].append(t)
    return facts


def samples(trace: Trace, layer: int, half_life: int) -> list[tuple[int, float, int | None, int]]:
    """(age, log2 count at the last use, distance to the next use or None, passes left) at every decision of a layer."""
    out = []
    for s in range(trace.sequences):
        events = unions(trace.select(np.array([s])), layer)
        for t, members in enumerate(events):
            for key in {k for e in events[:t] for k in e} - set(members):
                past = [u for u in range(t) if key in events[u]]
                count = sum(2.0 ** ((u - past[-1]) / half_life) for u in past)
                coming = [u for u in range(t + 1, len(events)) if key in events[u]]
                out.append((t - past[-1], Model(1).log2(count), coming[0] - t if coming else None, len(events) - 1 - t))
    return out


def chances(trace: Trace, layers: Any, horizon: int, half_life: int, even: float) -> np.ndarray:
    needed, total = np.zeros((4, 7)), np.zeros((4, 7))
    for layer in layers:
        for age, count, away, left in samples(trace, layer, half_life):
            cell = models.count_bucket(count, even), min(6, int(np.log2(age)))
            if away is not None or left >= horizon:
                total[cell] += 1
                needed[cell] += away is not None and away <= horizon
    mean = needed.sum(0) / np.maximum(total.sum(0), 1)
    return (needed + 4 * mean) / (total + 4)


def same(policy: Any, model: Callable[..., Model], trace: Trace, scope: str, slots: int) -> None:
    result = replay(trace, policy, PoolConfig(scope=scope, slots=slots), calibration=trace, log=True)
    hits, victims = 0, []
    for pool, events in enumerate(pool_events(trace, scope)):
        layers = trace.layers if scope == "global" else 1
        one = model(trace.header.num_experts, layers, **facts_of(policy, trace, scope, slots, pool))
        found, gone = run_model(one, events, slots)
        hits += found
        victims.append(gone)
    ours: list[list[int]] = [[] for _ in victims]
    for layer, _, _, _, codes, out in result.log:
        ours[layer if scope == "layer" else 0] += [v for c, v in zip(codes, out, strict=True) if c >= 0]
    assert result.hits == hits
    assert ours == victims


CASES: tuple[tuple[Any, Callable[..., Model]], ...] = (
    (Lfu(), models.LfuModel),
    (LfuPerfect(), models.LfuPerfectModel),
    (LfuDecayed(half_life=20), models.LfuDecayedModel),
    (LfuDecayed(half_life=41), models.LfuDecayedModel),
    (Lfru(), models.LfruModel),
    (Lfru(forget=False), models.LfruModel),
    (Gdsf(), models.GdsfModel),
    (Gdsf(cost="bytes"), models.GdsfModel),
    (LeastStale(), models.LeastStaleModel),
    (LeastStale(order="used"), models.LeastStaleModel),
    (LayerAware(), models.LayerAwareModel),
    (GateScore(half_life=3), models.GateScoreModel),
    (ClassLru(half_life=16), models.ClassLruModel),
    (ForecastEvict(horizon=3, half_life=8), models.ForecastModel),
    (LearnedNextUse(half_life=8, cap=16), models.LearnedModel),
    (ActivationMap(maps=3, rematch=3, half_life=8), models.ActivationModel),
    (ActivationMap(maps=2, rematch=1, half_life=1), models.ActivationModel),
    (SizeAwareFarthest(), models.FarthestBySizeModel),
)
name_of: Any = lambda p: getattr(p, "name", "")  # noqa: E731


@pytest.mark.parametrize(("policy", "model"), CASES, ids=name_of)
@given(
    seed=st.integers(0, 10_000),
    slots=st.integers(1, 7),
    group=st.integers(1, 3),
    scope=st.sampled_from(["layer", "global"]),
)
@settings(max_examples=12, deadline=None)
def test_small_pools_do_what_the_model_does(
    policy: Any, model: Any, seed: int, slots: int, group: int, scope: str
) -> None:
    same(policy, model, routed_trace(seed, tokens=36, layers=3, group=group, sizes=(4, 1, 2)), scope, slots)


@pytest.mark.parametrize(("policy", "model"), CASES, ids=name_of)
@pytest.mark.parametrize(("seed", "slots"), [(1, LISTS_FROM - 1), (2, LISTS_FROM), (1, HEAP_FROM), (2, HEAP_FROM + 2)])
def test_large_pools_use_no_scan_and_do_the_same(policy: Any, model: Any, seed: int, slots: int) -> None:
    trace = routed_trace(seed, tokens=70, layers=4, experts=64, top_k=4, group=1 + seed % 2, sizes=(4, 1, 2, 1))
    same(policy, model, trace, "global", slots)


@pytest.mark.parametrize(("policy", "model"), CASES[1:4], ids=name_of)
def test_what_an_event_counts_is_in_order_before_its_misses_are_placed(policy: Any, model: Any) -> None:
    rng = np.random.default_rng(3)
    events = [rng.permutation(250)[:90].tolist() for _ in range(25)]
    same(policy, model, trace_of(events, 250), "layer", HEAP_FROM)


def run_ahead(model: Model, events: list[tuple[int, Event]], slots: int) -> list[tuple[bool, int]]:
    """(resident before, victim) of each member; kinds other than DEMAND load ahead of need and are no uses."""
    out, pinned = [], set()  # type: list[tuple[bool, int]], set[int]
    free = list(range(slots))[::-1]
    for kind, (layer, members, scores) in events:
        present = [k for k in members if k in model.slot]
        pinned = set(present) | (pinned if kind == PREFETCH_BUSY else set())
        if kind == DEMAND:
            model.event += 1
            model.layer = layer
            model.begin(members, scores)
        for key in members:
            if key in present:
                out.append((True, -1))
                continue
            gone = -1
            if not free:
                if pinned >= set(model.slot):
                    if kind != DEMAND:
                        out.append((False, -2))
                        continue
                    pinned = set()
                gone = min((k for k in model.slot if k not in pinned), key=lambda k: (model.score(k), model.slot[k]))
                model.evicted(gone)
                free.append(model.slot.pop(gone))
            out.append((False, gone))
            model.slot[key] = free.pop()
            model.clock += 1
            pinned.add(key)
            model.placed(key)
            model.last[key] = model.clock
        for key in members if kind == DEMAND else ():
            model.clock += 1
            if key in model.slot:
                model.touched(key, key in present)
                model.last[key] = model.clock
    return out


@pytest.mark.parametrize(("policy", "model"), [c for c in CASES if not c[0].traits.needs_future], ids=name_of)
@pytest.mark.parametrize("slots", [6, LISTS_FROM, HEAP_FROM])
def test_what_is_loaded_ahead_is_placed_and_given_up_as_the_model_says(policy: Any, model: Any, slots: int) -> None:
    trace = routed_trace(slots, tokens=70, layers=4, experts=64, top_k=4, sizes=(4, 1, 2, 1))
    rng, seen = np.random.default_rng(slots), set()  # type: Any, set[int]
    events: list[tuple[int, Event]] = [(FILL, (0, rng.permutation(128)[: slots // 2].tolist(), np.zeros(64)))]
    for event in pool_events(trace, "global")[0]:
        events.append((DEMAND, event))
        seen |= set(event[1])
        if rng.random() < 0.6:
            ahead = rng.permutation(sorted(seen))[: int(rng.integers(1, 9))].tolist()
            events.append((int(rng.choice([PREFETCH, PREFETCH_BUSY, FILL])), (0, ahead, np.zeros(64))))
    layout = lay_out(PoolConfig(scope="global", slots=slots), policy, trace.shape)
    m, f, _ = initial_state(layout, policy, trace.shape, "", 0, trace, 0)
    offs = np.cumsum([0, *(len(e[1]) for _, e in events)]).astype(np.int64)
    flat = np.array([k for _, e in events for k in e[1]], np.int32)
    codes, victims = np.empty(len(flat), np.int32), np.empty(len(flat), np.int32)
    features = (
        np.array([e[2] for _, e in events], np.float32) if policy.traits.feature else np.zeros((1, 0), np.float32)
    )
    policy.run(m, f, np.zeros(len(events), np.int32), np.array([k for k, _ in events], np.int8), offs, flat,
               np.zeros(len(flat), np.float32), np.zeros(0, np.int64), np.zeros(0, np.int32), features,
               codes, victims, np.zeros(COUNTS, np.int64), np.zeros((0, 4), np.int64))  # fmt: skip
    ours = [
        (int(c) in (HIT, KEPT, PREFETCH_HIT), -2 if c == DROPPED else int(v))
        for c, v in zip(codes, victims, strict=True)
    ]
    one = model(64, 4, **facts_of(policy, trace, "global", slots, 0))
    assert ours == run_ahead(one, events, slots)


def test_a_heap_of_next_uses_makes_belady_s_choices() -> None:
    trace = routed_trace(5, tokens=80, layers=4, experts=64, top_k=4)  # one size
    same(Belady(), models.FarthestBySizeModel, trace, "global", 130)
    hits = [replay(trace, p, PoolConfig(scope="global", slots=130)).hits for p in (Belady(), SizeAwareFarthest())]
    assert hits[0] == hits[1]


@pytest.mark.parametrize(("policy", "model"), CASES, ids=name_of)
@pytest.mark.parametrize(("scope", "slots", "most"), [("global", 4, 1), ("layer", 3, 6)])
def test_events_of_one_expert_and_of_more_than_fit(policy: Any, model: Any, scope: str, slots: int, most: int) -> None:
    rng = np.random.default_rng(most)
    events = [rng.permutation(7)[: rng.integers(1, most + 1)].tolist() for _ in range(60)]
    same(policy, model, trace_of(events, 7, layers=2, sizes=(3, 1)), scope, slots)
    same(policy, model, routed_trace(most, tokens=60, layers=3, top_k=1, sizes=(4, 1, 2)), scope, slots)


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_least_stale_by_use_is_lru(scope: str) -> None:
    trace = routed_trace(3, tokens=80, layers=3)
    ours, lru = (replay(trace, p, PoolConfig(scope=scope, slots=6), log=True).log for p in (LeastStale("used"), Lru()))
    assert ours == lru


def test_layer_aware_is_lru_in_pools_of_one_layer() -> None:
    trace = routed_trace(4, tokens=80)
    ours, lru = (replay(trace, p, PoolConfig(slots=4), log=True).log for p in (LayerAware(), Lru()))
    assert ours == lru


@pytest.mark.parametrize("policy", LIVE, ids=name_of)
def test_decisions_do_not_know_what_is_coming(policy: Any) -> None:
    trace, calibration = routed_trace(6, tokens=40, sequences=4), routed_trace(60)
    whole = replay(trace, policy, PoolConfig(slots=4), calibration=calibration, log=True).log
    begun = replay(trace.select(np.arange(2)), policy, PoolConfig(slots=4), calibration=calibration, log=True).log
    assert whole[: len(begun)] == begun


@pytest.mark.parametrize("half_life", [1, 3, 64])
def test_learned_model_is_the_least_squares_fit_of_its_samples(half_life: int) -> None:
    trace, cap = routed_trace(8, tokens=60), 12
    rows, y = [], []
    for layer in range(trace.layers):
        for age, count, away, left in samples(trace, layer, half_life):
            if away is not None or left >= cap:
                rows.append([int(np.log2(age)), count, *(np.arange(trace.layers) == layer)])
                y.append(np.log2(min(away or cap, cap)))
    wanted = np.linalg.lstsq(np.asarray(rows, float), np.asarray(y), rcond=None)[0]
    moments = reuse_samples(trace, half_life, cap, cap)[2]
    moments[:, 2] = moments[:, :, 2] = 0.0
    slope, base = fit(moments)
    if wanted[0] >= 0:
        np.testing.assert_allclose(np.concatenate([slope[:2], base]), wanted, atol=1e-6)
    else:
        assert slope[0] == 0


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_learned_levels_span_two_deviations_either_side_of_what_uses_say(weights: bool, scope: str) -> None:
    trace, policy = routed_trace(9, tokens=60, layers=3), LearnedNextUse(half_life=8, cap=16, weights=weights)
    moments = reuse_samples(trace, 8, 16, 16)[2]
    if not weights:
        moments[:, WEIGHT] = moments[:, :, WEIGHT] = 0
    f = prepared(policy, trace, scope, 6)
    for pool, mine in enumerate([[0, 1, 2]] if scope == "global" else [[0], [1], [2]]):
        slope, base = fit(moments[mine])
        assert f[pool, MODEL, :3].tolist() == slope.tolist() and f[pool, BASE, : len(mine)].tolist() == base.tolist()
        n = total = square = 0.0
        for part, intercept in zip(moments[mine], base, strict=True):
            says = {COUNT: slope[1], WEIGHT: slope[2], ONE: intercept}
            n += part[ONE, ONE]
            total += sum(a * part[i, ONE] for i, a in says.items())
            square += sum(a * b * part[i, j] for i, a in says.items() for j, b in says.items())
        spread = np.sqrt(square / n - (total / n) ** 2)
        np.testing.assert_allclose(f[pool, MODEL, 3:5], (total / n - 2 * spread, 4 * spread / 15), rtol=1e-9)
    f = prepared(policy, trace_of([(0,)], 3), "layer", 2)
    assert f[0, MODEL, 3:5].tolist() == [0, 1e-9] and policy.traits.calibration


def stepping(seed: int, passes: int = 600) -> Trace:
    """Four experts of every pass come from a set that is used again at once or not for long: frequency tells which."""
    rng = np.random.default_rng(seed)
    weight = np.concatenate([np.full(4, 8.0), np.ones(28)])
    return trace_of([rng.choice(32, 3, replace=False, p=weight / weight.sum()).tolist() for _ in range(passes)], 32)


@pytest.mark.parametrize("policy", [LearnedNextUse(), ForecastEvict(), ActivationMap()], ids=name_of)
def test_what_is_learned_beats_chance(policy: Any) -> None:
    trace, calibration = stepping(1), stepping(2)
    ours, random = (replay(trace, p, PoolConfig(slots=6), calibration=calibration).hits for p in (policy, Random()))
    assert ours > random * 1.15


def test_static_hot_sequence_profile_sees_only_its_first_passes() -> None:
    trace = trace_of([(0,), (1,), (1,), (2,), (1,), (0,), (2,), (1,)], 4)
    result = replay(trace, StaticHot(scope="sequence", passes=3), PoolConfig(slots=3), log=True)
    assert result.hits_event.tolist() == [0, 0, 0, 0, 1, 1, 0, 1]  # 1 and 0 were seen by then; 2 was not
    assert result.proactive_loads == 2
    cold = replay(routed_trace(1), StaticHot(scope="sequence", passes=5), PoolConfig(slots=4), reset="sequence")
    assert cold.proactive_loads <= 3 * 2 * 2 and cold.hits > 0


def test_static_hot_domain_profiles_only_that_domain() -> None:
    trace = routed_trace(2, tokens=80, sequences=4)
    for s, meta in enumerate(trace.header.sequences):
        meta["domain"] = "code" if s % 2 else "prose"
    ours = replay(trace, StaticHot(scope="domain", domain="code"), PoolConfig(slots=4), calibration=trace)
    alone = replay(trace, StaticHot(), PoolConfig(slots=4), calibration=trace.select(np.array([1, 3])))
    assert ours.hits == alone.hits
    with pytest.raises(TraceError, match="'sequences'.*code, prose"):
        replay(trace, StaticHot(scope="domain", domain="law"), PoolConfig(slots=4), calibration=trace)


def test_a_collection_starts_with_the_least_similar_maps_and_ends_with_centres() -> None:
    maps = np.array([[2, 0, 0], [0, 0, 0], [3, 0.1, 0], [0, 0, 5], [0.1, 4, 0]])
    unit = maps[[0, 2, 3, 4]] / np.linalg.norm(maps[[0, 2, 3, 4]], axis=1, keepdims=True)
    middle = (unit[0] + unit[1]) / np.linalg.norm(unit[0] + unit[1])
    np.testing.assert_allclose(collection(maps, 3), [middle, unit[2], unit[3]], atol=1e-12)
    np.testing.assert_allclose(collection(maps, 1), [unit.mean(0) / np.linalg.norm(unit.mean(0))], atol=1e-12)
    assert collection(maps, 99).shape == (4, 3) and collection(maps[1:2], 5).tolist() == [[0, 0, 0]]


def test_a_gate_weight_that_was_not_recorded_is_named() -> None:
    trace = routed_trace(1)
    trace.weights = None
    with pytest.raises(TraceError, match="weights"):
        replay(trace, LearnedNextUse(weights=True), PoolConfig(slots=4), calibration=trace)


@pytest.mark.parametrize(
    "make",
    [
        lambda: LfuDecayed(half_life=0), lambda: Gdsf(cost="time"), lambda: LeastStale(order="layer"),
        lambda: GateScore(half_life=0), lambda: ClassLru(half_life=0), lambda: ForecastEvict(horizon=0),
        lambda: LearnedNextUse(cap=1), lambda: ActivationMap(maps=9), lambda: StaticHot(scope="document"),
        lambda: StaticHot(scope="domain"), lambda: StaticHot(domain="code"), lambda: StaticHot(passes=0),
    ],
)  # fmt: skip
def test_parameters_out_of_range_are_refused(make: Callable[[], Any]) -> None:
    with pytest.raises(InputError, match="policy\\."):
        make()
