"""Queue policies against textbook forms written apart: the same hits and victims, on demand and proactive loads alike."""

import importlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rgpu.policies.arc import Arc
from rgpu.policies.belady import Belady
from rgpu.policies.belady_bypass import BeladyBypass
from rgpu.policies.clock import Clock
from rgpu.policies.fifo import Fifo
from rgpu.policies.lirs import Lirs
from rgpu.policies.loop import COUNTS, DROPPED, HIT, KEPT, PREFETCH_HIT, plain
from rgpu.policies.lru import Lru
from rgpu.policies.lru_k import LruK
from rgpu.policies.s3_fifo import S3Fifo
from rgpu.policies.sieve import Sieve
from rgpu.policies.slru import Slru
from rgpu.policies.two_q import TwoQ
from rgpu.replay.controller import Controller, replay_events
from rgpu.replay.engine import replay
from rgpu.replay.pool import PoolConfig, initial_state, lay_out
from rgpu.replay.stream import routing_events
from rgpu.types import MoEShape
from tests.support import routed_trace
from tests.unit.policies import textbook

KEYS = 10
CASES: list[tuple[Any, dict[str, Any]]] = [
    (Lru, {}), (Fifo, {}), (Clock, {}), (Sieve, {}), (Arc, {}),
    (Slru, {}), (Slru, {"segments": 4, "spill": True}), (Slru, {"segments": 3}),
    (TwoQ, {}), (TwoQ, {"a1in": 0.6, "a1out": 0.45}),
    (Lirs, {}), (Lirs, {"hir": 0.5}),
    (S3Fifo, {}), (S3Fifo, {"small": 0.4, "promote": 1}), (S3Fifo, {"small": 0.5, "spill": True}),
    (S3Fifo, {"small": 0.3, "ghost": 0.2, "spill": True}),
    (LruK, {}), (LruK, {"k": 1}), (LruK, {"k": 3, "correlated": 2}), (LruK, {"correlated": 1, "retained": 4}),
]  # fmt: skip
NAMES = [f"{kind.__name__}{''.join(f'-{v}' for v in given.values())}" for kind, given in CASES]
EVENTS = st.lists(
    st.tuples(
        st.sampled_from([0, 0, 0, 0, 1, 2, 3]), st.lists(st.integers(0, KEYS - 1), max_size=5, unique=True)
    ),
    max_size=60,
)  # fmt: skip
HOOKS = {"touch": "on_access", "arrive": "on_admit", "leave": "on_evict", "victim": "victim", "adapt": "admit"}


def ours(
    policy: Any, events: Any, slots: int, run: Any, keys: int = KEYS
) -> tuple[list[list[tuple[bool, int]]], np.ndarray]:
    """What the policy's own loop decided, in the textbooks' terms, and the state it ended in."""
    shape = MoEShape(layers=1, experts=keys, top_k=1)
    m, f, _ = initial_state(lay_out(PoolConfig(slots=slots), policy, shape), policy, shape, "", 0, None, 0)
    offs = np.cumsum([0, *(len(keys) for _, keys in events)]).astype(np.int64)
    flat = np.array([k for _, ks in events for k in ks], np.int32)
    codes, victims = np.empty(len(flat), np.int32), np.empty(len(flat), np.int32)
    run(m, f, np.zeros(len(events), np.int32), np.array([k for k, _ in events], np.int8), offs, flat,
        np.zeros(len(flat), np.float32), np.zeros(0, np.int64), np.zeros(0, np.int32), np.zeros((1, 0), np.float32),
        codes, victims, np.zeros(COUNTS, np.int64), np.zeros((0, 4), np.int64))  # fmt: skip
    out = [
        (int(c) in (HIT, KEPT, PREFETCH_HIT), -2 if c == DROPPED else int(v))
        for c, v in zip(codes, victims, strict=True)
    ]
    return [out[a:b] for a, b in zip(offs[:-1], offs[1:], strict=True)], m


def test_s3_fifo_may_give_up_what_it_has_just_promoted() -> None:
    events = [(0, [0, 1, 2, 3]), (0, [0, 1, 2]), (0, [4]), (0, [4]), (0, [0, 1, 2, 5])]
    policy, book = S3Fifo(small=0.5, promote=1), textbook.S3Fifo(4, small=0.5, promote=1)
    found = ours(policy, events, 4, policy.run)[0]
    assert found == [book.run(*event) for event in events] and found[-1][-1] == (False, 4)


@pytest.mark.parametrize(("kind", "given_"), CASES, ids=NAMES)
@given(events=EVENTS, slots=st.integers(1, 6))
@settings(max_examples=150, deadline=None)
def test_hits_and_victims_equal_the_textbook(kind: Any, given_: dict[str, Any], events: Any, slots: int) -> None:
    book = getattr(textbook, kind.__name__)(slots, **given_)
    policy = kind(**given_)
    assert ours(policy, events, slots, policy.run)[0] == [book.run(*event) for event in events]


@pytest.mark.parametrize(("kind", "given_"), CASES, ids=NAMES)
@pytest.mark.parametrize(
    ("slots", "keys", "most"), [(3, 9, 3), (6, 20, 4), (127, 200, 6), (128, 200, 6), (128, 200, 60)]
)
def test_long_runs_equal_the_textbook(kind: Any, given_: dict[str, Any], slots: int, keys: int, most: int) -> None:
    """At 128 slots LRU-K turns from a scan to a heap; the others have one way for all sizes."""
    rng = np.random.default_rng(slots + most)
    weights = 1 / np.arange(keys, 0, -1)
    events = [
        (
            int(rng.choice(4, p=(0.85, 0.05, 0.05, 0.05))),
            rng.choice(keys, most, replace=False, p=weights / weights.sum()).tolist(),
        )
        for _ in range(600 if most < 60 else 60)
    ]
    book = getattr(textbook, kind.__name__)(slots, **given_)
    policy = kind(**given_)
    assert ours(policy, events, slots, policy.run, keys=keys)[0] == [book.run(*event) for event in events]


@pytest.mark.parametrize(("kind", "given_"), CASES, ids=NAMES)
@given(events=EVENTS, slots=st.integers(1, 6))
@settings(max_examples=15, deadline=None)
def test_compiled_and_plain_python_leave_the_same_state(
    kind: Any, given_: dict[str, Any], events: Any, slots: int
) -> None:
    module = importlib.import_module(kind.__module__)
    hooks = {slot: getattr(module, name) for name, slot in HOOKS.items() if hasattr(module, name)}
    policy = kind(**given_)
    fast, slow = ours(policy, events, slots, policy.run), ours(policy, events, slots, plain(**hooks))
    assert fast[0] == slow[0] and (fast[1] == slow[1]).all()


@pytest.mark.parametrize("kind", list(dict.fromkeys(kind for kind, _ in CASES)))
@pytest.mark.parametrize(
    "pool", [PoolConfig(slots=1), PoolConfig(slots=4), PoolConfig("global", slots=7), PoolConfig("global", bytes=150)]
)  # fmt: skip
def test_what_holds_of_every_policy_that_keeps_all_misses(kind: Any, pool: PoolConfig) -> None:
    for seed in range(4):
        trace = routed_trace(seed, group=1 + seed % 2, sizes=(10, 25) if pool.bytes else ())
        bulk = replay(trace, kind(), pool, log=True)
        live = replay_events(Controller(kind(), trace.shape, pool), routing_events(trace))
        assert live.log == bulk.log
        assert bulk.hits + bulk.loads == bulk.accesses and bulk.loads == bulk.demand_loads
        assert bulk.loads >= replay(trace, BeladyBypass(), pool).loads or pool.bytes
        if isinstance(pool.slots, int) and (pool.slots >= 4 and seed % 2 == 0):  # no union is larger
            assert bulk.hits <= replay(trace, Belady(), pool).hits
        assert replay(trace, kind(), pool, chunk=3).hits == bulk.hits
        cold = replay(trace, kind(), pool, reset="sequence")
        alone = [replay(trace.select(np.array([s])), kind(), pool).hits for s in range(trace.sequences)]
        assert cold.hits_piece.tolist() == alone
