"""W_r fitted and turned: it stays orthogonal, its objective rises, and it touches nothing else."""

from pathlib import Path

import numpy as np
import pytest

from rgpu.policies.rotary_paper import RotaryPaper
from rgpu.policies.rotation import state as s
from rgpu.policies.rotation.learning import fit, pairs
from rgpu.policies.rotation.signatures import read_routers, unit_rows
from rgpu.replay.pool import PoolConfig
from tests.support import routed_trace
from tests.unit.policies.rotating import Watched, signatures, toy


def problem(experts: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(signatures, inputs, targets) where a hidden rotation of the signatures names the targets."""
    rng = np.random.default_rng(seed)
    signature = unit_rows(rng.standard_normal((experts, width)))
    q, _ = np.linalg.qr(rng.standard_normal((width, width)))
    x = rng.standard_normal((400, width))
    top = np.argsort(-(x @ (signature @ q).T), axis=1)[:, :2]
    y = np.zeros((400, experts))
    np.put_along_axis(y, top, 0.5, axis=1)
    return signature, x, y


@pytest.mark.parametrize(("experts", "width"), [(6, 10), (12, 5), (8, 8)])
def test_calibration_climbs_on_the_orthogonal_group(experts: int, width: int) -> None:
    signature, x, y = problem(experts, width)
    found = fit(signature, x, y, 60)
    assert (np.diff(found.objective) > 0).all() and len(found.objective) > 5
    rows = found.rows_rF
    assert np.abs(rows @ rows.T - np.eye(len(rows))).max() < 1e-10
    assert np.abs(found.rotated_EF @ found.rotated_EF.T - signature @ signature.T).max() < 1e-10

    def agreement(signatures_EF: np.ndarray) -> float:
        top = np.argsort(-(x @ signatures_EF.T), axis=1)[:, :2]
        return float(np.take_along_axis(y > 0, top, axis=1).mean())

    assert agreement(found.rotated_EF) > agreement(signature) + 0.2


def test_the_unconstrained_fit_reaches_at_least_as_far() -> None:
    signature, x, y = problem(6, 10)
    free, bound = fit(signature, x, y, 60, orthogonal=False), fit(signature, x, y, 60)
    assert free.objective[-1] > bound.objective[-1]
    assert np.abs(free.rotated_EF @ free.rotated_EF.T - signature @ signature.T).max() > 0.1


def test_a_fit_without_anything_to_fit_is_the_identity() -> None:
    signature, x, y = problem(6, 10)
    nothing = fit(signature, x[:0], y[:0], 10)
    assert (nothing.rotated_EF == signature).all()
    assert nothing.objective.tolist() == [0.0]
    assert (fit(signature, x, y, 0).rotated_EF == signature).all()
    assert (fit(np.zeros_like(signature), x, y, 10).rotated_EF == 0).all()


def test_pairs_stay_within_their_sequence() -> None:
    x, y = np.arange(6.0)[:, None], np.eye(6)
    inputs, targets = pairs(x, y, np.array([0, 2, 6]), 1, 100)
    assert inputs[:, 0].tolist() == [0, 2, 3, 4]
    assert targets.argmax(1).tolist() == [1, 3, 4, 5]
    assert len(pairs(x, y, np.array([0, 6]), 1, 2)[0]) == 2


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("rotation", ["identity", "calibrated"])
def test_online_turns_keep_every_angle_between_signatures(heads: int, rotation: str) -> None:
    trace = routed_trace(2, tokens=300, sequences=1)
    policy = RotaryPaper(rotation=rotation, online=True, online_below=1.0, online_rate=0.1, heads=heads)
    watched = Watched(policy, trace, PoolConfig(slots=4))
    for pool in range(2):
        before, after = (signatures(watched, f, pool) for f in (watched.before, watched.f))
        assert np.abs(before - after).max() > 0.1
        for h in range(heads):
            part = slice(h * 5 // heads, (h + 1) * 5 // heads)
            gram = [x[:, part] @ x[:, part].T for x in (before, after)]
            assert np.abs(gram[0] - gram[1]).max() < 1e-10


def test_an_online_turn_moves_the_last_input_towards_what_was_missed() -> None:
    trace = routed_trace(2, tokens=2, sequences=1, layers=1)
    policy = RotaryPaper(online=True, online_below=1.0, online_rate=0.05, keep_misses=False, step=0)
    watched = Watched(policy, trace, PoolConfig(slots=2))
    assert trace.hidden is not None
    h = trace.hidden[0, 0].astype(np.float64)
    missed = [int(e) for e in trace.expert_ids[1, 0] if not watched.resident[0][0, int(e)]]
    assert missed
    before, after = (signatures(watched, f)[missed].sum(0) @ h for f in (watched.before, watched.f))
    assert after > before


def test_good_hit_rates_leave_the_rotation_alone() -> None:
    trace = routed_trace(2, tokens=60, sequences=1)
    watched = Watched(RotaryPaper(online=True, online_below=0.0, storm_events=None), trace, PoolConfig(slots=4))
    assert (signatures(watched, watched.f) == signatures(watched, watched.before)).all()


def test_calibration_writes_signatures_and_what_follows_from_them_only() -> None:
    trace = toy()
    kept = {name: array.copy() for name, array in trace.arrays().items()}
    plain, fitted = (Watched(RotaryPaper(rotation=r), trace, PoolConfig(slots=4)) for r in ("identity", "calibrated"))
    assert all((array == kept[name]).all() for name, array in trace.arrays().items())
    changed = set(np.flatnonzero((plain.before != fitted.before).any((0, 2))).tolist())
    first = int(plain.m[0, s.LIVE, s.SIGNATURE])
    follows = {s.CENTRE_X, s.CENTRE_Y, s.ANGLE, s.AXIS_X, s.AXIS_Y}
    assert changed - follows == set(range(first, first + 8))


def test_routers_are_read_from_stored_bf16() -> None:
    weight, bias = read_routers(str(Path(__file__).parents[3] / "assets" / "reference"))
    assert weight.shape == (8, 32, 256) and not bias.any()
    assert 0.01 < weight.std() < 1


@pytest.mark.parametrize("lead", [0, 1, 2])
@pytest.mark.parametrize("most", [1, 4, 8, 99])
def test_pairs_are_inputs_and_what_was_routed_later_in_the_same_sequence(lead: int, most: int) -> None:
    rng = np.random.default_rng(lead)
    x, y, offsets = rng.standard_normal((14, 2)), (rng.random((14, 3)) < 0.5) * 0.25, np.array([0, 5, 5, 14])
    y[[2, 9]] = 0
    kept = [t for a, b in ((0, 5), (5, 14)) for t in range(a, b - lead) if y[t + lead].any()]
    if len(kept) > most:
        kept = [kept[int(i)] for i in np.linspace(0, len(kept) - 1, most)]
    inputs, targets = pairs(x, y, offsets, lead, most)
    assert np.array_equal(inputs, x[kept])
    np.testing.assert_allclose(targets, [(y[t + lead] > 0) / (y[t + lead] > 0).sum() for t in kept])
    none = pairs(x, 0 * y, offsets, lead, most)
    assert none[0].shape == (0, 2) and none[1].shape == (0, 3)
