"""Speculative decoding as a trace: which tokens share a pass, and how many outputs a pass gives."""

import numpy as np
import pytest

from rgpu.errors import InputError
from rgpu.policies.lru import Lru
from rgpu.replay.engine import replay
from rgpu.replay.pool import PoolConfig
from rgpu.replay.timing.facts import pass_facts
from rgpu.replay.timing.simulate import simulate
from rgpu.replay.timing.speculative import speculative
from rgpu.traces.trace import PROMPT
from tests.clocks import cost_of_layers, machine
from tests.support import routed_trace


def test_everything_accepted() -> None:
    trace = routed_trace(1, tokens=22, sequences=2)  # 11 tokens each, the first 4 a prompt
    assert trace.phase is not None
    for s in (0, 11):
        trace.phase[s : s + 4] = PROMPT
        trace.passes[s : s + 4] = trace.passes[s]
    found, accepted = speculative(trace, 3)
    assert accepted.tolist() == [0, 3, 3, 1] * 2
    assert np.array_equal(found.expert_ids, trace.expert_ids)
    assert found.passes.tolist() == [0] * 4 + [1] * 3 + [2] * 3 + [3] + [4] * 4 + [5] * 3 + [6] * 3 + [7]
    assert speculative(trace, 1)[1].tolist() == [0, *[1] * 7] * 2


def test_nothing_accepted_evaluates_rejected_tokens_again() -> None:
    trace = routed_trace(1, tokens=5, sequences=1)
    found, accepted = speculative(trace, 2, acceptance=0.0)
    assert accepted.tolist() == [1] * 5
    assert found.positions.tolist() == [0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert int(found.seq_offsets[-1]) == 9


def test_outputs_are_every_token_once_and_a_rate_is_met() -> None:
    trace = routed_trace(2, tokens=3000, sequences=3)
    _, accepted = speculative(trace, 4, acceptance=0.7, seed=3)
    assert accepted.sum() == 3000
    expected = (1 - 0.7**4) / (1 - 0.7)
    assert accepted.mean() == pytest.approx(expected, rel=0.05)
    assert np.array_equal(accepted, speculative(trace, 4, acceptance=0.7, seed=3)[1])


def test_time_is_per_accepted_token() -> None:
    trace = routed_trace(3, tokens=40, sequences=1, sizes=(1000, 1000))
    wide, accepted = speculative(trace, 4)
    there, cost = machine(bytes_per_s=1e6), cost_of_layers(2, dense_bytes=5000.0, size=1000)
    took = {}
    for name, t, a in (("plain", trace, None), ("wide", wide, accepted)):
        log = replay(t, Lru(), PoolConfig(slots=8), decisions=True).decisions
        assert log is not None
        took[name] = simulate(log, pass_facts(t, accepted=a), there, cost, 2)
        assert took[name].facts.outputs.sum() == 40
        assert took[name].tpot_s == pytest.approx(took[name].seconds / 40)
    assert took["wide"].tpot_s < took["plain"].tpot_s / 2  # dense weights are read once for four tokens


@pytest.mark.parametrize(("width", "acceptance"), [(0, 1.0), (2, 1.5), (2, -0.1)])
def test_mistakes(width: int, acceptance: float) -> None:
    with pytest.raises(InputError, match="^speculative: got width="):
        speculative(routed_trace(0), width, acceptance)
    batch = routed_trace(0)
    batch.passes[:] = 0
    with pytest.raises(InputError, match="^speculative: got passes that mix sequences"):
        speculative(batch, 2)
