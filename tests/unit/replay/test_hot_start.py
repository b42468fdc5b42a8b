"""Hot profiles: what they fill pools with, and files that are not one."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from rgpu.errors import InputError
from rgpu.policies.lru import Lru
from rgpu.policies.policy import Policy
from rgpu.policies.static_hot import StaticHot
from rgpu.replay.controller import Controller
from rgpu.replay.hot_start import hot_keys, load_profile, save_profile
from rgpu.replay.pool import PoolConfig, lay_out
from rgpu.types import MoEShape, RoutingEvent
from tests.support import routed_trace

SHAPE = MoEShape(layers=2, experts=5, top_k=2, hidden=4, expert_bytes=(100, 100))
USES_LE = np.array([[3, 0, 9, 3, 1], [0, 0, 0, 2, 0]])


def keys(scope: str, slots: int) -> list[list[int]]:
    return [k.tolist() for k in hot_keys(USES_LE, lay_out(PoolConfig(scope, slots), Lru(), SHAPE))]


def test_the_most_used_stay_and_the_hottest_is_loaded_last() -> None:
    assert keys("layer", 3) == [[3, 0, 2], [3]]  # of equals the lower key is hotter; what was never used stays out
    assert keys("layer", 1) == [[2], [3]]
    assert keys("global", 4) == [[8, 3, 0, 2]]


@given(st.integers(0, 999), st.sampled_from(["layer", "global"]), st.integers(1, 10))
def test_nothing_hotter_is_left_out(seed: int, scope: str, slots: int) -> None:
    uses_LE = np.random.default_rng(seed).integers(0, 4, (2, 5))
    layout = lay_out(PoolConfig(scope, slots), Lru(), SHAPE)
    for pool, filled in enumerate(hot_keys(uses_LE, layout)):
        uses_K = uses_LE[layout.pool_of == pool].reshape(-1)
        kept = set(filled.tolist())
        left = [int(uses_K[key]) for key in range(len(uses_K)) if key not in kept]
        assert len(kept) == len(filled) == min(layout.main[pool], int((uses_K > 0).sum()))
        assert uses_K[filled].tolist() == sorted(uses_K[filled].tolist())
        assert all(uses_K[key] >= max(left, default=0) for key in kept)


def test_a_profile_comes_back(tmp_path: Path) -> None:
    save_profile(tmp_path / "hot.safetensors", USES_LE, "toy")
    assert np.array_equal(load_profile(tmp_path / "hot.safetensors", SHAPE), USES_LE)
    assert [path.name for path in tmp_path.iterdir()] == ["hot.safetensors"]


def refused(path: Path, match: str, shape: MoEShape = SHAPE) -> None:
    with pytest.raises(InputError, match=match) as raised:
        load_profile(path, shape)
    assert "\n" not in str(raised.value) and "profile_out" in str(raised.value)


def test_other_files_are_refused(tmp_path: Path) -> None:
    refused(tmp_path / "none.safetensors", "cannot read")
    (tmp_path / "text.safetensors").write_text("hot")
    refused(tmp_path / "text.safetensors", "cannot read")
    save_file({"weights": np.zeros(3)}, tmp_path / "other.safetensors")
    refused(tmp_path / "other.safetensors", r"expected \[2, 5\]")
    save_file({"uses": USES_LE}, tmp_path / "later.safetensors", {"about": '{"schema_version": "2"}'})
    refused(tmp_path / "later.safetensors", r"expected \[2, 5\]")


def test_another_models_profile_is_refused(tmp_path: Path) -> None:
    save_profile(tmp_path / "hot.safetensors", USES_LE, "toy")
    refused(tmp_path / "hot.safetensors", r"got .* of \[2, 5\] uses; expected \[3, 5\]", MoEShape(3, 5, 2, 4))
    save_profile(tmp_path / "bad.safetensors", USES_LE - 1, "toy")
    refused(tmp_path / "bad.safetensors", "uses; expected")


def controller(policy: Policy, **options: object) -> Controller:
    trace = routed_trace(0, experts=5, hidden=4)
    needs = {"calibration": trace} if policy.traits.calibration else {}
    return Controller(policy, SHAPE, PoolConfig("layer", 3), **needs, **options)


def test_a_controller_starts_with_it() -> None:
    warm, cold = controller(Lru(), uses_LE=USES_LE), controller(Lru())
    assert (warm.filled_first, cold.filled_first, cold.warm, warm.warm) == (4, 0, False, True)
    loads = [(load.pool, load.experts.tolist()) for load in warm.start()]
    assert loads == [(0, [3, 0, 2]), (1, [3])]
    event = RoutingEvent(0, 0, np.array([[2, 4]], np.int16), np.ones((1, 2), np.float32))
    decision = warm.observe(event)
    assert warm.hits == 1 and decision.victims.tolist().count(3) == 1  # the least hot goes first
    assert warm.uses_LE().tolist() == [[0, 0, 1, 0, 1], [0, 0, 0, 0, 0]]  # the run's own, not the profile's


def test_a_policy_that_fills_itself_takes_none() -> None:
    with pytest.raises(InputError, match="fills the pools itself"):
        controller(StaticHot(), uses_LE=USES_LE)
