"""What must hold of every policy on every trace."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rgpu.policies.belady import Belady
from rgpu.policies.belady_bypass import BeladyBypass
from rgpu.policies.linear_residency import LinearResidency
from rgpu.policies.lru import Lru
from rgpu.policies.ring import Ring
from rgpu.policies.rotary_paper import RotaryPaper
from rgpu.replay.controller import Controller, replay_events
from rgpu.replay.engine import SharedEvents, replay
from rgpu.replay.events import build_events
from rgpu.replay.pool import PoolConfig
from rgpu.replay.stream import routing_events
from tests.support import ALL, FORCED, LIVE, routed_trace, trace_of, unions

POOLS = (PoolConfig(slots=1), PoolConfig(slots=3), PoolConfig(slots=6), PoolConfig(scope="global", slots=7))
name_of: Any = lambda p: getattr(p, "name", f"{getattr(p, 'scope', '')}{getattr(p, 'slots', '')}")  # noqa: E731


@given(st.integers(0, 10_000), st.integers(1, 4), st.sampled_from(["rank", "reverse_rank"]))
@settings(max_examples=25, deadline=None)
def test_events_are_unions_in_rank_order(seed: int, group: int, touch: str) -> None:
    trace = routed_trace(seed, tokens=12, group=group)
    events = build_events(trace, touch_order=touch)
    for e in range(len(events.pool)):
        at = slice(events.offs[e], events.offs[e + 1])
        wanted = unions(trace, int(events.layer[e]))[int(events.pass_id[e])]
        assert events.keys[at].tolist() == wanted
        if touch == "reverse_rank":
            rows = trace.expert_ids[trace.passes == events.pass_id[e], events.layer[e]]
            flat = [int(x) for row in rows for x in row[::-1]]
            last = [x for i, x in enumerate(flat) if x not in flat[i + 1 :]]
            assert events.keys[at][events.touch[at]].tolist() == last


@pytest.mark.parametrize("policy", ALL, ids=name_of)
@given(seed=st.integers(0, 10_000), group=st.integers(1, 3), pool=st.sampled_from(POOLS))
@settings(max_examples=8, deadline=None)
def test_counts_add_up(policy: Any, seed: int, group: int, pool: PoolConfig) -> None:
    trace = routed_trace(seed, group=group)
    result = replay(trace, policy, pool, calibration=trace)
    assert result.hits + result.misses == result.accesses == len(result.events.keys)
    assert result.misses == result.demand_loads
    assert result.prefetch_hits + result.wasted + result.pending == result.proactive_loads
    assert result.hits_event.sum() == result.hits
    assert result.assignments == trace.expert_ids.size
    fewest = replay(trace, BeladyBypass(), pool)
    assert result.loads >= fewest.loads


@pytest.mark.parametrize("policy", FORCED, ids=name_of)
@given(seed=st.integers(0, 10_000), slots=st.integers(3, 7))
@settings(max_examples=10, deadline=None)
def test_no_forced_demand_policy_beats_belady(policy: Any, seed: int, slots: int) -> None:
    trace = routed_trace(seed)
    assert replay(trace, policy, PoolConfig(slots=slots)).hits <= replay(trace, Belady(), PoolConfig(slots=slots)).hits


@given(seed=st.integers(0, 10_000), slots=st.integers(4, 7), touch=st.sampled_from(["rank", "reverse_rank"]))
@settings(max_examples=20, deadline=None)
def test_lru_includes_its_smaller_self(seed: int, slots: int, touch: str) -> None:
    trace = routed_trace(seed, group=2)
    small, large = (replay(trace, Lru(), PoolConfig(slots=s), touch_order=touch) for s in (slots, slots + 1))
    assert (large.hits_event >= small.hits_event).all()


@pytest.mark.parametrize("policy", ALL, ids=name_of)
@pytest.mark.parametrize("pool", POOLS, ids=name_of)
def test_compiled_and_plain_loops_agree_slot_for_slot(policy: Any, pool: PoolConfig) -> None:
    trace = routed_trace(3, tokens=16, group=2)
    compiled = replay(trace, policy, pool, calibration=trace, log=True)
    hooks = HOOKS[type(policy).__module__](policy)
    again = replay(trace, Uncompiled(policy, hooks), pool, calibration=trace, log=True)
    assert again.log == compiled.log


@pytest.mark.parametrize("policy", LIVE, ids=name_of)
@pytest.mark.parametrize("pool", POOLS, ids=name_of)
def test_bulk_replay_and_controller_agree_event_for_event(policy: Any, pool: PoolConfig) -> None:
    trace = routed_trace(5, group=2)
    bulk = replay(trace, policy, pool, calibration=trace, log=True)
    stepped = replay_events(Controller(policy, trace.shape, pool, calibration=trace), routing_events(trace))
    assert stepped.log == bulk.log
    assert (stepped.hits, stepped.accesses) == (bulk.hits, bulk.accesses)


@pytest.mark.parametrize("policy", ALL, ids=name_of)
def test_chunks_and_layer_order_change_nothing(policy: Any) -> None:
    trace = routed_trace(7, group=2)
    whole = replay(trace, policy, PoolConfig(slots=3), calibration=trace)
    assert replay(trace, policy, PoolConfig(slots=3), calibration=trace, chunk=3).hits == whole.hits
    logged = replay(trace, policy, PoolConfig(slots=3), calibration=trace, log=True)  # pass by pass, not layer by layer
    assert (logged.hits, logged.loads) == (whole.hits, whole.loads)


@pytest.mark.parametrize("policy", ALL, ids=name_of)
def test_reset_empties_the_pool_at_each_sequence(policy: Any) -> None:
    trace = routed_trace(9, sequences=3, tokens=45)
    cold = replay(trace, policy, PoolConfig(slots=4), calibration=trace, reset="sequence")
    alone = [replay(trace.select(np.array([s])), policy, PoolConfig(slots=4), calibration=trace).hits for s in range(3)]
    assert cold.hits_piece.tolist() == alone
    assert cold.accesses_piece.sum() == cold.accesses
    assert cold.loads_piece.sum() == cold.loads


@pytest.mark.parametrize("policy", ALL, ids=name_of)
def test_counting_by_sequence_leaves_the_pool_warm(policy: Any) -> None:
    trace = routed_trace(9, sequences=3, tokens=60)
    apart = replay(trace, policy, PoolConfig(slots=4), calibration=trace, by_sequence=True)
    whole = replay(trace, policy, PoolConfig(slots=4), calibration=trace)
    assert (apart.hits, apart.loads) == (whole.hits, whole.loads)
    assert len(apart.hits_piece) == 3 and apart.hits_piece.sum() == apart.hits


@pytest.mark.parametrize("slots", [2, 9, 17])
def test_blind_ring_hits_its_share_whatever_the_reuse(slots: int) -> None:
    rng = np.random.default_rng(0)
    sticky = np.repeat(
        rng.integers(0, 32, 4000), 5
    )  # every expert five times in a row: a policy with eyes would profit
    result = replay(trace_of([(int(e),) for e in sticky], 32), Ring(), PoolConfig(slots=slots))
    assert abs(result.hit_rate - (slots - 1) / 32) < 0.01


class Uncompiled:
    """A policy run by the plain loop: same traits and preparation, hooks in Python."""

    def __init__(self, policy: Any, hooks: dict[str, Any]) -> None:
        self._policy, self.hooks = policy, hooks
        self.name, self.traits = policy.name, policy.traits
        for optional in ("prepare", "fill"):
            if hasattr(policy, optional):
                setattr(self, optional, getattr(policy, optional))


def _hooks(**names: str) -> Any:
    def find(policy: Any) -> dict[str, Any]:
        import importlib

        module = importlib.import_module(type(policy).__module__)
        return {slot: getattr(module, name) for slot, name in names.items()}

    return find


HOOKS = {
    "rgpu.policies.lru": _hooks(victim="victim", on_admit="arrive", on_access="touch"),
    "rgpu.policies.fifo": _hooks(victim="victim", on_admit="arrive"),
    "rgpu.policies.lfu": _hooks(victim="victim", on_admit="arrive", on_access="touch"),
    "rgpu.policies.random": _hooks(victim="victim"),
    "rgpu.policies.on_demand": _hooks(victim="victim", admit="never", on_admit="arrive"),
    "rgpu.policies.ring": _hooks(victim="victim", admit="never", on_admit="arrive", desired="advance"),
    "rgpu.policies.static_hot": _hooks(victim="victim", admit="never"),
    "rgpu.policies.router_lag": _hooks(victim="victim", admit="admit", on_event="score", desired="wish"),
    "rgpu.policies.rotary": _hooks(
        victim="victim", admit="admit", on_event="project", on_admit="arrive", desired="wish"
    ),
    "rgpu.policies.belady": _hooks(victim="victim"),
    "rgpu.policies.belady_bypass": _hooks(victim="farthest", admit="worth"),
}


def test_what_a_grid_shares_changes_nothing() -> None:
    """Calibration learned once for several replays gives what learning it again gives, and each trace its own."""
    trace, other = routed_trace(1, tokens=60), routed_trace(7, tokens=60)
    policies = (RotaryPaper(rotation="calibrated"), RotaryPaper(rotation="calibrated", heads=2), LinearResidency())
    shared = SharedEvents(trace)
    for calibration, policy, slots in itertools.product((trace, other), policies, (3, 5)):
        own = replay(trace, policy, PoolConfig(slots=slots), calibration=calibration, log=True)
        again = replay(trace, policy, PoolConfig(slots=slots), calibration=calibration, log=True, shared=shared)
        assert own.log == again.log
    assert len(shared.memo) > 4
