"""Planners that count link time: estimated seconds, the budget and the value of a load."""

from typing import Any

import numpy as np
import pytest

from rgpu.contracts import Forecast
from rgpu.errors import InputError
from rgpu.planning.budgeted import Budgeted
from rgpu.planning.expected_value import ExpectedValue
from rgpu.planning.link_time import LinkTime, link_time
from rgpu.replay.timing.cost import cost_of
from rgpu.replay.timing.machine import Machine

LAYERS, EXPERTS = 4, 8
NOTHING = np.zeros((LAYERS, EXPERTS), bool)


def forecast(*rows: float) -> Forecast:
    """Layer 0 speaks of layers 1, 2, ... with experts of equal chances rows[h], and of its own next pass (0)."""
    probs = np.zeros((len(rows) + 1, EXPERTS), np.float32)
    probs[:-1] = np.array(rows, np.float32)[:, None]
    return Forecast(np.array([*range(1, len(rows) + 1), 0]), np.array([0] * len(rows) + [1]), probs)


def by_layer(loads: Any) -> list[int]:
    return np.bincount([k.layer for k in loads], minlength=LAYERS).tolist()


def test_lead_is_the_dense_parts_and_the_experts_between() -> None:
    time = LinkTime(10.0, 3.0, 2.0)
    assert (time.lead_s(1), time.lead_s(3), time.event_s) == (3.0, 13.0, 5.0)


def test_link_time_of_a_machine_and_a_model() -> None:
    value = {"source": "assumption: made up for this test"}
    given = {"dense_layer_bytes": 100.0, "head_bytes": 1e6, "kv_bytes_per_token": 2.0, "expert_bytes": 40.0}
    cost = cost_of({"name": "x", **{k: {"value": v, **value} for k, v in given.items()}}, 4)
    machine = Machine(name="m", bytes_per_s=10.0, link_bytes_per_s=20.0, link_latency_s=1.0, launch_s=0.5, sync_s=0.25)
    time = link_time(machine, cost, 3, context=50.0)
    assert time.copy_s == 3.0
    assert time.dense_s == pytest.approx(20.75)  # (100 + 2 * 50) / 10, launch and read-back; never the head
    assert time.experts_s == pytest.approx(12.0)
    assert cost.dense_bytes[-1] == 1e6 + 100  # left as it was


def test_budget_is_what_the_link_carries_before_the_lead_is_over() -> None:
    given = {"copy_us": 10.0, "dense_us": 25.0, "experts_us": 5.0, "width": 8, "horizon": 1}
    assert by_layer(Budgeted(**given).plan(forecast(0.5), NOTHING)) == [0, 3, 0, 0]  # the third begins at 20 of 25
    assert by_layer(Budgeted(**given, begun=False).plan(forecast(0.5), NOTHING)) == [0, 2, 0, 0]
    # two layers ahead: 2 * 25 + 5 = 55 us, of which the first layer's three take 30
    assert by_layer(Budgeted(**(given | {"horizon": 2})).plan(forecast(0.5, 0.5), NOTHING)) == [0, 3, 3, 0]


def test_budget_goes_down_by_what_is_still_queued_and_up_with_every_event() -> None:
    planner = Budgeted(copy_us=10.0, dense_us=25.0, experts_us=5.0, horizon=2)
    assert len(planner.plan(forecast(0.5, 0.5), NOTHING)) == 6  # 60 us queued, 30 worked off in the next event
    assert len(planner.plan(forecast(0.5), NOTHING)) == 0  # the rest takes longer than the lead of 25
    assert len(planner.plan(forecast(0.5), NOTHING)) == 3


def test_residents_cost_no_link_time() -> None:
    resident = NOTHING.copy()
    resident[1, :2] = True
    loads = Budgeted(copy_us=10.0, dense_us=25.0, experts_us=5.0, horizon=1).plan(forecast(0.5), resident)
    assert [k.expert for k in loads] == [2, 3, 4]


def test_value_weighs_hidden_time_against_waste() -> None:
    given = {"copy_us": 10.0, "dense_us": 100.0, "experts_us": 0.0, "horizon": 1}
    assert by_layer(ExpectedValue(**given, waste=1.0).plan(forecast(0.51), NOTHING)) == [0, 8, 0, 0]
    assert ExpectedValue(**given, waste=1.0).plan(forecast(0.5), NOTHING) == []  # breaks even: not worth it
    assert by_layer(ExpectedValue(**given, waste=0.0).plan(forecast(0.01), NOTHING)) == [0, 8, 0, 0]
    assert ExpectedValue(**given, waste=0.0, least=0.5).plan(forecast(0.5), NOTHING) == []


def test_value_falls_as_the_queue_fills_up() -> None:
    planner = ExpectedValue(copy_us=10.0, dense_us=25.0, experts_us=5.0, horizon=1, waste=0.5)
    # the third load hides only 5 of its 10 us: 0.6 * 5 - 0.4 * 0.5 * 10 = 1 > 0; a fourth nothing
    assert len(planner.plan(forecast(0.6), NOTHING)) == 3
    planner = ExpectedValue(copy_us=10.0, dense_us=25.0, experts_us=5.0, horizon=1, waste=0.5)
    assert len(planner.plan(forecast(0.45), NOTHING)) == 2  # 0.45 * 5 < 0.55 * 5


def test_joint_value_pays_for_what_has_to_leave() -> None:
    probs = np.zeros((2, EXPERTS), np.float32)
    probs[0] = [0.9, 0.8, 0.7, 0.6, 0.0, 0.5, 0.75, 0.0]
    rows = Forecast(np.array([1, 0]), np.array([0, 1]), probs)
    resident = NOTHING.copy()
    resident[1, 4:7] = True  # they leave in the order 4 (0.0), 5 (0.5), 6 (0.75)
    given = {"copy_us": 1.0, "dense_us": 100.0, "horizon": 1, "waste": 0.0}
    assert [k.expert for k in ExpectedValue(**given, joint=True).plan(rows, resident)] == [0, 1]
    assert [k.expert for k in ExpectedValue(**given).plan(rows, resident)] == [0, 1, 2, 3]


def test_joint_value_charges_nobody_while_slots_are_free() -> None:
    probs = np.zeros((2, EXPERTS), np.float32)
    probs[0] = [0.9, 0.8, 0.7, 0.6, 0.5, 0.75, 0.78, 0.0]
    rows = Forecast(np.array([1, 0]), np.array([0, 1]), probs)
    resident = NOTHING.copy()
    resident[1, 4:7] = True
    given = {"copy_us": 1.0, "dense_us": 100.0, "horizon": 1, "waste": 0.0, "joint": True}

    def loads(*slots: int) -> list[int]:
        planner = ExpectedValue(**given)
        if slots:
            pool_of = np.arange(LAYERS) if len(slots) == LAYERS else np.zeros(LAYERS, np.int64)
            planner.told(list(slots), pool_of)
        return [k.expert for k in planner.plan(rows, resident)]

    assert loads() == loads(3, 3, 3, 3) == [0, 1]  # 0.5 and 0.75 leave; 0.78 is worth more than 0.7
    assert loads(5, 5, 5, 5) == [0, 1, 2]  # two are free, then 0.5 leaves for 0.7, and nothing for 0.6 < 0.75
    assert loads(7) == [0, 1, 2, 3]  # one pool of seven slots: four are free
    assert loads(9, 9, 9, 9) == [0, 1, 2, 3]


@pytest.mark.parametrize("bad", [{"copy_us": 0.0}, {"dense_us": -1.0}, {"experts_us": float("nan")}])
@pytest.mark.parametrize("planner", [Budgeted, ExpectedValue])
def test_bad_parameters(planner: Any, bad: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(bad))):
        planner(**bad)
