"""Decisions of the rotary family put together from their parts, exchanges of spaces, and the hybrid's counts and recency."""

from typing import Any

import numpy as np
import pytest

from rgpu.policies import rotary_hybrid
from rgpu.policies.loop import SLOT_OF, make_state
from rgpu.policies.rotation import decide, projection, ring, spaces, trajectory
from rgpu.policies.rotation import state as s
from rgpu.replay.pool import PoolConfig, initial_state, lay_out
from tests.unit.policies.rotating import toy
from tests.unit.policies.rotation_states import (
    DEPTH,
    EXPERTS,
    FIRSTS,
    KEYS,
    LAYERS,
    SLOTS,
    WIDTH,
    block,
    drawn,
)


def test_a_memory_of_one_context_needs_the_projection_too(monkeypatch: pytest.MonkeyPatch) -> None:
    interpreted(monkeypatch)
    rng, m, f = drawn(1)
    m[s.INTS, [s.TRANSFORMS, s.DEPTH]], m[s.LIVE, s.WINDOW], f[s.NUMBERS, s.TAU] = (s.TRAJECTORIES, 1), 5, 2.0
    x, scored = rng.standard_normal(WIDTH), f.copy()
    projection.project.py_func(m, scored, 0, x)
    decide.score.py_func(m, f, 0, x)
    wanted = sum(scored[block(s.SCORE + s.HEAD_ROWS * h, 0)] for h in range(2))
    np.testing.assert_allclose(f[block(s.recalled_row(2), 0)], wanted, atol=1e-12)
    assert m[s.ENTRY, 0] == 1


def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts that `decide` puts together, uncompiled."""
    for name in ("allowance", "project", "save", "sum_heads", "recall", "phase_of", "blend", "by_phase", "by_shift",
                 "by_trajectory", "favour"):  # fmt: skip
        monkeypatch.setattr(decide, name, getattr(decide, name).py_func)


@pytest.mark.parametrize("kinds", range(1, 16))
@pytest.mark.parametrize("depth", [0, DEPTH])
@pytest.mark.parametrize("first", FIRSTS)
def test_a_score_adds_up_its_transforms(monkeypatch: pytest.MonkeyPatch, kinds: int, depth: int, first: int) -> None:
    interpreted(monkeypatch)
    rng, m, f = drawn(kinds)
    x, standard = rng.standard_normal(WIDTH), kinds & (kinds - 1) > 0
    m[s.INTS, [s.TRANSFORMS, s.STANDARD, s.DEPTH, s.RETURN_STEP]] = kinds, standard, depth, 4
    m[s.LIVE, s.WINDOW], m[s.COUNT, first], m[s.PLACE, :KEYS] = 5, 9, rng.integers(0, EXPERTS, KEYS)
    m[s.RANK : s.RANK + 2, :KEYS] = np.tile(rng.permutation(EXPERTS), LAYERS)
    f[s.NUMBERS, [s.WEIGHT_PROJECTION, s.WEIGHT_PHASE, s.WEIGHT_CYCLIC, s.WEIGHT_TRAJECTORY]] = 0.5, 1.5, 2.0, 3.0
    f[s.NUMBERS, s.TAU], f[s.NOW, s.STEP_NOW], f[s.PARTIAL] = 0.9, 2.0, 0.0
    m[s.ENTRY, first], m[s.OLDEST, first] = 1, 2
    old, book = f.copy(), m.copy()
    projection.project.py_func(book, old, first, x)
    rows = [block(s.SCORE + s.HEAD_ROWS * h, first) for h in range(2)]
    met, m2 = kinds % 2 == 0 and depth > 0, book.copy()
    if met:  # entry 1 is the context the layer comes to
        f[block(s.recalled_row(2) + 1, first)] = sum(old[row] for row in rows)
        m[s.MEMORY + 2, first : first + EXPERTS] = book[s.MEMORY + 2, first : first + EXPERTS] = rng.integers(
            0, 3, EXPERTS
        )
    parts: list[list[tuple[float, np.ndarray]]] = []
    for h in range(2):
        theta = ring.phase_of.py_func(m2, old, first, h) if kinds & (s.PHASE_ROTATION | s.CYCLIC) else 0.0
        found = [(0.5, old[rows[h]].copy())] if kinds & s.PROJECTION else []
        for bit, weight in ((s.PHASE_ROTATION, 1.5), (s.CYCLIC, 2.0), (s.TRAJECTORIES, 3.0)):
            if kinds & bit:
                if bit == s.PHASE_ROTATION:
                    ring.by_phase.py_func(m2, old, first, h, theta)
                elif bit == s.CYCLIC:
                    ring.by_shift.py_func(m2, old, first, h, theta, 2)
                else:
                    trajectory.by_trajectory.py_func(m2, old, first)
                found.append((weight, old[block(s.SCRATCH, first)].copy()))
        parts.append(found)
        decided = theta
    decide.score.py_func(m, f, first, x)
    for h, found in enumerate(parts):
        wanted = sum(w * ((v - v.mean()) / v.std() if standard else v) for w, v in found)
        if kinds == s.PROJECTION:
            wanted = found[0][1]
        if met:
            wanted = wanted + (np.ptp(wanted) + 1000) * (m[s.MEMORY + 2, first : first + EXPERTS] == h + 1)
        np.testing.assert_allclose(f[rows[h]], wanted, atol=1e-9)
    assert f[s.THETA, first + 1] == pytest.approx(decided, abs=1e-12)
    assert m[s.LEFT, first] == (4 if met else 2) and m[s.ENTRY, first] == ((2 if met else 3) if depth else 1)
    if depth:  # what was resident is kept for the context that is left
        held = [m[s.OWNER, k] + 1 if m[SLOT_OF, k] >= 0 else 0 for k in range(first, first + EXPERTS)]
        assert m[s.MEMORY, first : first + EXPERTS].tolist() == held


@pytest.mark.parametrize("mode", [s.PER_LAYER, s.TOGETHER, s.SWITCHING])
@pytest.mark.parametrize("first", FIRSTS)
@pytest.mark.parametrize("seed", range(24))
def test_a_pool_s_first_layer_decides_for_all_where_they_move_together(
    monkeypatch: pytest.MonkeyPatch, mode: int, first: int, seed: int
) -> None:
    rng, m, f = drawn(seed)
    calls: list[Any] = []
    raging = bool(rng.random() < 0.3)
    for name in ("observe", "remember", "turn", "adapt", "score", "exchange"):
        monkeypatch.setattr(
            decide, name, lambda *given, name=name: calls.append((name, given[2] if name == "score" else 0))
        )
    monkeypatch.setattr(decide, "storm", lambda m, first: raging)
    rate, below, switch = (float(v) for v in rng.choice([0.25, 0.5, 0.75], 3))
    online, kinds, used, before = int(rng.integers(0, 2)), int(rng.integers(1, 16)), int(rng.integers(0, 2)), seed % 2
    f[s.NOW, s.HIT_RATE], f[s.MORE, s.ONLINE_BELOW], f[s.MORE, s.SWITCH_BELOW] = rate, below, switch
    m[s.INTS, [s.ONLINE, s.TRANSFORMS, s.SHARED]] = online, kinds, mode
    m[s.LIVE, [s.USED, s.JOINT, s.PHASE, s.FROM, s.TO]] = used, before, 7, 7, 7
    x, old = rng.standard_normal(WIDTH), f.copy()
    decide.decide.py_func(m, f, np.zeros(0, int), np.zeros(0), x)
    assert not calls and m[s.LIVE, [s.PHASE, s.FROM, s.TO]].tolist() == [s.NO_PHASE, 0, 0]
    m[s.LIVE, [s.PHASE, s.FROM, s.TO]] = 7
    decide.decide.py_func(m, f, np.array([first + 2, first][: 1 + seed % 2]), np.ones(1 + seed % 2), x)
    wanted = ["observe"] + ["remember"] * (kinds & s.TRAJECTORIES > 0)
    joint = bool(before)
    if first == 0:
        wanted += ["turn"] * bool(online and (rate < below or raging)) + ["adapt"]
        joint = mode == s.TOGETHER or (mode == s.SWITCHING and rate >= switch)
        wanted += ["exchange"] * (mode == s.SWITCHING and joint != used)
        old[s.LAST, :WIDTH] = x
    span = range(0) if joint and first else range(first, KEYS if joint else first + EXPERTS, EXPERTS)
    assert calls == [(name, 0) for name in wanted] + [("score", layer) for layer in span]
    assert m[s.LIVE, [s.PHASE, s.JOINT]].tolist() == [s.NO_PHASE, joint]
    assert m[s.LIVE, [s.FROM, s.TO]].tolist() == ([span.start, span.stop] if len(span) else [0, 0])
    assert np.array_equal(f, old)


@pytest.mark.parametrize("heads", [1, 3])
def test_an_exchange_swaps_signatures_planes_and_ranks_with_those_put_by(heads: int) -> None:
    rng = np.random.default_rng(heads)
    rows = s.frows(heads, DEPTH, False, True)
    state, floats = make_state(1, KEYS, [SLOTS], rows=s.rows(DEPTH, True), frows=rows + 2 * KEYS)
    m, f = state[0], floats[0]
    f[:] = rng.standard_normal(f.shape)
    m[s.RANK :] = rng.integers(0, EXPERTS, m[s.RANK :].shape)
    m[s.INTS, [s.KEYS, s.HEADS]] = KEYS, heads
    spare, ranks = s.spare_row(heads, DEPTH, False), s.MEMORY + 2 * DEPTH
    m[s.LIVE, [s.SIGNATURE, s.SPARE, s.SPARE_RANK, s.USED]] = rows, spare, ranks, 0
    assert m.shape[0] == ranks + s.MOST_HEADS
    planes = [s.CENTRE_X, s.CENTRE_Y, *range(s.FIXED, s.FIXED + s.HEAD_ROWS * heads)]
    wanted_f, wanted_m = f.copy(), m.copy()
    wanted_f[rows : rows + KEYS], wanted_f[rows + KEYS :] = f[rows + KEYS :], f[rows : rows + KEYS]
    for i, row in enumerate(planes):
        wanted_f[row, :KEYS], wanted_f[spare + i, :KEYS] = f[spare + i, :KEYS], f[row, :KEYS]
    for h in range(heads):
        wanted_m[s.RANK + h, :KEYS], wanted_m[ranks + h, :KEYS] = m[ranks + h, :KEYS], m[s.RANK + h, :KEYS]
    wanted_m[s.LIVE, s.USED] = 1
    assert spare + len(planes) == rows
    spaces.exchange.py_func(m, f)
    assert np.array_equal(f, wanted_f) and np.array_equal(m, wanted_m)


@pytest.mark.parametrize("first", FIRSTS)
@pytest.mark.parametrize("joint", [False, True])
def test_the_hybrid_adds_fading_counts_and_recency_to_the_scores(
    monkeypatch: pytest.MonkeyPatch, first: int, joint: bool
) -> None:
    rng, m, f = drawn(1)
    monkeypatch.setattr(rotary_hybrid, "blend", projection.blend.py_func)
    scored = rng.standard_normal((2, KEYS))

    def decided(m: Any, f: Any, *_: Any) -> None:
        m[s.LIVE, s.FROM], m[s.LIVE, s.TO] = (0, KEYS) if joint else (first, first + EXPERTS)
        f[[s.SCORE, s.SCORE + s.HEAD_ROWS], :KEYS] = scored

    monkeypatch.setattr(rotary_hybrid, "decide", decided)
    m[s.INTS, s.STANDARD], f[s.FREQUENCY], f[s.RECENCY] = 1, 0, 0
    f[s.MORE, [s.WEIGHT_RECENCY, s.WEIGHT_FREQUENCY, s.HALF_LIFE]] = 0.5, 2.0, 0.75
    counts, recent = np.zeros(KEYS), np.zeros(KEYS)
    for event in range(6):
        keys = first + rng.permutation(EXPERTS)[: 1 + event % 3]
        rotary_hybrid.decide_and_count.py_func(m, f, keys, np.ones(len(keys)), None)
        mine = slice(first, first + EXPERTS)
        counts[mine], recent[mine] = counts[mine] * 0.75, recent[mine] * 0.75
        counts[keys], recent[keys] = counts[keys] + 1, 1
        np.testing.assert_allclose(f[s.FREQUENCY, :KEYS], counts)
        np.testing.assert_allclose(f[s.RECENCY, :KEYS], recent)
        for low in FIRSTS if joint else (first,):
            part = slice(low, low + EXPERTS)
            for h in range(2):
                wanted = scored[h, part].copy()
                for weight, row in ((0.5, recent), (2.0, counts)):
                    wanted += weight * (row[part] - row[part].mean()) / (row[part].std() or 1.0)
                np.testing.assert_allclose(f[s.SCORE + s.HEAD_ROWS * h, part], wanted, atol=1e-12)
    rotary_hybrid.decide_and_count.py_func(m, f, np.zeros(0, int), np.zeros(0), None)
    np.testing.assert_allclose(f[s.FREQUENCY, :KEYS], counts)


def test_the_hybrid_s_weights_and_half_life_are_in_the_state() -> None:
    policy = rotary_hybrid.RotaryHybrid(weight_recency=0.5, weight_frequency=3.0, half_life=4.0)
    trace = toy()
    m, f, _ = initial_state(
        lay_out(PoolConfig(slots=4), policy, trace.shape), policy, trace.shape, "hidden", 5, trace, 0
    )
    assert (f[:, s.MORE, [s.WEIGHT_RECENCY, s.WEIGHT_FREQUENCY]] == (0.5, 3.0)).all()
    np.testing.assert_allclose(f[:, s.MORE, s.HALF_LIFE], 0.5**0.25)
    assert (m[:, s.INTS, s.STANDARD] == 1).all() and policy.standardised and policy.traits.calibration
