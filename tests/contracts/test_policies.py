"""Every policy that has a config: it loads by its name, replays, and (unless clairvoyant) runs live with the same decisions."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

import rgpu.conf
from rgpu.errors import InputError, TraceError
from rgpu.policies.loop import GROW, SHRINK
from rgpu.replay.controller import Controller, replay_events
from rgpu.replay.engine import replay
from rgpu.replay.pool import PoolConfig
from rgpu.replay.resizing import Resizes
from rgpu.replay.stream import routing_events
from tests.resized import run as resized
from tests.support import routed_trace

FOLDER = Path(rgpu.conf.__file__).parent / "policy"
EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "most_recent.py"


def load(name: str) -> Any:
    cfg = OmegaConf.load(FOLDER / f"{name}.yaml")
    if name == "plain":
        cfg.file = str(EXAMPLE)
    return instantiate(cfg)


NAMES = sorted(p.stem for p in FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_policy_is_called_what_its_config_is(name: str) -> None:
    policy = load(name)
    assert policy.name == (EXAMPLE.stem if name == "plain" else name)
    assert type(policy).__doc__


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("slots", [2, 5])
def test_policy_replays_and_runs_live_alike(name: str, slots: int) -> None:
    policy, trace = load(name), routed_trace(1, tokens=30)
    result = replay(trace, policy, PoolConfig(slots=slots), calibration=trace, log=True)
    assert 0 <= result.hits < result.accesses
    if policy.traits.needs_future:
        with pytest.raises(InputError, match="future"):
            Controller(policy, trace.shape, PoolConfig(slots=slots), calibration=trace)
    else:
        controller = Controller(policy, trace.shape, PoolConfig(slots=slots), calibration=trace)
        assert replay_events(controller, routing_events(trace)).log == result.log


@pytest.mark.parametrize("name", NAMES)
def test_policy_names_what_it_lacks(name: str) -> None:
    policy, trace = load(name), routed_trace(1)
    if policy.traits.calibration:
        with pytest.raises(InputError, match="calibration"):
            replay(trace, policy, PoolConfig(slots=4))
    if policy.traits.staging:
        with pytest.raises(InputError, match="staging"):
            replay(trace, policy, PoolConfig(slots=1, staging=2), calibration=trace)
    trace.weights = trace.router_logits = None
    if policy.traits.weights:
        with pytest.raises(TraceError, match="weights"):
            replay(trace, policy, PoolConfig(slots=4), calibration=trace)


@pytest.mark.parametrize("name", NAMES)
def test_a_pool_that_holds_everything_loads_each_expert_once(name: str) -> None:
    policy, trace = load(name), routed_trace(2, tokens=60, layers=1)
    room = trace.header.num_experts + (1 if policy.traits.staging else 0)
    result = replay(trace, policy, PoolConfig(slots=room), calibration=trace)
    used = len(np.unique(trace.expert_ids))
    if policy.traits.demand and name != "on_demand":
        assert result.loads == result.cold_misses == used
    elif name in ("static_hot", "ring", "rotary"):
        assert result.misses == 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_a_policy_goes_on_when_pools_change_their_size(name: str, scope: str) -> None:
    policy, trace = load(name), routed_trace(1, tokens=40)
    if policy.traits.needs_future:
        return
    slots = 5 if scope == "layer" else 9
    changes = [(8, 0, 2), (13, 0, 1), (20, 0, 4), (31, 0, 3), (33, 0, 7)]
    pool = PoolConfig(scope, slots)
    live = resized(policy, trace, pool, changes, calibration=trace)
    again = Controller(policy, trace.shape, pool, calibration=trace)
    assert replay_events(again, routing_events(trace), Resizes(changes)).log == live.log
    kinds = [kind for _, _, kind, *_ in live.log if kind in (SHRINK, GROW)]
    assert kinds[-3:] == [GROW, SHRINK, GROW]
    assert live.hits < live.accesses
