"""Policies that load before they are asked, each against itself in lists: who is resident after every event."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from rgpu.errors import InputError
from rgpu.policies.calibration import mean_inputs
from rgpu.policies.loop import KEY_OF
from rgpu.policies.ring import Ring
from rgpu.policies.rotary import Rotary
from rgpu.policies.router_lag import RouterLag
from rgpu.policies.static_hot import StaticHot
from rgpu.replay.events import pass_groups
from rgpu.replay.features import trace_features
from rgpu.replay.pool import PoolConfig
from rgpu.traces.trace import Trace
from tests.support import routed_trace, unions
from tests.unit.policies.rotating import Watched

EXPERTS, LAYERS = 8, 3
POOLS = (PoolConfig(slots=3), PoolConfig(slots=5), PoolConfig("global", 10), PoolConfig("global", 30))


def run(
    policy: Any, pool: PoolConfig, seed: int, group: int = 1, top_k: int = 2
) -> tuple[Trace, Watched, list[tuple[int, list[int]]]]:
    """(trace, what it was run on, (layer, members) of each event)."""
    trace = routed_trace(seed, tokens=40, layers=LAYERS, sequences=1, group=group, top_k=top_k)
    members = [unions(trace, layer) for layer in range(LAYERS)]
    events = [(layer, members[layer][p]) for p in range(len(members[0])) for layer in range(LAYERS)]
    return trace, Watched(policy, trace, pool), events


class Holder:
    """One pool: its residents with their slots, their scores, and who of them the event still needs."""

    def __init__(self, slots: int, filled: Sequence[int] = ()) -> None:
        self.open = list(range(slots))[::-1]
        self.slot: dict[int, int] = {}
        self.score: dict[int, float] = {}
        self.needed: set[int] = set()
        for key in filled:
            self.slot[key] = self.open.pop()

    def free(self) -> list[int]:
        return [k for k in self.slot if k not in self.needed]

    def load(self, key: int) -> None:
        if not self.open:
            gone = min(self.free(), key=lambda k: (self.score.get(k, 0.0), self.slot[k]))
            self.open.append(self.slot.pop(gone))
        self.slot[key] = self.open.pop()
        self.needed.add(key)

    def worse(self, key: int) -> int:
        return sum(self.score.get(k, 0.0) < self.score[key] for k in self.free())

    def decide(self, members: list[int], scores: dict[int, float], step: int, floor: float) -> None:
        self.score |= scores
        self.needed = set(members)
        for key in [k for k in members if k not in self.slot]:
            if step > 0 and (self.open or self.worse(key) > 0):
                self.load(key)
                step -= 1
        wished: list[int] = []
        for key in sorted(scores, key=lambda k: (-scores[k], k)):
            if key in self.slot or scores[key] <= floor:
                continue
            if len(wished) >= len(self.open) and self.worse(key) < len(wished) - len(self.open) + 1:
                break
            wished.append(key)
        self.needed = set()
        for key in wished[:step]:
            self.load(key)


def holders(watched: Watched, filled: bool) -> list[Holder]:
    layout = watched.controller.layout
    return [Holder(n, range(min(n, layout.keys)) if filled else ()) for n in layout.main]


def held(watched: Watched, pools: list[Holder], event: int) -> bool:
    keys = [layer * EXPERTS + e for layer, e in zip(*np.nonzero(watched.resident[event]), strict=True)]
    if len(pools) > 1:
        return keys == [n * EXPERTS + k for n, pool in enumerate(pools) for k in sorted(pool.slot)]
    return keys == sorted(pools[0].slot)


@pytest.mark.parametrize("pool", POOLS, ids=str)
@pytest.mark.parametrize(("group", "top_k"), [(1, 1), (1, 2), (2, 2)])
@pytest.mark.parametrize("step", [None, 1, 2])
def test_the_lagged_router_holds_what_it_scored_highest(
    pool: PoolConfig, group: int, top_k: int, step: int | None
) -> None:  # fmt: skip
    trace, watched, events = run(RouterLag(step=step), pool, 1, group, top_k)
    order, starts, _ = pass_groups(trace)
    scores = trace_features("router", trace, order, starts).reshape(-1, EXPERTS)
    pools = holders(watched, filled=False)
    for number, (layer, members) in enumerate(events):
        base = layer * EXPERTS if len(pools) == 1 else 0
        mine = {base + e: float(x) for e, x in enumerate(scores[number])}
        pools[layer % len(pools)].decide([base + e for e in members], mine, 99 if step is None else step, 0.0)
        assert held(watched, pools, number)


@pytest.mark.parametrize("pool", POOLS, ids=str)
@pytest.mark.parametrize(("step", "top_k", "rotation"), [(1, 2, "identity"), (2, 1, "identity"), (4, 2, "random")])
def test_rotary_holds_what_projects_highest_and_moves_no_more_than_its_step(
    pool: PoolConfig, step: int, top_k: int, rotation: str
) -> None:
    trace, watched, events = run(Rotary(step=step, rotation=rotation), pool, 2, top_k=top_k)
    assert trace.hidden is not None
    pools = holders(watched, filled=True)
    for number, (layer, members) in enumerate(events):
        base = layer * EXPERTS if len(pools) == 1 else 0
        x = trace.hidden[number // LAYERS, layer].astype(float)
        turn = np.eye(len(x))
        if rotation == "random":
            turn = np.linalg.qr(np.random.default_rng((0, layer)).standard_normal((len(x), len(x))))[0]
        mine = {base + e: float(v) for e, v in enumerate(mean_inputs(trace, layer, "hidden") @ turn @ x)}
        pools[layer % len(pools)].decide([base + e for e in members], mine, step, -np.inf)
        assert held(watched, pools, number)
    for pool_, f in zip(pools, watched.f, strict=True):
        keys = sorted(pool_.score)
        np.testing.assert_allclose(f[0, keys], [pool_.score[k] for k in keys], atol=1e-12)
    assert (watched.m[:, KEY_OF] < watched.controller.layout.keys).all()
    with pytest.raises(InputError, match="policy.step"):
        Rotary(step=0)


@pytest.mark.parametrize("pool", POOLS, ids=str)
@pytest.mark.parametrize("step", [1, 3, 9])
def test_a_ring_turns_by_its_step_and_drops_its_trailing_end(pool: PoolConfig, step: int) -> None:
    _, watched, events = run(Ring(step=step), pool, 3)
    assert (watched.m[:, KEY_OF] < watched.controller.layout.keys).all()
    pools = [sorted(h.slot) for h in holders(watched, filled=True)]
    length = watched.controller.layout.keys
    cap = len(pools[0])
    place = [cap % length if cap < length else 0] * len(pools)
    for number, (layer, _) in enumerate(events):
        p = layer % len(pools)
        n = min(step, watched.controller.layout.main[p])
        wanted = [(place[p] + j) % length for j in range(n)]
        place[p] = (place[p] + n) % length
        for key in wanted:
            if key not in pools[p]:
                pools[p].remove(next(k for k in pools[p] if k not in wanted))
                pools[p].append(key)
        keys = [layer * EXPERTS + e for layer, e in zip(*np.nonzero(watched.resident[number]), strict=True)]
        assert keys == sorted(q * EXPERTS * (len(pools) > 1) + k for q, held in enumerate(pools) for k in held)


@pytest.mark.parametrize("pool", POOLS, ids=str)
@pytest.mark.parametrize("passes", [0, 1, 5])
def test_static_hot_holds_the_most_used_of_its_profile(pool: PoolConfig, passes: int) -> None:
    policy = StaticHot(scope="sequence", passes=passes) if passes else StaticHot()
    _, watched, events = run(policy, pool, 4)
    main = watched.controller.layout.main
    layers = LAYERS // len(main)
    uses = np.zeros((len(main), layers * EXPERTS))
    profile = events[: passes * LAYERS] if passes else events
    for layer, members in profile:
        for e in members:
            uses[layer % len(main), e + (layer * EXPERTS if layers > 1 else 0)] += 1
    for number in range(len(events)):
        keys = [layer * EXPERTS + e for layer, e in zip(*np.nonzero(watched.resident[number]), strict=True)]
        wanted: list[int] = []
        for p, n in enumerate(main):
            top = np.argsort(-uses[p], kind="stable")[:n].tolist()
            last = passes * LAYERS - (LAYERS - p if layers == 1 else 1)
            if not passes or number >= last:
                wanted += [p * EXPERTS + k for k in top if not passes or uses[p, k] > 0]
        assert keys == sorted(wanted)
