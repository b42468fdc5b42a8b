"""What tests of the rotary family share: every choice of every option, runs on a toy trace, and ways to look inside."""

from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from rgpu.policies.rotary_paper import RotaryPaper
from rgpu.policies.rotation import state as s
from rgpu.replay.controller import Controller
from rgpu.replay.pool import PoolConfig
from rgpu.replay.stream import routing_events
from rgpu.traces.trace import Trace
from tests.support import routed_trace

ALL = ["projection", "phase", "cyclic", "trajectory"]
CHOICES: list[dict[str, Any]] = [
    *({"transforms": [name]} for name in ALL),
    {"transforms": ALL},
    {"transforms": "phase+cyclic", "weight_phase": 2.0},
    *({"transforms": ALL, "rotation": r, "calibration_steps": 3} for r in ("random", "calibrated", "linear")),
    *({"rotation": r, "online": True, "online_below": 1.0} for r in ("identity", "random", "calibrated", "linear")),
    {"signatures": "random"},
    {"similarity": "cosine", "centre": True},
    {"score_floor": 0.0},
    *({"transforms": ["phase", "cyclic"], "ring_order": o} for o in ("phase", "id", "random")),
    {"transforms": ["phase"], "ring_map": "proportional"},
    {"transforms": ["phase", "cyclic"], "ring_window": "centred", "cycle": 0},
    *({"transforms": ["phase", "cyclic"], "direction": d, "cycle": 3} for d in ("sign", "forward", "reverse")),
    *({"heads": h, "transforms": ALL, "rotation": "random", "slots": 9, "experts": 12} for h in (2, 4, 8)),
    {"mode": "synchronised", "scope": "global", "slots": 9},
    {"mode": "synchronised", "scope": "global", "slots": 9, "transforms": ALL, "online": True, "online_below": 1.0},
    {"mode": "grouped", "scope": "group3", "slots": 9, "layers": 6},
    {"mode": "switching", "scope": "global", "slots": 9, "transforms": ALL},
    {"mode": "per_layer", "scope": "global", "slots": 9, "transforms": ALL},
    {"step": None},
    {"step": 0},
    {"step": 0.3},
    {"adaptive_step": True, "storm_events": 2},
    {"adaptive_step": True, "storm_events": None, "distance_high": 0.2, "distance_low": 0.1},
    {"transforms": ["cyclic"], "adaptive_cycle": True, "cycle_entropy": 0.01},
    {"transforms": ["trajectory"], "adaptive_window": True, "kl_threshold": 0.2},
    {"transforms": ["trajectory"], "pooling": "decay", "window": 3},
    {"tau_return": 0.3, "return_depth": 3},
    {"tau_return": 0.3, "return_step": 1, "transforms": ALL, "heads": 2, "slots": 5},
    {"keep_misses": False},
]


def toy(layers: int = 2, **more: Any) -> Trace:
    return routed_trace(1, tokens=40, layers=layers, sequences=1, **more)


def placed(choice: dict[str, Any]) -> tuple[dict[str, Any], PoolConfig, Trace]:
    """(policy parameters, pool, trace) of one entry of `CHOICES`."""
    own = dict(choice)
    scope, slots, layers = own.pop("scope", "layer"), own.pop("slots", 4), own.pop("layers", 2)
    return own, PoolConfig(scope=scope, slots=slots), toy(layers, experts=own.pop("experts", 8))


class Watched:
    """A controller driven event by event, with the loads of every event and what is resident after it."""

    def __init__(self, policy: Any, trace: Trace, pool: PoolConfig, calibration: Trace | None = None, **more: Any):
        self.controller = Controller(policy, trace.shape, pool, calibration=calibration or trace, **more)
        self.m, self.f = self.controller._m, self.controller._f
        self.before = self.f.copy()
        self.loads: list[tuple[int, int, dict[int, int]]] = []
        self.resident: list[np.ndarray] = []
        self.controller.start()
        for event in routing_events(trace):
            decision = self.controller.observe(event)
            moved: dict[int, int] = {}
            for d in (decision, *self.controller.ahead()):
                for layer in d.layers[d.codes >= 0].tolist():
                    moved[layer] = moved.get(layer, 0) + 1
            self.loads.append((event.pass_id, event.layer, moved))
            self.resident.append(self.controller.resident_LE())

    @property
    def layers(self) -> int:
        return self.controller.shape.layers


def signatures(watched: Watched, f: np.ndarray, pool: int = 0, width: int = 5) -> np.ndarray:
    first = int(watched.m[pool, s.LIVE, s.SIGNATURE])
    return f[pool, first : first + watched.controller.layout.keys, :width]


def write_router(path: Path, rows_LED: np.ndarray) -> Path:
    named = {f"model.layers.{i}.mlp.gate.weight": rows.astype(np.float32) for i, rows in enumerate(rows_LED)}
    save_file(named, path)
    return path


def paper(**more: Any) -> RotaryPaper:
    return RotaryPaper(**more)
