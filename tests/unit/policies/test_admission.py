"""Admission plugs against a slow simulator, beside any policy, live and in replay."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

import rgpu.conf
from rgpu.errors import InputError
from rgpu.policies.admission import Always, Capped, LowScore, SecondHit, admitted
from rgpu.policies.belady import Belady
from rgpu.policies.fifo import Fifo
from rgpu.policies.lfu_decayed import LfuDecayed
from rgpu.policies.lru import Lru
from rgpu.policies.plain import Plain
from rgpu.policies.policy import Traits, runner
from rgpu.policies.router_lag import RouterLag
from rgpu.policies.static_hot import StaticHot
from rgpu.replay.controller import Controller, replay_events
from rgpu.replay.engine import replay
from rgpu.replay.pool import PoolConfig, initial_state, lay_out
from rgpu.replay.stream import routing_events
from rgpu.traces.trace import Trace
from tests.support import routed_trace

FOLDER = Path(rgpu.conf.__file__).parent / "admission"
EXAMPLE = Path(__file__).parents[3] / "docs" / "examples" / "most_recent.py"
PLUGS = (LowScore(0.9), LowScore(1.2), SecondHit(1), SecondHit(3), Capped(1), Capped(2))


def lru_behind(trace: Trace, layer: int, slots: int, plug: Any) -> tuple[int, int]:
    """(hits, kept misses) of LRU with `slots` slots that keep, by the words of each plug; one token an event."""
    resident: list[int] = []
    last: dict[int, int] = {}
    missed: dict[int, int] = {}
    hits = kept = clock = 0
    for event in range(trace.tokens):
        union = trace.expert_ids[event, layer].tolist()
        weight = dict(zip(union, trace.weights[event, layer].astype(float), strict=True))  # type: ignore[index]
        mean = sum(weight.values()) / len(union)
        present, taken = [e for e in union if e in resident], 0
        hits += len(present)
        pinned = set(present)
        for e in union:
            if e in present:
                continue
            if isinstance(plug, LowScore):
                keep = weight[e] >= plug.share * mean - 1e-6
            elif isinstance(plug, SecondHit):
                keep = e in missed and event - missed[e] <= plug.window
                missed[e] = event
            else:
                keep, taken = taken < plug.inserts, taken + 1
            if not keep:
                continue
            kept += 1
            if len(resident) == slots:
                if pinned >= set(resident):
                    pinned = set()
                resident.remove(min((x for x in resident if x not in pinned), key=lambda x: last[x]))
            resident.append(e)
            pinned.add(e)
            clock += 1
            last[e] = clock
        for e in union:
            clock += 1
            if e in resident:
                last[e] = clock
    return hits, kept


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), slots=st.integers(2, 5), plug=st.sampled_from(PLUGS))
def test_lru_behind_a_plug_counts_what_its_words_say(seed: int, slots: int, plug: Any) -> None:
    trace = routed_trace(seed, tokens=40, top_k=3)
    result = replay(trace, admitted(Lru(), plug), PoolConfig(slots=slots), decisions=True)
    expected = [lru_behind(trace, layer, slots - 1, plug) for layer in range(trace.layers)]
    assert result.decisions is not None
    assert (result.hits, int(result.decisions.kept.sum())) == tuple(np.sum(expected, 0))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), window=st.integers(1, 4), scope=st.sampled_from(("global", "group2")))
def test_a_second_hit_is_within_passes_whatever_shares_the_pool(seed: int, window: int, scope: str) -> None:
    trace = routed_trace(seed, tokens=40, layers=4, top_k=2)  # room for all: only the plug decides what is kept
    experts, shared = trace.header.num_experts, {"global": 4, "group2": 2}[scope]
    kept = []
    for pool in (PoolConfig(slots=experts + 1), PoolConfig(scope, slots=experts * shared + 1)):
        result = replay(trace, admitted(Lru(), SecondHit(window)), pool, decisions=True)
        assert result.decisions is not None
        kept.append(result.decisions.kept.tolist())
    assert kept[0] == kept[1] and 0 < sum(kept[0]) < len(kept[0])


@pytest.mark.parametrize("plug", PLUGS, ids=str)
@pytest.mark.parametrize("policy", [Lru(), Fifo(), StaticHot(), Plain(str(EXAMPLE))], ids=lambda p: p.name)
def test_live_decides_as_replay(policy: Any, plug: Any) -> None:
    trace, pool, both = routed_trace(4, tokens=30, group=3), PoolConfig(slots=4), admitted(policy, plug)
    result = replay(trace, both, pool, calibration=trace, log=True)
    live = Controller(both, trace.shape, pool, calibration=trace)
    assert replay_events(live, routing_events(trace)).log == result.log
    assert both.name == f"{policy.name}+{plug.name}" and both.traits.staging


def test_always_is_no_plug_and_a_bound_takes_none() -> None:
    assert admitted(Lru(), Always()) == Lru()
    with pytest.raises(InputError, match="clairvoyant"):
        admitted(Belady(), Capped())


@pytest.mark.parametrize("name", sorted(p.stem for p in FOLDER.glob("*.yaml")))
def test_every_plug_is_called_what_its_config_is(name: str) -> None:
    assert instantiate(OmegaConf.load(FOLDER / f"{name}.yaml")).name == name


@pytest.mark.parametrize("make", [lambda: Capped(0), lambda: SecondHit(True), lambda: LowScore(-1.0)])
def test_bad_values_are_named(make: Any) -> None:
    with pytest.raises(InputError, match="admission"):
        make()


def test_a_plug_leaves_the_policy_s_own_needs_and_state() -> None:
    assert admitted(Lru(), LowScore(0.9)).traits.weights and admitted(RouterLag(), Capped()).traits.weights
    assert not admitted(Lru(), Capped()).traits.weights
    trace, pool = routed_trace(1), PoolConfig(slots=4)
    both = [
        initial_state(lay_out(pool, p, trace.shape), p, trace.shape, "", 0, trace, 0)[1]
        for p in (LfuDecayed(half_life=5), admitted(LfuDecayed(half_life=5), Capped()))
    ]
    assert both[0].any() and np.array_equal(*both)


@pytest.mark.parametrize("hooks", [{}, {"on_admit": print}, None, [("victim", print)]])
def test_hooks_without_a_victim_are_refused(hooks: Any) -> None:
    with pytest.raises(InputError, match="'victim'"):
        runner(SimpleNamespace(name="none", traits=Traits(), hooks=hooks))
