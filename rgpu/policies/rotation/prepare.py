"""Writes the choices and the calibration of a rotary policy into the state. Legend: E experts, F feature width."""

import functools
from typing import TYPE_CHECKING

import numpy as np

from rgpu.errors import InputError
from rgpu.policies.calibration import routing_vectors
from rgpu.policies.loop import CAP, REG
from rgpu.policies.policy import Setting
from rgpu.policies.rotation import state as s
from rgpu.policies.rotation.learning import fit, pairs, random_rotation
from rgpu.policies.rotation.ring import TURN, plane, ring
from rgpu.policies.rotation.signatures import features, mean_signatures, mean_windows, read_routers, unit_rows
from rgpu.policies.rotation.slots import shares
from rgpu.policies.rotation.spaces import exchange

if TYPE_CHECKING:
    from rgpu.policies.rotation.options import Rotation

KINDS = {"projection": s.PROJECTION, "phase": s.PHASE_ROTATION, "cyclic": s.CYCLIC, "trajectory": s.TRAJECTORIES}
MODES = {"per_layer": s.PER_LAYER, "grouped": s.TOGETHER, "synchronised": s.TOGETHER, "switching": s.SWITCHING}
DIRECTIONS = {"sign": s.BY_SIGN, "forward": s.FORWARD, "reverse": s.REVERSE}


def prepare(choice: "Rotation", setting: Setting) -> None:
    """Registers, signatures, rings and the owners of the initial fill. Raises InputError on what the pools cannot do."""
    check(choice, setting)
    registers(choice, setting)
    routers = read_routers(choice.router) if choice.signatures == "router_rows" else None
    if routers is not None:
        expected = (setting.shape.layers, setting.shape.experts, setting.calibration.hidden.shape[2])
        if routers[0].shape != expected:
            raise InputError(
                f"policy.router: got routers of shape {routers[0].shape}; expected {expected} (layers, experts, hidden); "
                "set policy.router to the trace's model"
            )
    if choice.switching:
        for layer in range(setting.shape.layers):
            calibrate(choice, setting, layer, routers, together=True)
        for m, f in zip(setting.m, setting.f, strict=True):
            exchange.py_func(m, f)
            m[s.LIVE, s.USED] = 0  # each layer's own space is used first
    for layer in range(setting.shape.layers):
        calibrate(choice, setting, layer, routers, together=MODES[choice.mode] == s.TOGETHER)
    plan_fill(choice, setting)


def layers_of(setting: Setting, pool: int) -> int:
    return int((setting.pool_of == pool).sum())


def check(choice: "Rotation", setting: Setting) -> None:
    pools, layers = len(setting.m), setting.shape.layers
    wide = max(layers_of(setting, p) for p in range(pools))
    fits = {"per_layer": True, "grouped": 1 < pools < layers or layers == 1, "synchronised": pools == 1,
            "switching": wide > 1 or layers == 1}  # fmt: skip
    scope = {"grouped": "group2", "synchronised": "global", "switching": "global"}
    if not fits[choice.mode]:
        raise InputError(
            f"policy.mode: got {choice.mode} with {pools} pools for {layers} layers; expected pools of several layers; "
            f"set pool.scope={scope[choice.mode]} or policy.mode=per_layer"
        )
    if choice.online and wide > 1 and MODES[choice.mode] != s.TOGETHER:
        raise InputError(
            f"policy.online: got mode={choice.mode} in a pool of {wide} layers; expected one input a pool to turn; "
            "set pool.scope=layer, or policy.mode=synchronised"
        )
    if choice.signatures == "router_rows" and setting.feature != "hidden":
        raise InputError(
            "policy.signatures: got router_rows on a trace without hidden states; expected signatures as wide as routing; "
            "set policy.signatures=mean, or record hidden=true"
        )
    for p in range(pools):
        least = int(setting.m[p, REG, CAP]) // layers_of(setting, p)
        if choice.heads > max(1, least):
            raise InputError(
                f"policy.heads: got {choice.heads} for {least} slots a layer; expected a slot for every head; "
                "give the pool more slots or set policy.heads=1"
            )
    if choice.trajectory:
        in_a_row = setting.f.shape[2] // setting.shape.experts
        keys = wide * setting.shape.experts
        if -(-keys // in_a_row) > s.TRAJECTORY_ROWS:
            raise InputError(
                f"policy.transforms: got trajectory with {keys} experts a pool; expected at most "
                f"{in_a_row * s.TRAJECTORY_ROWS}; set pool.scope=layer or leave trajectory out"
            )


def registers(choice: "Rotation", setting: Setting) -> None:
    c, experts = choice, setting.shape.experts
    first_buffer = s.recalled_row(c.heads) + c.depth
    first_signature = s.frows(c.heads, c.depth, c.trajectory, c.switching)
    kinds = sum(KINDS[name] for name in c.transforms)
    adaptive = c.adaptive_step * s.STEP_BIT + c.adaptive_cycle * s.CYCLE_BIT + c.adaptive_window * s.WINDOW_BIT
    for p, (m, f) in enumerate(zip(setting.m, setting.f, strict=True)):
        layers = layers_of(setting, p)
        share = max(1, int(m[REG, CAP]) // layers)
        cycle = -(-experts // share) if c.cycle is None else c.cycle
        m[s.INTS, :15] = (
            experts, layers * experts, c.heads, kinds, c.standardised, DIRECTIONS[c.direction],
            c.ring_window == "ahead", MODES[c.mode], c.keep_misses, adaptive, c.online, c.depth,
            experts if c.return_step is None else c.return_step, c.storm_events or 0, c.pooling == "decay",
        )  # fmt: skip
        m[s.LIVE, : s.WINDOW + 1] = (
            first_signature,
            first_buffer + s.BUFFER_LENGTH,
            first_buffer,
            cycle,
            cycle,
            c.window,
        )
        f[s.NUMBERS, :15] = (
            c.weight_projection, c.weight_phase, c.weight_cyclic, c.weight_trajectory, -1.0 if c.step is None else c.step,
            c.step_high, c.step_low, c.step_surge, c.distance_high, c.distance_low, c.entropy_surge, c.hit_rate_high,
            c.hit_rate_scale, 2.0 if c.tau_return is None else c.tau_return,
            -np.inf if c.score_floor is None else c.score_floor,
        )  # fmt: skip
        f[s.MORE, :8] = (
            c.online_rate, c.online_below, c.switch_below, c.kl_threshold, c.cycle_entropy, c.average, c.window_short,
            c.window_long,
        )  # fmt: skip
        m[s.LIVE, s.SPARE : s.SPARE_RANK + 1] = s.spare_row(c.heads, c.depth, c.trajectory), s.MEMORY + 2 * c.depth
        f[s.NOW, s.STEP_NOW] = f[s.NUMBERS, s.STEP]


def calibrate(
    choice: "Rotation", setting: Setting, layer: int, routers: tuple[np.ndarray, np.ndarray] | None, *, together: bool
) -> None:
    """Rotated signatures, biases, plane and ring of one layer, head by head; `together`: in the space of the pool's first
    layer, whose input then decides."""
    trace, experts, pool = setting.calibration, setting.shape.experts, setting.pool_of[layer]
    driver = int(np.flatnonzero(setting.pool_of == pool)[0]) if together else layer
    x_NF = features(trace, driver, setting.feature)
    y_NE = routing_vectors(trace, layer, slice(None))
    bias_E = np.zeros(experts)
    if routers is not None:
        signature_EF, bias_E = routers[0][layer], routers[1][layer]
    elif choice.signatures == "random":
        rng = np.random.default_rng((setting.seed, layer, 1))
        signature_EF = unit_rows(rng.standard_normal((experts, x_NF.shape[1])))
    else:
        signature_EF = mean_signatures(trace, layer, driver, setting.feature)
    first, f, m = int(setting.base[layer]), setting.f[pool], setting.m[pool]
    columns = slice(first, first + experts)
    row = int(m[s.LIVE, s.SIGNATURE]) + first
    # a follower is served after the driver's input of the same token; the driver itself only at its next
    lead = 0 if driver != layer else 1
    mean_F = x_NF.mean(0) if len(x_NF) else np.zeros(x_NF.shape[1])
    for h in range(choice.heads):
        part = slice(h * x_NF.shape[1] // choice.heads, (h + 1) * x_NF.shape[1] // choice.heads)
        own = signature_EF[:, part]
        if choice.similarity == "cosine":
            own = unit_rows(own)
        shift = mean_F[part] if choice.centre else 0.0
        inputs, targets = pairs(x_NF[:, part] - shift, y_NE, trace.seq_offsets, lead, choice.calibration_tokens)
        seed = (setting.seed, layer, *([h] if choice.heads > 1 else []))
        turn = functools.partial(rotate, choice, own, inputs, targets, seed)
        rotated = setting.learned((*turn_key(choice, driver), h, seed), turn)
        bias = bias_E / choice.heads - (rotated @ mean_F[part] if choice.centre else 0.0)
        rows = s.HEAD_ROWS * h
        f[row : row + experts, part] = rotated
        f[s.BIAS + rows, columns] = bias
        coefficients, axes, angle_E = plane(rotated)
        f[[s.AXIS_X + rows, s.AXIS_Y + rows], columns] = coefficients
        f[[s.CENTRE_X, s.CENTRE_Y], first + h] = coefficients @ bias + axes @ mean_F[part]
        rank = ring(angle_E, choice.ring_order, np.random.default_rng((setting.seed, layer, 2 + h)))
        m[s.RANK + h, columns] = rank
        nearest = choice.ring_order == "phase" and choice.ring_map == "nearest"
        f[s.ANGLE + rows, columns] = angle_E if nearest else rank * TURN / experts
        m[s.PLACE, first + h] = h * experts // choice.heads
    if choice.trajectory:
        window = trajectory_signatures(choice, setting, layer, y_NE)
        in_a_row, base = f.shape[1] // experts, int(m[s.LIVE, s.TRAJECTORY])
        for e in range(experts):
            at = (first + e) % in_a_row * experts
            f[base + (first + e) // in_a_row, at : at + experts] = window[e]


def turn_key(choice: "Rotation", driver: int) -> tuple[object, ...]:
    """Everything the rotated signatures of a layer depend on beside the trace, the layer, the head and the seed."""
    c = choice
    return ("rotated", driver, c.rotation, c.calibration_steps, c.calibration_tokens, c.signatures, c.router, c.similarity,
            c.centre, c.heads)  # fmt: skip


def rotate(
    choice: "Rotation", signature_EF: np.ndarray, x_NF: np.ndarray, y_NE: np.ndarray, seed: tuple[int, ...]
) -> np.ndarray:
    """W_r^T applied to every signature: <W_r h, s> = <h, W_r^T s>."""
    if choice.rotation == "identity":
        return signature_EF
    if choice.rotation == "random":
        return signature_EF @ random_rotation(signature_EF.shape[1], seed)  # type: ignore[no-any-return]
    return fit(signature_EF, x_NF, y_NE, choice.calibration_steps, choice.rotation == "calibrated").rotated_EF


def trajectory_signatures(choice: "Rotation", setting: Setting, layer: int, y_NE: np.ndarray) -> np.ndarray:
    """float64 [E, E]: rotated mean windows of the layer's routing, for transform (iv)."""
    offsets = setting.calibration.seq_offsets
    mass_N = y_NE.sum(1, keepdims=True)
    share_NE = np.divide(y_NE, mass_N, out=np.zeros_like(y_NE), where=mass_N > 0).astype(np.float64)
    window_NE = np.empty_like(share_NE)
    for a, b in zip(offsets[:-1], offsets[1:], strict=True):
        total = np.concatenate([np.zeros((1, share_NE.shape[1])), np.cumsum(share_NE[a:b], axis=0)])
        end = np.arange(1, b - a + 1)
        begin = np.maximum(0, end - choice.window)
        window_NE[a:b] = (total[end] - total[begin]) / (end - begin)[:, None]
    inputs, targets = pairs(window_NE, y_NE, offsets, 1, choice.calibration_tokens)
    if choice.signatures == "random":
        rng = np.random.default_rng((setting.seed, layer, 99))
        signature_EE = unit_rows(rng.standard_normal((y_NE.shape[1],) * 2))
    else:
        signature_EE = mean_windows(inputs, targets > 0) if len(inputs) else np.zeros((y_NE.shape[1],) * 2)
    seed = (setting.seed, layer, 98)
    return setting.learned(  # type: ignore[no-any-return]
        (*turn_key(choice, layer), choice.window, seed), lambda: rotate(choice, signature_EE, inputs, targets, seed)
    )


def plan_fill(choice: "Rotation", setting: Setting) -> None:
    """Owners of the keys that fill the pools: on a ring the heads' first windows, otherwise the lowest ids."""
    on_ring = not {"phase", "cyclic"}.isdisjoint(choice.transforms)
    setting.m[:, s.OWNER] = -1
    for p, m in enumerate(setting.m):
        layers = np.flatnonzero(setting.pool_of == p)
        for layer, slots in zip(layers, shares(int(m[REG, CAP]), len(layers)), strict=True):
            first, experts = int(setting.base[layer]), setting.shape.experts
            owner = m[s.OWNER, first : first + experts]
            for h, part in enumerate(shares(min(slots, experts), choice.heads)):
                rank = m[s.RANK + h, first : first + experts]
                turned = np.argsort((rank - m[s.PLACE, first + h]) % experts, kind="stable")
                order = turned if on_ring else np.arange(experts)
                free = order[owner[order] < 0]
                owner[free[:part]] = h


def planned(setting: Setting) -> list[np.ndarray]:
    """Keys each pool is filled with."""
    return [np.flatnonzero(m[s.OWNER, : m[s.INTS, s.KEYS]] >= 0) for m in setting.m]
