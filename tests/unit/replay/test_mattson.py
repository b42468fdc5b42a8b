"""The one-pass LRU curve equals a replay at each capacity."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rgpu.policies.lru import Lru
from rgpu.replay.engine import replay
from rgpu.replay.mattson import lru_curve
from rgpu.replay.pool import PoolConfig
from tests.support import routed_trace


@pytest.mark.parametrize("scope", ["layer", "global"])
@given(seed=st.integers(0, 1000), group=st.integers(1, 3), touch=st.sampled_from(["rank", "reverse_rank"]))
@settings(max_examples=10, deadline=None)
def test_curve_is_the_replay_at_every_exact_capacity(scope: str, seed: int, group: int, touch: str) -> None:
    trace = routed_trace(seed, group=group)
    hits, exact = lru_curve(trace, scope=scope, touch_order=touch)
    assert 2 <= exact <= 6
    for slots in range(exact, hits.shape[1]):
        pool = PoolConfig(scope=scope, slots=slots)
        assert hits[:, slots].sum() == replay(trace, Lru(), pool, touch_order=touch).hits
