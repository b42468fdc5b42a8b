"""What the rotary family writes into the state before the first event: registers, signatures, planes, rings, the first fill."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from rgpu.policies.calibration import routing_vectors
from rgpu.policies.loop import CAP, REG
from rgpu.policies.rotary_paper import RotaryPaper
from rgpu.policies.rotation import ring
from rgpu.policies.rotation import state as s
from rgpu.policies.rotation.learning import fit, pairs, random_rotation
from rgpu.policies.rotation.signatures import mean_signatures, mean_windows, unit_rows
from rgpu.policies.rotation.slots import shares
from rgpu.replay.pool import PoolConfig, initial_state, lay_out
from rgpu.traces.trace import Trace
from tests.support import routed_trace
from tests.unit.policies.rotating import ALL

EXPERTS, LAYERS, WIDTH, SEED = 8, 3, 5, 4
TURN = 2 * np.pi


def prepared(policy: RotaryPaper, pool: PoolConfig, trace: Trace | None = None) -> tuple[Any, Any, Trace]:
    """(m, f, trace) before the first event."""
    trace = trace or routed_trace(1, tokens=60, layers=LAYERS, sequences=2)
    layout = lay_out(pool, policy, trace.shape)
    m, f, _ = initial_state(layout, policy, trace.shape, "hidden", WIDTH, trace, SEED)
    return m, f, trace


def place_of(layer: int, pools: int) -> tuple[int, int]:
    """(pool, first key) of a layer."""
    return (layer, 0) if pools > 1 else (0, layer * EXPERTS)


@pytest.mark.parametrize(("scope", "slots"), [("layer", 2), ("layer", 5), ("global", 3), ("global", 8), ("global", 17)])
@pytest.mark.parametrize("choice", [
    {}, {"step": None, "tau_return": 0.7, "return_depth": 3, "score_floor": 0.5, "cycle": 4, "heads": 1},
    {"adaptive_step": True, "transforms": "trajectory", "pooling": "decay", "window": 7, "ring_window": "centred"},
    {"adaptive_cycle": True, "adaptive_window": True, "transforms": ALL, "online": False, "direction": "reverse"},
    {"adaptive_step": True, "adaptive_window": True, "tau_return": 0.2, "return_depth": 2, "return_step": 5},
], ids=str)  # fmt: skip
def test_registers_hold_the_choices(scope: str, slots: int, choice: dict[str, Any]) -> None:
    policy = RotaryPaper(**choice)
    m, f, _ = prepared(policy, PoolConfig(scope=scope, slots=slots))
    layers, kinds = (1 if scope == "layer" else LAYERS), sum(1 << ALL.index(name) for name in policy.transforms)
    share = max(1, int(m[0, REG, CAP]) // layers)
    buffer = s.FIXED + s.HEAD_ROWS + policy.depth
    for own in m:
        way = {"sign": 0, "forward": 1, "reverse": -1}[policy.direction]
        ints = [EXPERTS, layers * EXPERTS, 1, kinds, policy.standardised, way,
                policy.ring_window == "ahead", 0, policy.keep_misses,
                policy.adaptive_step + 2 * policy.adaptive_cycle + 4 * policy.adaptive_window, policy.online, policy.depth,
                EXPERTS if policy.return_step is None else policy.return_step, policy.storm_events or 0,
                policy.pooling == "decay"]  # fmt: skip
        assert own[s.INTS, :15].tolist() == ints
        cycle = int(np.ceil(EXPERTS / share)) if policy.cycle is None else policy.cycle
        trajectory = "trajectory" in policy.transforms
        first = buffer + (s.BUFFER_LENGTH + s.TRAJECTORY_ROWS if trajectory else 0)
        live = own[s.LIVE, [s.SIGNATURE, s.TRAJECTORY, s.BUFFER, s.CYCLE, s.CYCLE_NOW, s.WINDOW]].tolist()
        assert live == [first, buffer + s.BUFFER_LENGTH, buffer, cycle, cycle, policy.window]
        assert own[s.LIVE, [s.SPARE, s.SPARE_RANK]].tolist() == [first, s.MEMORY + 2 * policy.depth]
    for floats in f:
        names = ("weight_projection", "weight_phase", "weight_cyclic", "weight_trajectory", "step", "step_high", "step_low",
                 "step_surge", "distance_high", "distance_low", "entropy_surge", "hit_rate_high", "hit_rate_scale")  # fmt: skip
        numbers = [-1.0 if getattr(policy, n) is None else getattr(policy, n) for n in names]
        assert floats[s.NUMBERS, :13].tolist() == numbers
        floor = -np.inf if policy.score_floor is None else policy.score_floor
        assert floats[s.NUMBERS, [s.TAU, s.FLOOR]].tolist() == [policy.tau_return or 2.0, floor]
        more = ("online_rate", "online_below", "switch_below", "kl_threshold", "cycle_entropy", "average", "window_short",
                "window_long")  # fmt: skip
        assert floats[s.MORE, :8].tolist() == [getattr(policy, n) for n in more]
        assert floats[s.NOW, s.STEP_NOW] == numbers[4]


CHOICES: list[dict[str, Any]] = [
    {}, {"heads": 2}, {"heads": 2, "rotation": "random"}, {"rotation": "random"}, {"signatures": "random", "heads": 2},
    {"similarity": "cosine", "heads": 2}, {"centre": True, "heads": 2}, {"rotation": "calibrated", "calibration_steps": 3},
    {"rotation": "linear", "calibration_steps": 3, "centre": True, "heads": 2, "calibration_tokens": 20},
    *({"transforms": ["phase", "cyclic"], "ring_order": o, "ring_map": r, "heads": 2, "centre": True}
      for o in ("phase", "id", "random") for r in ("nearest", "proportional")),
]  # fmt: skip


@pytest.mark.parametrize("choice", CHOICES, ids=str)
@pytest.mark.parametrize(
    ("scope", "mode"), [("layer", "per_layer"), ("global", "per_layer"), ("global", "synchronised")]
)
def test_signatures_planes_and_rings_are_those_of_the_calibration(
    choice: dict[str, Any], scope: str, mode: str
) -> None:
    policy = RotaryPaper(mode=mode, **choice)
    m, f, trace = prepared(policy, PoolConfig(scope=scope, slots=5 if scope == "layer" else 16))
    routers = np.zeros((LAYERS, EXPERTS))
    check_space(policy, m, f, trace, mode == "synchronised", routers, None)


def check_space(policy: RotaryPaper, m: Any, f: Any, trace: Trace, joint: bool, bias_LE: Any, rows_LEF: Any) -> None:
    assert trace.hidden is not None
    for layer in range(LAYERS):
        pool, first = place_of(layer, len(m))
        driver = 0 if joint else layer
        x = trace.hidden[:, driver].astype(float)
        mean, columns = x.mean(0), slice(first, first + EXPERTS)
        whole = mean_signatures(trace, layer, driver, "hidden")
        if policy.signatures == "random":
            whole = unit_rows(np.random.default_rng((SEED, layer, 1)).standard_normal((EXPERTS, WIDTH)))
        if rows_LEF is not None:
            whole = rows_LEF[layer]
        for h in range(policy.heads):
            part = slice(h * WIDTH // policy.heads, (h + 1) * WIDTH // policy.heads)
            own = unit_rows(whole[:, part]) if policy.similarity == "cosine" else whole[:, part]
            shift = mean[part] if policy.centre else 0 * mean[part]
            rotated = own
            if policy.rotation == "random":
                rotated = own @ random_rotation(own.shape[1], (SEED, layer, h) if policy.heads > 1 else (SEED, layer))
            elif policy.rotation != "identity":
                routed = routing_vectors(trace, layer, slice(None))
                given = pairs(
                    x[:, part] - shift, routed, trace.seq_offsets, int(driver == layer), policy.calibration_tokens
                )
                rotated = fit(
                    own, given[0], given[1], policy.calibration_steps, policy.rotation == "calibrated"
                ).rotated_EF
            row, block = int(m[pool, s.LIVE, s.SIGNATURE]) + first, s.HEAD_ROWS * h
            np.testing.assert_allclose(f[pool, row : row + EXPERTS, part], rotated, atol=1e-12)
            bias = bias_LE[layer] / policy.heads - rotated @ shift
            np.testing.assert_allclose(f[pool, s.BIAS + block, columns], bias, atol=1e-12)
            coefficients, axes, angle = ring.plane(rotated)
            np.testing.assert_allclose(f[pool, [s.AXIS_X + block, s.AXIS_Y + block], columns], coefficients, atol=1e-9)
            centre = coefficients @ bias + axes @ mean[part]
            np.testing.assert_allclose(f[pool, [s.CENTRE_X, s.CENTRE_Y], first + h], centre, atol=1e-9)
            rank = ring.ring(angle, policy.ring_order, np.random.default_rng((SEED, layer, 2 + h)))
            assert m[pool, s.RANK + h, columns].tolist() == rank.tolist()
            if policy.ring_order != "phase" or policy.ring_map != "nearest":
                angle = rank * TURN / EXPERTS
            np.testing.assert_allclose(f[pool, s.ANGLE + block, columns], angle, atol=1e-9)
            # (places start evenly round the ring)
            assert m[pool, s.PLACE, first + h] == h * EXPERTS // policy.heads


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("centre", [False, True])
def test_router_rows_bring_their_biases(tmp_path: Path, heads: int, centre: bool) -> None:
    rng = np.random.default_rng(0)
    rows, bias = rng.standard_normal((LAYERS, EXPERTS, WIDTH)), rng.standard_normal((LAYERS, EXPERTS))
    named = {f"model.layers.{i}.mlp.gate.weight": r.astype(np.float32) for i, r in enumerate(rows)}
    named |= {f"model.layers.{i}.mlp.gate.bias": b.astype(np.float32) for i, b in enumerate(bias)}
    named["model.layers.1.mlp.experts.weight"] = np.ones((3, 5), np.float32)  # between the others
    save_file(named, tmp_path / "model.safetensors")
    policy = RotaryPaper(signatures="router_rows", router=str(tmp_path), heads=heads, centre=centre)
    m, f, trace = prepared(policy, PoolConfig("global", 16))
    check_space(
        policy, m, f, trace, False, bias.astype(np.float32).astype(float), rows.astype(np.float32).astype(float)
    )


@pytest.mark.parametrize("signatures", ["mean", "random"])
@pytest.mark.parametrize("rotation", ["identity", "random"])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_trajectory_signatures_are_mean_windows_of_what_was_routed(signatures: str, rotation: str, scope: str) -> None:
    policy = RotaryPaper(transforms=["trajectory"], window=4, signatures=signatures, rotation=rotation)
    trace = routed_trace(1, tokens=60, layers=LAYERS, sequences=2)
    trace.expert_ids[[9, 40]] = trace.missing  # nothing is known of two tokens
    m, f, _ = prepared(policy, PoolConfig(scope=scope, slots=5 if scope == "layer" else 16), trace)
    for layer in range(LAYERS):
        pool, first = place_of(layer, len(m))
        routed = routing_vectors(trace, layer, slice(None)).astype(float)
        share = routed / np.maximum(routed.sum(1, keepdims=True), 1e-9)
        windows = np.zeros_like(share)
        for a, b in zip(trace.seq_offsets[:-1], trace.seq_offsets[1:], strict=True):
            for t in range(a, b):
                windows[t] = share[max(a, t - 3) : t + 1].mean(0)
        inputs, targets = pairs(windows, routed, trace.seq_offsets, 1, policy.calibration_tokens)
        wanted = mean_windows(inputs, targets > 0)
        if signatures == "random":
            wanted = unit_rows(np.random.default_rng((SEED, layer, 99)).standard_normal((EXPERTS, EXPERTS)))
        if rotation == "random":
            wanted = wanted @ random_rotation(EXPERTS, (SEED, layer, 98))
        per, base = f.shape[2] // EXPERTS, int(m[pool, s.LIVE, s.TRAJECTORY])
        for e in range(EXPERTS):
            at = (first + e) % per * EXPERTS
            np.testing.assert_allclose(f[pool, base + (first + e) // per, at : at + EXPERTS], wanted[e], atol=1e-6)


@pytest.mark.parametrize("rotation", ["identity", "random", "calibrated"])
def test_sequences_of_one_token_have_no_trajectory_signatures(rotation: str) -> None:
    policy = RotaryPaper(transforms=["trajectory"], rotation=rotation)
    _, f, _ = prepared(policy, PoolConfig(slots=5), routed_trace(1, tokens=30, layers=LAYERS, sequences=30))
    first = s.recalled_row(1) + s.BUFFER_LENGTH
    assert not f[:, first : first + s.TRAJECTORY_ROWS].any() and f[:, first + s.TRAJECTORY_ROWS :].any()


@pytest.mark.parametrize("choice", [{"centre": True}, {"heads": 2}, {"rotation": "calibrated"}], ids=str)
def test_random_signatures_need_no_token(choice: dict[str, Any]) -> None:
    trace = routed_trace(1, layers=LAYERS)
    assert trace.hidden is not None
    none = Trace(trace.header, trace.expert_ids[:0], np.zeros(1, np.int64), trace.positions[:0], trace.passes[:0],
                 hidden=trace.hidden[:0])  # fmt: skip
    policy = RotaryPaper(signatures="random", **choice)
    m, f, _ = prepared(policy, PoolConfig(slots=5), none)
    for layer in range(LAYERS):
        rows = unit_rows(np.random.default_rng((SEED, layer, 1)).standard_normal((EXPERTS, WIDTH)))
        first = int(m[layer, s.LIVE, s.SIGNATURE])
        assert np.array_equal(f[layer, first : first + EXPERTS, :WIDTH], rows)
        assert not f[layer, [s.CENTRE_X, s.CENTRE_Y]].any() and not f[layer, s.BIAS].any()


def test_whom_nothing_is_routed_to_has_a_window_of_zeros() -> None:
    x_NF, routed_NE = np.array([[1.0, 0], [3, 0], [2, 3]]), np.array([[1, 0, 1], [1, 0, 0], [0, 0, 1]]) > 0
    with np.errstate(all="raise"):  # nothing is divided by none
        found = mean_windows(x_NF, routed_NE)
    np.testing.assert_allclose(found, [[0, -1], [0, 0], [-(0.5**0.5), 0.5**0.5]], atol=1e-12)


@pytest.mark.parametrize("transforms", [["projection"], ["cyclic"], ["projection", "phase"]])
@pytest.mark.parametrize("heads", [1, 2, 3])
@pytest.mark.parametrize(("scope", "slots"), [("layer", 4), ("layer", 12), ("global", 11), ("global", 40)])
def test_the_first_fill_splits_slots_over_layers_and_heads(
    transforms: list[str], heads: int, scope: str, slots: int
) -> None:
    policy = RotaryPaper(transforms=transforms, heads=heads)
    m, _, _ = prepared(policy, PoolConfig(scope=scope, slots=slots))
    setting: Any = SimpleNamespace(m=m)
    for layer in range(LAYERS):
        pool, first = place_of(layer, len(m))
        cap = int(m[pool, REG, CAP])
        mine = cap if scope == "layer" else shares(cap, LAYERS)[layer]
        owner = [-1] * EXPERTS
        for h, part in enumerate(shares(min(mine, EXPERTS), heads)):
            order = list(range(EXPERTS))
            if transforms != ["projection"]:
                rank = m[pool, s.RANK + h, first : first + EXPERTS]
                order = sorted(order, key=lambda e, rank=rank, h=h: int(rank[e] - h * EXPERTS // heads) % EXPERTS)  # type: ignore[misc]
            for e in [e for e in order if owner[e] < 0][:part]:
                owner[e] = h
        assert m[pool, s.OWNER, first : first + EXPERTS].tolist() == owner
        filled = policy.fill(setting)[pool]
        inside = filled[(filled >= first) & (filled < first + EXPERTS)]
        assert inside.tolist() == [first + e for e in range(EXPERTS) if owner[e] >= 0]
