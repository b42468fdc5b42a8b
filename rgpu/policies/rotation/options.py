"""Every open choice of the rotary family, by name. [S-emb] marks values the published application gives as examples;
all other defaults are ours. `conf/policy/rotary_paper.yaml` lists them with comments.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from rgpu.errors import InputError
from rgpu.policies.policy import Setting, Traits
from rgpu.policies.rotation import state as s
from rgpu.policies.rotation.prepare import DIRECTIONS, KINDS, MODES, planned, prepare

NAMED: dict[str, Iterable[str]] = {
    "rotation": ("identity", "random", "calibrated", "linear"),
    "signatures": ("mean", "router_rows", "random"),
    "similarity": ("dot", "cosine"),
    "ring_order": ("phase", "id", "random"),
    "ring_map": ("nearest", "proportional"),
    "ring_window": ("ahead", "centred"),
    "direction": DIRECTIONS,
    "mode": MODES,
    "pooling": ("mean", "decay"),
}
# Bounds of numbers: least, most, may be null.
BOUNDS: dict[str, tuple[float, float, bool]] = {
    "heads": (1, s.MOST_HEADS, False),
    "step": (0, np.inf, True),
    "step_high": (0, np.inf, False),
    "step_low": (0, np.inf, False),
    "step_surge": (0, np.inf, False),
    "distance_high": (0, 2, False),
    "distance_low": (0, 2, False),
    "entropy_surge": (0, np.inf, False),
    "hit_rate_high": (0, 1, False),
    "hit_rate_scale": (0, 1, False),
    "storm_events": (1, np.inf, True),
    "average": (1, np.inf, False),
    "cycle": (0, np.inf, True),
    "cycle_entropy": (0, 1, False),
    "window": (1, s.BUFFER_LENGTH, False),
    "window_short": (1, s.BUFFER_LENGTH, False),
    "window_long": (1, s.BUFFER_LENGTH, False),
    "kl_threshold": (0, np.inf, False),
    "tau_return": (-1, 1, True),
    "return_depth": (1, 1024, False),
    "return_step": (0, np.inf, True),
    "switch_below": (0, 1, False),
    "online_rate": (0, np.pi, False),
    "online_below": (0, 1, False),
    "score_floor": (-np.inf, np.inf, True),
    "calibration_steps": (0, np.inf, False),
    "calibration_tokens": (1, np.inf, False),
    "weight_projection": (0, np.inf, False),
    "weight_phase": (0, np.inf, False),
    "weight_cyclic": (0, np.inf, False),
    "weight_trajectory": (0, np.inf, False),
    "weight_recency": (0, np.inf, False),
    "weight_frequency": (0, np.inf, False),
    "half_life": (1, np.inf, False),
}
WHOLE = ("heads", "storm_events", "cycle", "window", "window_short", "window_long", "return_depth", "return_step",
         "calibration_steps", "calibration_tokens")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Rotation:
    """Parameters common to `rotary_paper` and `rotary_hybrid`; null switches a control off, or lifts a limit."""

    transforms: Any = ("projection",)
    weight_projection: float = 1.0
    weight_phase: float = 1.0
    weight_cyclic: float = 1.0
    weight_trajectory: float = 1.0
    rotation: str = "identity"
    calibration_steps: int = 60
    calibration_tokens: int = 4096
    online: bool = False
    online_rate: float = 0.02
    online_below: float = 0.5
    signatures: str = "mean"
    router: str = ""
    similarity: str = "dot"
    centre: bool = False
    score_floor: float | None = None
    ring_order: str = "phase"
    ring_map: str = "nearest"
    ring_window: str = "ahead"
    direction: str = "sign"
    heads: int = 1
    mode: str = "per_layer"
    switch_below: float = 0.5
    step: float | None = 2.0
    adaptive_step: bool = False
    step_high: float = 3.0
    step_low: float = 0.5
    step_surge: float = 1.0
    distance_high: float = 0.8
    distance_low: float = 0.4
    entropy_surge: float = 1.1
    hit_rate_high: float = 0.9
    hit_rate_scale: float = 0.5
    storm_events: int | None = 8
    average: float = 32.0
    cycle: int | None = None
    adaptive_cycle: bool = False
    cycle_entropy: float = 0.05
    window: int = 16
    adaptive_window: bool = False
    window_short: int = 8
    window_long: int = 32
    kl_threshold: float = 0.5
    pooling: str = "mean"
    tau_return: float | None = None
    return_depth: int = 8
    return_step: int | None = None
    keep_misses: bool = True

    def __post_init__(self) -> None:
        given = self.transforms
        names = tuple(given.split("+")) if isinstance(given, str) else tuple(str(name) for name in given or ())
        object.__setattr__(self, "transforms", names)
        if not names or len(set(names)) < len(names) or not set(names) <= set(KINDS):
            raise InputError(
                f"policy.transforms: got {list(names)}; expected one or more of {', '.join(KINDS)}, each once; "
                "set policy.transforms=[projection]"
            )
        for name, values in NAMED.items():
            if getattr(self, name) not in values:
                raise InputError(
                    f"policy.{name}: got {getattr(self, name)!r}; expected one of {', '.join(values)}; choose one"
                )
        for name, (least, most, null) in BOUNDS.items():
            value: Any = getattr(self, name, None)
            if not hasattr(self, name) or (value is None and null):
                continue
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not least <= value <= most or (name in WHOLE and value != int(value)):
                kind = "a whole number" if name in WHOLE else "a number"
                raise InputError(
                    f"policy.{name}: got {value!r}; expected {kind} from {least:g} to {most:g}"
                    f"{' or null' if null else ''}; choose one"
                )
        if self.step is None and self.adaptive_step:
            raise InputError(
                "policy.step: got null with adaptive_step=true; expected a step to adapt; set policy.step=2"
            )

    @property
    def trajectory(self) -> bool:
        return "trajectory" in self.transforms

    @property
    def depth(self) -> int:
        """Entries of the return memory; 0 where return is off."""
        return 0 if self.tau_return is None else self.return_depth

    @property
    def switching(self) -> bool:
        return self.mode == "switching"

    @property
    def standardised(self) -> bool:
        """Whether several scores add up, so that each is brought to one scale first."""
        return len(self.transforms) > 1

    @property
    def traits(self) -> Traits:
        return Traits(
            rows=s.rows(self.depth, self.switching), signatures=1 + self.switching, staging=True,
            frows=s.frows(self.heads, self.depth, self.trajectory, self.switching),
            feature="hidden", calibration=True, demand=False,
        )  # fmt: skip

    def prepare(self, setting: Setting) -> None:
        prepare(self, setting)

    def fill(self, setting: Setting) -> list[np.ndarray]:
        return planned(setting)
