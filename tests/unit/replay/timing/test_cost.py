"""Model costs and facts of passes: bytes by hand for a known model, context of batches and windows."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from rgpu.errors import InputError
from rgpu.policies.on_demand import OnDemand
from rgpu.replay.engine import replay
from rgpu.replay.pool import PoolConfig
from rgpu.replay.timing.bound import time_bound
from rgpu.replay.timing.cost import cost_of, experts_only
from rgpu.replay.timing.facts import pass_facts
from rgpu.replay.timing.simulate import simulate
from rgpu.traces.trace import DECODE, PROMPT
from tests.clocks import cost_of_layers, machine
from tests.support import routed_trace

CONF = Path(__file__).resolve().parents[4] / "conf" / "cost"


def entries(name: str) -> dict[str, Any]:
    data = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))
    assert isinstance(data, dict)
    return {str(key): value for key, value in data.items()}


def test_gpt_oss_by_hand() -> None:
    cost = cost_of(entries("gpt_oss_20b"), 24, (13_236_480,) * 24)
    attention = 2880 * 4096 * 2 + 2880 * 512 * 2  # q and o, k and v
    assert cost.dense_bytes[0] == 2 * attention + 2 * 2880 * 32
    assert cost.dense_bytes[-1] - cost.dense_bytes[0] == 2 * 201_088 * 2880
    assert cost.windowed.tolist() == [True, False] * 12 and cost.window == 128
    assert cost.dense_flop[0] == 2 * attention and cost.expert_flop[0] == 6 * 2880 * 2880
    assert cost.head_bytes == 2 * 201_088 * 2880 and cost.head_flop == 2 * 201_088 * 2880
    assert cost.packed(4).shape == (24, 9) and (cost.packed(4)[:, 0] == cost.dense_bytes[0]).all()


@pytest.mark.parametrize("name", sorted(p.stem for p in CONF.glob("*.yaml")))
def test_shipped_costs_state_their_sources(name: str) -> None:
    data = entries(name)
    cost = cost_of(data, 8)
    assert data["models"] and cost.name == name and cost.source
    assert (cost.expert_bytes == data["expert_bytes"]["value"]).all()
    assert (cost_of(data, 8, (7,) * 8).expert_bytes == 7).all()  # a trace knows better


def test_mistakes() -> None:
    data = entries("reference")
    del data["kv_bytes_per_token"]
    with pytest.raises(InputError, match="^cost reference: got no kv_bytes_per_token; expected"):
        cost_of(data, 8)
    with pytest.raises(InputError, match="^cost: got a trace without expert sizes"):
        experts_only(2, ())


def test_context_of_a_batch_is_read_once_a_sequence() -> None:
    trace = routed_trace(0, tokens=4, sequences=2, sizes=(1, 1))
    trace.positions[:] = [9, 10, 4, 5]
    trace.passes[:] = [0, 1, 0, 1]  # two sequences decode together
    facts = pass_facts(trace, window=8)
    assert facts.work.tolist() == [[2, 15, 13, 15, 13, 2], [2, 17, 14, 17, 14, 2]]
    assert facts.steps.tolist() == [1, 1] and facts.outputs.tolist() == [2, 2] and not facts.prefill


def test_context_of_a_prompt_is_read_once() -> None:
    trace = routed_trace(0, tokens=5, sequences=1, sizes=(1, 1))
    trace.passes[:] = [0, 0, 0, 0, 1]
    assert trace.phase is not None
    trace.phase[:] = [PROMPT] * 4 + [DECODE]
    facts = pass_facts(trace, window=2)
    assert facts.work[0].tolist() == [4, 4, 4, 1 + 2 + 3 + 4, 1 + 2 + 2 + 2, 1]
    assert facts.work[1].tolist() == [1, 5, 2, 5, 2, 1]
    assert facts.decode.tolist() == [False, True] and facts.prefill and facts.steps.tolist() == [0, 1]
    assert np.array_equal(facts.sequence, [0, 0])


def test_the_head_is_read_once_and_computed_for_the_rows_that_yield_a_token() -> None:
    trace = routed_trace(0, tokens=9, sequences=1, sizes=(1, 1))
    trace.passes[:] = [0, 0, 0, 0, 1, 1, 1, 2, 3]  # a prompt in two parts, two generated tokens
    assert trace.phase is not None
    trace.phase[:7] = PROMPT
    cost = replace(cost_of_layers(2, size=1), head_bytes=100.0, head_flop=1000.0)
    cost.dense_bytes[-1] = 100.0
    log = replay(trace, OnDemand(), PoolConfig(slots=8), decisions=True).decisions
    assert log is not None
    facts = pass_facts(trace)
    assert facts.work[:, 5].tolist() == [0, 1, 1, 1]
    for there, ms in ((machine(bytes_per_s=1e5), [0, 1, 1, 1]), (machine(flop_per_s=1e6), [0, 1, 1, 1])):
        found = simulate(log, facts, there, replace(cost, expert_bytes=np.full(2, 1e-9)), 2)
        assert found.seconds_P == pytest.approx([1e-3 * m for m in ms], abs=1e-9)
        bound = time_bound(log.events, facts, there, cost, 2, 0)
        assert bound.seconds == pytest.approx(sum(ms) / 1e3, rel=0.2)
