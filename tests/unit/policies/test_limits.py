"""Parameters at the limits of what is allowed: the last value that is taken, and the first that is refused."""

from typing import Any

import pytest

from rgpu.errors import InputError
from rgpu.policies.activation_map import ActivationMap
from rgpu.policies.admission import Capped, LowScore, SecondHit
from rgpu.policies.class_lru import ClassLru
from rgpu.policies.forecast_evict import ForecastEvict
from rgpu.policies.gate_score import GateScore
from rgpu.policies.gdsf import Gdsf
from rgpu.policies.learned_next_use import LearnedNextUse
from rgpu.policies.least_stale import LeastStale
from rgpu.policies.lfu_decayed import LfuDecayed
from rgpu.policies.linear_residency import LinearResidency
from rgpu.policies.lirs import Lirs
from rgpu.policies.lru_k import LruK
from rgpu.policies.ring import Ring
from rgpu.policies.rotary import Rotary
from rgpu.policies.rotary_paper import RotaryPaper
from rgpu.policies.rotation.options import BOUNDS, NAMED, WHOLE
from rgpu.policies.router_lag import RouterLag
from rgpu.policies.s3_fifo import S3Fifo
from rgpu.policies.slru import Slru
from rgpu.policies.static_hot import StaticHot
from rgpu.policies.two_q import TwoQ

LIMITS: list[tuple[Any, str, list[Any], list[Any]]] = [
    (ActivationMap, "maps", [1, 8], [0, 9]),
    (ActivationMap, "rematch", [1, 1 << 30], [0, (1 << 30) + 1]),
    (ActivationMap, "half_life", [1, 1 << 30], [0, (1 << 30) + 1]),
    (ClassLru, "half_life", [1], [0]),
    (ForecastEvict, "horizon", [1], [0]),
    (ForecastEvict, "half_life", [1], [0]),
    (GateScore, "half_life", [1], [0]),
    (Gdsf, "cost", ["one", "bytes"], ["two"]),
    (LearnedNextUse, "half_life", [1], [0]),
    (LearnedNextUse, "cap", [2], [1]),
    (LeastStale, "order", ["loaded", "used"], ["first"]),
    (LfuDecayed, "half_life", [1], [0]),
    (LinearResidency, "ridge", [None, 1e-9], [0, -1.0]),
    (LinearResidency, "step", [None, 1e-9], [0, -1.0]),
    (Lirs, "hir", [1e-9, 1], [0, 1.01]),
    (LruK, "k", [1], [0]),
    (LruK, "correlated", [0, 1], [-1]),
    (LruK, "retained", [None, 0, 1], [-1]),
    (Ring, "step", [1], [0]),
    (Rotary, "step", [1], [0]),
    (Rotary, "rotation", ["identity", "random"], ["linear"]),
    (RouterLag, "step", [None, 1, 2], [0, 1.5]),
    (S3Fifo, "small", [1e-9, 1], [0, 1.01]),
    (S3Fifo, "ghost", [1e-9, 2], [0]),
    (S3Fifo, "promote", [1, 3], [0, 4]),
    (Slru, "segments", [2, 4], [1, 5]),
    (StaticHot, "passes", [1], [0]),
    (StaticHot, "scope", ["global", "sequence"], ["layer", "domain"]),
    (TwoQ, "a1in", [1e-9, 1], [0, 1.01]),
    (TwoQ, "a1out", [1e-9, 2], [0]),
    (Capped, "inserts", [1], [0, True, 1.0]),
    (LowScore, "share", [0, 1, 1000], [-1e-9, 1000.01, True]),
    (SecondHit, "window", [1], [0, True, 1.0]),
    *((RotaryPaper, n, [*values], ["none of them"]) for n, values in NAMED.items()),
]


@pytest.mark.parametrize(("kind", "name", "taken", "refused"), LIMITS, ids=lambda v: getattr(v, "__name__", str(v)))
def test_values_are_taken_up_to_their_limits(kind: Any, name: str, taken: list[Any], refused: list[Any]) -> None:
    for value in taken:
        assert getattr(kind(**{name: value}), name) == value
    for value in refused:
        with pytest.raises(InputError, match=name if not isinstance(value, str) else "policy"):
            kind(**{name: value})


@pytest.mark.parametrize("name", [n for n in BOUNDS if hasattr(RotaryPaper(), n)])
def test_rotation_takes_numbers_within_their_bounds(name: str) -> None:
    least, most, null = BOUNDS[name]
    far = 7.0 if most == float("inf") else most
    for value in (least, far):
        assert getattr(RotaryPaper(**{name: value}), name) == value
    wrong: list[Any] = [True, "1", *([least + 0.5] if name in WHOLE else [])]
    wrong += [value for value in (least - 1, most + 1) if not least <= value <= most]
    if null:
        assert getattr(RotaryPaper(**{name: None}), name) is None
    else:
        wrong.append(None)
    for value in wrong:
        with pytest.raises(InputError, match=f"policy.{name}"):
            RotaryPaper(**{name: value})


def test_rotation_names_its_transforms_once_each() -> None:
    assert RotaryPaper(transforms="projection+trajectory").transforms == ("projection", "trajectory")
    assert RotaryPaper(transforms=["trajectory"]).trajectory and not RotaryPaper().trajectory
    for wrong in ((), None, "projection+projection", ["spin"], ["projection", "spin"]):
        with pytest.raises(InputError, match="transforms"):
            RotaryPaper(transforms=wrong)
    assert not RotaryPaper().standardised and RotaryPaper(transforms="projection+trajectory").standardised
    assert RotaryPaper().depth == 0 and RotaryPaper(tau_return=0.5).depth == 8
    assert RotaryPaper(mode="switching").switching and not RotaryPaper().switching
    assert (RotaryPaper().traits.signatures, RotaryPaper(mode="switching").traits.signatures) == (1, 2)
    with pytest.raises(InputError, match="step"):
        RotaryPaper(step=None, adaptive_step=True)
    assert RotaryPaper(step=None).step is None and RotaryPaper(adaptive_step=True).adaptive_step
    with pytest.raises(InputError, match="domain"):
        StaticHot(scope="domain")
    with pytest.raises(InputError, match="domain"):
        StaticHot(domain="code")
    assert StaticHot(scope="domain", domain="code").domain == "code"


def test_an_lru_k_history_has_a_row_a_use() -> None:
    assert LruK(k=5).traits.rows - LruK(k=1).traits.rows == 4
