"""The rotary family: what each transform computes, what may move, and what a choice may not depend on."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rgpu.errors import InputError
from rgpu.policies.rotary import Rotary
from rgpu.policies.rotary_hybrid import RotaryHybrid
from rgpu.policies.rotary_paper import RotaryPaper
from rgpu.policies.rotation import state as s
from rgpu.policies.rotation.learning import random_rotation
from rgpu.policies.rotation.ring import by_shift
from rgpu.policies.rotation.spaces import exchange
from rgpu.policies.router_lag import RouterLag
from rgpu.replay.controller import Controller, replay_events
from rgpu.replay.engine import replay
from rgpu.replay.pool import PoolConfig, initial_state, lay_out
from rgpu.replay.stream import routing_events
from rgpu.traces.trace import DECODE, Trace, TraceHeader
from tests.support import routed_trace
from tests.unit.policies.rotating import ALL, CHOICES, Watched, placed, signatures, toy, write_router

FAMILY = (RotaryPaper, RotaryHybrid)


@pytest.mark.parametrize("kind", FAMILY, ids=lambda k: k.name)
@pytest.mark.parametrize("choice", CHOICES, ids=str)
@pytest.mark.parametrize("hidden", [True, False], ids=["hidden", "routing"])
def test_every_choice_decides_alike_live_and_in_replay(kind: Any, choice: dict[str, Any], hidden: bool) -> None:
    own, pool, trace = placed(choice)
    if not hidden:
        trace.hidden = None
    policy = kind(**own)
    result = replay(trace, policy, pool, calibration=trace, log=True)
    controller = Controller(
        policy, trace.shape, pool, calibration=trace, feature="hidden" if hidden else "routing", touch_order="rank"
    )
    assert replay_events(controller, routing_events(trace)).log == result.log
    assert 0 < result.hits < result.accesses


def steps_of(watched: Watched) -> dict[tuple[int, int], int]:
    """Slots changed of each layer in each pass: one decision's worth, in whatever event they were loaded."""
    total: dict[tuple[int, int], int] = {}
    for number, _, moved in watched.loads:
        for layer, n in moved.items():
            total[number, layer] = total.get((number, layer), 0) + n
    return total


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 99),
    transforms=st.lists(st.sampled_from(ALL), min_size=1, max_size=4, unique=True),
    step=st.sampled_from([0, 0.4, 1, 1.5, 2, 3]),
    heads=st.sampled_from([1, 2]),
    scope=st.sampled_from(["layer", "global"]),
    shared=st.booleans(),
    keep=st.booleans(),
    cycle=st.sampled_from([None, 0, 2]),
    returns=st.booleans(),
    kind=st.sampled_from(FAMILY),
)
def test_no_more_slots_of_a_layer_change_than_the_step(
    seed: int, transforms: list[str], step: float, heads: int, scope: str, shared: bool, keep: bool, cycle: int | None,
    returns: bool, kind: Any,
) -> None:  # fmt: skip
    trace = routed_trace(seed, tokens=30, sequences=1, experts=9)
    mode = "synchronised" if shared and scope == "global" else "per_layer"
    policy = kind(transforms=transforms, step=step, heads=heads, mode=mode, keep_misses=keep, cycle=cycle,
                  tau_return=0.5 if returns else None, return_step=0)  # fmt: skip
    watched = Watched(policy, trace, PoolConfig(scope=scope, slots=4 if scope == "layer" else 7))
    moved = steps_of(watched)
    assert max(moved.values(), default=0) <= np.ceil(step)
    for layer in range(2):
        assert sum(n for (_, at), n in moved.items() if at == layer) <= step * 30
    if not step:
        assert not moved


def exact_router_trace(seed: int, experts: int = 8, hidden: int = 6) -> tuple[Trace, np.ndarray]:
    """A trace whose logits are rows @ hidden exactly, in float16 and without ties, and whose ids are their top 2."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(-8, 9, (2, experts, hidden)).astype(np.float64)
    trace = toy(hidden=hidden, experts=experts)
    for t in range(trace.tokens):
        while True:
            h = rng.integers(-8, 9, (2, hidden)).astype(np.float64)
            logits = np.einsum("led,ld->le", rows, h) / 64
            if all(len(set(row)) == experts for row in logits.tolist()):
                break
        assert trace.hidden is not None and trace.router_logits is not None
        trace.hidden[t], trace.router_logits[t] = h / 64, logits
        assert (trace.router_logits[t] == logits).all()
        trace.expert_ids[t] = np.argsort(-logits, axis=1)[:, :2]
    return trace, rows


@pytest.mark.parametrize("slots", [3, 5, 7])
def test_router_rows_without_rotation_hold_what_the_lagged_router_holds(tmp_path: Path, slots: int) -> None:
    trace, rows = exact_router_trace(slots)
    router = write_router(tmp_path / "model.safetensors", rows)
    policy = RotaryPaper(signatures="router_rows", router=str(tmp_path), step=None)
    rotary, lag = Watched(policy, trace, PoolConfig(slots=slots)), Watched(RouterLag(), trace, PoolConfig(slots=slots))
    assert trace.router_logits is not None
    for e, (ours, theirs) in enumerate(zip(rotary.resident, lag.resident, strict=True)):
        t, layer = divmod(e, 2)
        top = np.argsort(-trace.router_logits[t, layer].astype(np.float64))[: slots - 1]
        assert set(np.flatnonzero(ours[layer])) == set(top)
        assert (ours[layer] == theirs[layer]).all()
    assert RotaryPaper(signatures="router_rows", router=str(router)).name  # a file does as well as its folder


@pytest.mark.parametrize("rotation", ["identity", "random"])
@pytest.mark.parametrize("heads", [1, 2])
def test_projection_scores_are_those_of_an_explicit_rotation(rotation: str, heads: int) -> None:
    trace = toy()
    plain = Watched(RotaryPaper(heads=heads), trace, PoolConfig(slots=4))
    watched = Watched(RotaryPaper(rotation=rotation, heads=heads), trace, PoolConfig(slots=4), seed=3)
    assert trace.hidden is not None
    for layer in range(2):
        h, s_EF = trace.hidden[-1, layer].astype(np.float64), signatures(plain, plain.before, layer)
        for head in range(heads):
            part = slice(head * 5 // heads, (head + 1) * 5 // heads)
            w = np.eye(part.stop - part.start)
            if rotation == "random":
                w = random_rotation(len(w), (3, layer, *([head] if heads > 1 else [])))
                assert np.abs(w @ w.T - np.eye(len(w))).max() < 1e-10
            expected = s_EF[:, part] @ (w @ h[part])
            got = watched.f[layer, s.SCORE + s.HEAD_ROWS * head, :8]
            assert np.abs(got - expected).max() < 1e-12


@pytest.mark.parametrize("pooling", ["mean", "decay"])
def test_trajectory_scores_are_those_of_the_last_routing_vectors(pooling: str) -> None:
    trace = toy()
    policy = RotaryPaper(transforms=["trajectory"], pooling=pooling, window=5, rotation="random")
    watched = Watched(policy, trace, PoolConfig(slots=4))
    assert trace.weights is not None
    for layer in range(2):
        vectors = np.zeros((40, 8))
        np.put_along_axis(
            vectors, trace.expert_ids[:, layer].astype(int), trace.weights[:, layer].astype(float), axis=1
        )
        vectors /= vectors.sum(1, keepdims=True)
        age = np.arange(40)[::-1]
        weight = (age < 5).astype(float) if pooling == "mean" else 0.8**age
        pooled = weight @ vectors / weight.sum()
        row = int(watched.m[layer, s.LIVE, s.TRAJECTORY])
        per = watched.f.shape[2] // 8
        table = np.stack([watched.f[layer, row + e // per, e % per * 8 : e % per * 8 + 8] for e in range(8)])
        assert np.abs(watched.f[layer, s.SCORE, :8] - table @ pooled).max() < 1e-6
        p, q = vectors[-16:].sum(0), vectors.sum(0)  # the buffer holds all 40
        assert np.abs(watched.f[layer, s.LATELY, :8] - p).max() < 1e-6
        assert np.abs(watched.f[layer, s.LONGER, :8] - q).max() < 1e-6


def test_phase_holds_the_experts_at_the_input_s_angle() -> None:
    trace = toy()
    policy = RotaryPaper(transforms=["phase"], step=None, ring_window="centred", cycle=0)
    watched = Watched(policy, trace, PoolConfig(slots=4))
    assert trace.hidden is not None
    for layer in range(2):
        s_EF = signatures(watched, watched.f, layer)
        centred = s_EF - s_EF.mean(0)
        axes = np.linalg.svd(centred, full_matrices=False)[2][:2]
        x = axes @ (trace.hidden[-1, layer].astype(float) - trace.hidden[:, layer].astype(float).mean(0))
        cosines = (centred @ axes.T @ x) / np.linalg.norm(centred @ axes.T, axis=1) / np.linalg.norm(x)
        assert set(np.flatnonzero(watched.resident[-1][layer])) == set(np.argsort(-cosines)[:3])


def test_the_opposite_shift_recalls_the_earlier_window() -> None:
    watched = Watched(RotaryPaper(transforms=["cyclic"], cycle=0), toy(), PoolConfig(slots=4))
    m, f = watched.m[0], watched.f[0]
    by_shift(m, f, 0, 0, 0.0, 8)
    before, place = f[s.SCRATCH, :8].copy(), int(m[s.PLACE, 0])
    by_shift(m, f, 0, 0, 1.7, 8)
    assert m[s.PLACE, 0] == (place + 2) % 8
    assert (f[s.SCRATCH, :8] != before).any()
    by_shift(m, f, 0, 0, -1.7, 8)
    assert (f[s.SCRATCH, :8] == before).all()


@pytest.mark.parametrize(("direction", "way"), [("forward", 1), ("reverse", -1)])
def test_a_fixed_direction_ignores_the_sign(direction: str, way: int) -> None:
    watched = Watched(RotaryPaper(transforms=["cyclic"], direction=direction), toy(), PoolConfig(slots=4))
    m, f = watched.m[0], watched.f[0]
    for theta in (1.7, -1.7):
        place = int(m[s.PLACE, 0])
        by_shift(m, f, 0, 0, theta, 8)
        assert m[s.PLACE, 0] == (place + 2 * way) % 8


@pytest.mark.parametrize("heads", [2, 4])
@pytest.mark.parametrize(("scope", "slots"), [("layer", 6), ("global", 12)])
def test_heads_keep_slots_of_their_own(heads: int, scope: str, slots: int) -> None:
    policy = RotaryPaper(heads=heads, transforms=["projection", "cyclic"], rotation="random")
    watched = Watched(policy, toy(), PoolConfig(scope=scope, slots=slots))
    assert sum(n for _, _, moved in watched.loads for n in moved.values()) > 40
    held: dict[tuple[int, int], int] = {}
    for p, m in enumerate(watched.m):
        for key in m[1][m[1] >= 0][: watched.controller.layout.main[p]].tolist():
            group = (p if scope == "layer" else key // 8, int(m[s.OWNER, key]))
            held[group] = held.get(group, 0) + 1
    a_layer = {"layer": [5, 5], "global": [6, 5]}[scope]
    expected = {(i, h): n // heads + (h < n % heads) for i, n in enumerate(a_layer) for h in range(heads)}
    assert held == expected


def contexts(order: str, length: int = 12, experts: int = 8) -> Trace:
    """A trace of contexts, each an input direction with four experts of its own that take turns."""
    rng = np.random.default_rng(0)
    base = {"A": np.array([4.0, 0, 0, 0]), "B": np.array([0, 4.0, 0, 0])}
    hidden, ids = [], []
    for name in order:
        for i in range(length):
            hidden.append(base[name] + 0.05 * rng.standard_normal(4))
            first = 0 if name == "A" else 4
            ids.append([first + i % 4, first + (i + 1) % 4])
    n = len(ids)
    return Trace(
        TraceHeader("contexts", experts, 2, [0]), np.asarray(ids, np.uint8)[:, None], np.array([0, n]),
        np.arange(n, dtype=np.int32), np.arange(n, dtype=np.int32), weights=np.full((n, 1, 2), 0.5, np.float16),
        phase=np.full(n, DECODE, np.uint8), hidden=np.asarray(hidden, np.float16)[:, None],
    )  # fmt: skip


def test_return_restores_the_earlier_set_at_once() -> None:
    trace = contexts("ABA")
    after = {}
    for tau in (None, 0.9):
        watched = Watched(RotaryPaper(step=1, tau_return=tau), trace, PoolConfig(slots=5))
        left, back = (set(np.flatnonzero(watched.resident[t][0])) for t in (11, 24))
        assert left == {0, 1, 2, 3}
        after[tau] = back
    assert after[0.9] == {0, 1, 2, 3}
    assert after[None] != {0, 1, 2, 3}


def two_histories() -> tuple[Trace, Trace]:
    """The same inputs; routed ids permuted token by token but for the last, so only counts and recency differ."""
    one, other = toy(), toy()
    rng = np.random.default_rng(5)
    for t in range(other.tokens - 1):
        other.expert_ids[t] = rng.permutation(8)[other.expert_ids[t]]
    return one, other


@pytest.mark.parametrize("transforms", [["projection"], ["phase"], ["cyclic"], ["projection", "phase", "cyclic"]])
@pytest.mark.parametrize("more", [{}, {"heads": 2}, {"tau_return": 0.5}, {"rotation": "calibrated"}], ids=str)
def test_counts_and_recency_do_not_choose(transforms: list[str], more: dict[str, Any]) -> None:
    one, other = two_histories()
    given = {"transforms": transforms, "keep_misses": False, **more}
    for kind, alike in ((RotaryPaper, True), (RotaryHybrid, False)):
        a, b = (Watched(kind(**given), t, PoolConfig(slots=5), calibration=one) for t in (one, other))
        same = all((x == y).all() for x, y in zip(a.resident, b.resident, strict=True))
        assert same == alike


def test_the_hybrid_without_its_weights_is_the_paper_s() -> None:
    trace = toy()
    hybrid = RotaryHybrid(weight_recency=0.0, weight_frequency=0.0)
    logs = [replay(trace, p, PoolConfig(slots=4), calibration=trace, log=True).log for p in (hybrid, RotaryPaper())]
    assert logs[0] == logs[1]


@pytest.mark.parametrize(
    "choice",
    [{"transforms": [name], "signatures": "random"} for name in ("projection", "phase", "cyclic")]
    + [{"transforms": [name], "ring_order": "random"} for name in ("phase", "cyclic")],
    ids=str,
)
def test_a_blind_rotation_hits_what_fits(choice: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    n, experts, k, slots = 4000, 16, 2, 6
    ids = np.stack([rng.permutation(experts)[:k] for _ in range(n)]).astype(np.uint8)[:, None]
    trace = Trace(
        TraceHeader("uniform", experts, k, [0]), ids, np.array([0, n]), np.arange(n, dtype=np.int32),
        np.arange(n, dtype=np.int32), hidden=rng.standard_normal((n, 1, 8)).astype(np.float16),
    )  # fmt: skip
    result = replay(trace, RotaryPaper(**choice), PoolConfig(slots=slots), calibration=trace)
    held = (slots - 1) / experts
    assert abs(result.hit_rate - held) < 4 * np.sqrt(held * (1 - held) / (n * k))


def test_one_decision_a_token_where_layers_move_together() -> None:
    for mode, scope, leaders in (("synchronised", "global", {0}), ("grouped", "group3", {0, 2, 4})):
        policy = RotaryPaper(mode=mode, keep_misses=False)
        watched = Watched(policy, toy(6), PoolConfig(scope=scope, slots=25 if scope == "global" else 9))
        acting = {layer for _, layer, moved in watched.loads if moved}
        assert acting == leaders
        assert {at for _, _, moved in watched.loads for at in moved} == set(range(6))


def test_switching_follows_the_hit_rate() -> None:
    for below, leaders in ((0.0, {0}), (1.0, {0, 1, 2, 3, 4, 5})):
        policy = RotaryPaper(mode="switching", switch_below=below, keep_misses=False)
        watched = Watched(policy, toy(6), PoolConfig(scope="global", slots=25))
        assert {layer for _, layer, moved in watched.loads if moved} == leaders


@pytest.mark.parametrize("transforms", [["projection"], ["phase"], ["cyclic"], ["projection", "trajectory"]])
@pytest.mark.parametrize("hidden", [0, 6], ids=["routing", "hidden"])
def test_switching_that_never_switches_is_one_of_the_two(transforms: list[str], hidden: int) -> None:
    trace = toy(4, hidden=6) if hidden else replace(toy(4), hidden=None)
    own: dict[str, Any] = {"transforms": transforms, "rotation": "random"}
    ways = [(1.0, "per_layer")]
    if "phase" not in transforms and "cyclic" not in transforms:  # on a ring the first fill is each layer's own
        ways.append((0.0, "synchronised"))
    for below, mode in ways:
        logs = [
            replay(trace, RotaryPaper(**own, **more), PoolConfig("global", 12), calibration=trace, log=True).log
            for more in ({"mode": "switching", "switch_below": below}, {"mode": mode})
        ]
        assert logs[0] == logs[1], mode


def test_switching_changes_spaces_and_back() -> None:
    trace = toy(3, hidden=6)
    policy = RotaryPaper(mode="switching", transforms=["projection", "phase"], rotation="random", heads=2)
    layout = lay_out(PoolConfig("global", 12), policy, trace.shape)
    m, f, _ = initial_state(layout, policy, trace.shape, "hidden", 6, trace, 0)
    m0, f0 = m[0].copy(), f[0].copy()
    exchange.py_func(m[0], f[0])
    assert m[0, s.LIVE, s.USED] == 1 and not np.array_equal(f[0], f0) and not np.array_equal(m[0, s.RANK], m0[s.RANK])
    exchange.py_func(m[0], f[0])
    assert np.array_equal(f[0], f0) and np.array_equal(m[0], m0)


def adapted(hidden: np.ndarray, **more: Any) -> Watched:
    trace = contexts("A", length=len(hidden))
    trace.hidden = hidden.astype(np.float16)[:, None]
    quiet = {"entropy_surge": 9.0, "storm_events": None, "hit_rate_high": 1.0, "hit_rate_scale": 1.0}
    policy = RotaryPaper(adaptive_step=True, **(quiet | more))
    return Watched(policy, trace, PoolConfig(slots=9), calibration=contexts("AB"))


def test_adaptive_controls_follow_their_signals() -> None:
    still, jump = np.tile([1.0, 0, 0, 0], (6, 1)), np.tile([1.0, 0, 0, 0], (6, 1))
    jump[-1] = [0, 1.0, 0, 0]
    between = still.copy()
    between[-1] = [0.5, 0.87, 0, 0]

    def step(watched: Watched) -> float:
        return float(watched.f[0, s.NOW, s.STEP_NOW])

    assert step(adapted(still)) == 0.5
    assert step(adapted(jump)) == 3.0
    assert step(adapted(between)) == 2.0
    assert step(adapted(between, entropy_surge=0.9)) == 3.0
    assert step(adapted(jump, hit_rate_high=0.5, hit_rate_scale=0.5)) == 1.5
    assert step(adapted(still, step=0, step_low=0, distance_high=2, storm_events=1)) == 0.0  # holds all: no misses


def test_cycle_and_window_adapt() -> None:
    trace = toy()
    assert trace.weights is not None
    trace.weights[:] = [1.0, 0.0]
    trace.weights[-1] = 0.5
    policy = RotaryPaper(transforms=["cyclic", "trajectory"], adaptive_cycle=True, adaptive_window=True, kl_threshold=9)
    watched = Watched(policy, trace, PoolConfig(slots=4))
    assert watched.m[0, s.LIVE, s.CYCLE] == 3  # 8 experts over 3 slots
    assert watched.m[0, s.LIVE, s.CYCLE_NOW] == 4  # the last token's routing is more uncertain
    assert watched.m[0, s.LIVE, s.WINDOW] == 32
    fast = Watched(
        RotaryPaper(transforms=["trajectory"], adaptive_window=True, kl_threshold=0), trace, PoolConfig(slots=4)
    )
    assert fast.m[0, s.LIVE, s.WINDOW] == 8


def test_the_simplest_form_agrees_with_rotary_where_members_need_no_protection() -> None:
    trace = contexts("ABAB")
    pair = (RotaryPaper(), Rotary())
    a, b = (replay(trace, p, PoolConfig(slots=5), calibration=trace, log=True) for p in pair)
    assert a.hits == b.hits and a.loads == b.loads


def test_mean_signatures_of_a_follower_are_taken_where_the_leader_looks() -> None:
    trace = toy()
    own = Watched(RotaryPaper(), trace, PoolConfig(scope="global", slots=9))
    led = Watched(RotaryPaper(mode="synchronised"), trace, PoolConfig(scope="global", slots=9))
    a, b = (signatures(w, w.before) for w in (own, led))
    assert (a[:8] == b[:8]).all()
    assert trace.hidden is not None
    x = trace.hidden[:, 0].astype(np.float64)
    for e in range(8):
        routed = (trace.expert_ids[:, 1] == e).any(1)
        if not routed.any():
            assert not b[8 + e].any()
            continue
        mean = x[routed].mean(0) - x.mean(0)
        assert np.abs(b[8 + e] - mean / np.linalg.norm(mean)).max() < 1e-12


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ({"transforms": []}, "transforms"),
        ({"transforms": ["spin"]}, "transforms"),
        ({"transforms": ["phase", "phase"]}, "transforms"),
        ({"rotation": "learnt"}, "rotation"),
        ({"signatures": "rows"}, "signatures"),
        ({"similarity": "l2"}, "similarity"),
        ({"ring_order": "size"}, "ring_order"),
        ({"ring_map": "x"}, "ring_map"),
        ({"ring_window": "x"}, "ring_window"),
        ({"direction": "up"}, "direction"),
        ({"mode": "all"}, "mode"),
        ({"pooling": "max"}, "pooling"),
        ({"heads": 0}, "heads"),
        ({"heads": 9}, "heads"),
        ({"heads": 1.5}, "heads"),
        ({"step": -1}, "step"),
        ({"step": "two"}, "step"),
        ({"step": None, "adaptive_step": True}, "step"),
        ({"window": 65}, "window"),
        ({"tau_return": 2}, "tau_return"),
        ({"online_rate": -0.1}, "online_rate"),
        ({"hit_rate_high": True}, "hit_rate_high"),
    ],
    ids=str,
)
def test_a_bad_choice_is_refused_by_name(bad: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=rf"^policy\.{named}: got .*; expected .*; \w+[^\n]*$"):
        RotaryPaper(**bad)
    with pytest.raises(InputError, match=named):
        RotaryHybrid(**bad)


@pytest.mark.parametrize(
    ("given_", "named"),
    [
        ({"mode": "synchronised"}, "mode"),
        ({"mode": "grouped"}, "mode"),
        ({"mode": "switching"}, "mode"),
        ({"heads": 4}, "heads"),
        ({"signatures": "router_rows"}, "router"),
        ({"signatures": "router_rows", "router": "/nowhere.safetensors"}, "router"),
        ({"online": True, "scope": "global"}, "online"),
    ],
    ids=str,
)
def test_what_the_pools_cannot_do_is_refused_by_name(given_: dict[str, Any], named: str) -> None:
    own, pool, trace = placed(given_)
    with pytest.raises(InputError, match=rf"policy\.{named}: (got|cannot read) "):
        replay(trace, RotaryPaper(**own), pool, calibration=trace)


def test_router_rows_need_hidden_states_of_their_width(tmp_path: Path) -> None:
    trace = toy()
    write_router(tmp_path / "m.safetensors", np.zeros((2, 8, 7)))
    policy = RotaryPaper(signatures="router_rows", router=str(tmp_path))
    with pytest.raises(InputError, match=r"policy\.router: got routers of shape"):
        replay(trace, policy, PoolConfig(slots=4), calibration=trace)
    trace.hidden = None
    with pytest.raises(InputError, match=r"policy\.signatures: got router_rows"):
        replay(trace, policy, PoolConfig(slots=4), calibration=trace)
    (tmp_path / "m.safetensors").write_bytes(b"\x00" * 4 + b"\xff" * 8)
    with pytest.raises(InputError, match=r"policy\.router: cannot read"):
        replay(toy(), policy, PoolConfig(slots=4), calibration=toy())
