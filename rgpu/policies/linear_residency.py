"""Linear residency: hold the experts that an unconstrained linear predictor expects at the layer's next event.

The mandatory control of every rotation claim: W_r, signatures and scoring together are one linear map of the input, so
a rotation must at least match the best such map under the same step limit. Ridge regression of the layer's next routing
(0 or 1 an expert) on this event's feature, one map a layer, fitted on the calibration split; its strength is chosen by
leave-one-out error (Golub, Heath and Wahba 1979) unless given. Without hidden states the routing vector is the feature.
It runs the very code of `rotary_paper`, with the map in the place of rotated signatures: nothing else differs.
"""

import functools
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from rgpu.errors import InputError
from rgpu.policies.calibration import routing_vectors
from rgpu.policies.policy import Setting, Traits
from rgpu.policies.rotary_paper import run
from rgpu.policies.rotation import state as s
from rgpu.policies.rotation.learning import pairs
from rgpu.policies.rotation.options import Rotation
from rgpu.policies.rotation.prepare import plan_fill, planned, registers
from rgpu.policies.rotation.signatures import features


@dataclass(frozen=True, slots=True)
class LinearResidency:
    """`step`: slots that may change an event (null: no limit); `ridge`: penalty as a part of the inputs' mean variance
    times their number (null: chosen by leave-one-out error)."""

    step: float | None = 2.0
    ridge: float | None = None
    name: ClassVar[str] = "linear_residency"
    run: ClassVar = staticmethod(run)

    def __post_init__(self) -> None:
        if self.ridge is not None and not self.ridge > 0:
            raise InputError(
                f"policy.ridge: got {self.ridge}; expected a number above 0 or null; set policy.ridge=null"
            )
        if self.step is not None and not self.step > 0:
            raise InputError(f"policy.step: got {self.step}; expected a number above 0 or null; set policy.step=2")

    @property
    def traits(self) -> Traits:
        return Rotation().traits

    def prepare(self, setting: Setting) -> None:
        choice, trace, experts = Rotation(step=self.step), setting.calibration, setting.shape.experts
        registers(choice, setting)
        for layer in range(setting.shape.layers):
            map_EF, bias_E = setting.learned(
                ("linear_residency", layer, self.ridge),
                functools.partial(fitted, trace, layer, setting.feature, self.ridge),
            )
            first, pool = int(setting.base[layer]), setting.pool_of[layer]
            row = int(setting.m[pool, s.LIVE, s.SIGNATURE]) + first
            setting.f[pool, row : row + experts, : map_EF.shape[1]] = map_EF
            setting.f[pool, s.BIAS, first : first + experts] = bias_E
        plan_fill(choice, setting)

    def fill(self, setting: Setting) -> list[np.ndarray]:
        return planned(setting)


def fitted(trace: Any, layer: int, feature: str, strength: float | None) -> tuple[np.ndarray, np.ndarray]:
    """The map of one layer from the calibration trace."""
    routed_NE = routing_vectors(trace, layer, slice(None))
    x_NF, y_NE = pairs(features(trace, layer, feature), routed_NE, trace.seq_offsets, 1, len(routed_NE))
    return ridge_map(x_NF, (y_NE > 0).astype(np.float64), strength)


def ridge_map(x_NF: np.ndarray, y_NE: np.ndarray, strength: float | None) -> tuple[np.ndarray, np.ndarray]:
    """(map [E, F], bias [E]) of ridge regression with an unpenalised bias. No pairs: zeros."""
    if not len(x_NF):
        return np.zeros((y_NE.shape[1], x_NF.shape[1])), np.zeros(y_NE.shape[1])
    mean_F, mean_E = x_NF.mean(0), y_NE.mean(0)
    u, size, right = np.linalg.svd(x_NF - mean_F, full_matrices=False)
    target = y_NE - mean_E
    inside = u.T @ target
    scale = float((size**2).sum()) / x_NF.shape[1] or 1.0

    def error(part: float) -> float:
        keep = size**2 / (size**2 + part * scale)
        leverage = (u**2 @ keep) + 1.0 / len(x_NF)
        residual = target - u @ (keep[:, None] * inside)
        return float(((residual / np.maximum(1e-6, 1.0 - leverage)[:, None]) ** 2).mean())

    part = min((10.0 ** (i / 2) for i in range(-8, 7)), key=error) if strength is None else strength
    map_EF = (right.T @ ((size / (size**2 + part * scale))[:, None] * inside)).T
    return map_EF, mean_E - map_EF @ mean_F
