"""The engine's profile: read back as written, interpolated, and clocked to the times it was made of."""

from dataclasses import replace
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from rgpu.errors import InputError
from rgpu.policies.loop import BYPASS, HIT
from rgpu.replay.timing.engine_profile import EngineProfile, PassCosts, engine_profile_of
from rgpu.replay.timing.simulate import simulate
from tests.clocks import SIZE, facts_of, log_of

ONE = PassCosts(
    tokens=1, layer_us=300.0, context_us=0.0, pass_us=900.0, event_us=100.0, hidden_us=7.0, expert_us=40.0, in_place_us=50.0,
    submit_us=10.0, start_us=60.0, decide_us={"lru": 15.0, "rotary": 30.0},
)  # fmt: skip
FOUR = replace(ONE, tokens=4, layer_us=420.0, expert_us=70.0, decide_us={"lru": 18.0, "lfu": 1.0})


def profile(*passes: PassCosts) -> EngineProfile:
    sources = {n: "test" for n in ("expert_bytes", "copy_gb_per_s", "copy_latency_us")}
    for p in passes:
        sources |= {f"{p.tokens}.{n}": "test" for n in PassCosts.__slots__ if n.endswith("_us")}
        sources |= {f"{p.tokens}.decide_us.{n}": f"test {n}" for n in p.decide_us}
        del sources[f"{p.tokens}.decide_us"]
    return EngineProfile(
        name="here", model="hand", expert_bytes=float(SIZE), copy_gb_per_s=100.0, copy_latency_us=5.0, passes=passes,
        sources=sources,
    )  # fmt: skip


def data(text: str) -> dict[str, Any]:
    return dict(yaml.safe_load(text))


def test_it_reads_back_as_written() -> None:
    made = profile(ONE, FOUR).rounded()
    assert engine_profile_of(data(made.to_yaml())) == made


def test_numbers_are_interpolated_and_never_extrapolated() -> None:
    made = profile(ONE, FOUR)
    assert made.at(2).layer_us == pytest.approx(340.0)
    assert made.at(4).expert_us == 70.0
    assert made.at(3).decide_us == pytest.approx({"lru": 17.0})
    with pytest.raises(InputError, match=r"got passes of 5 tokens; expected 1 to 4"):
        made.at(5)
    with pytest.raises(InputError, match=r"got policy 'lfu'; expected one that was calibrated: lru"):
        made.machine(2, "lfu")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("source: \"test\"", "source: \"\"", "where it comes from"),
        ("    start_us", "    started_us", "started_us"),
        ("tokens: 1", "tokens: 9", "ascending tokens"),
        ("passes:", "runs:", "expected name, model and passes"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(old: str, new: str, message: str) -> None:
    text = profile(ONE, FOUR).to_yaml().replace(old, new, 1)
    with pytest.raises(InputError, match=message):
        engine_profile_of(data(text))


def us(
    events: list[list[tuple[int, int]]], miss: str, staging: int = 0, policy: str = "lru", hidden: bool = False
) -> float:
    """Simulated microseconds of events of one layer, dense part, fixed part and policy left out."""
    made = profile(ONE)
    log = log_of(events, slots=8, staging=staging)
    n = len(events)
    found = simulate(log, facts_of(n), made.machine(1, policy, hidden), made.cost(1, 1), 4, miss=miss)
    fixed = ONE.layer_us + ONE.pass_us + ONE.event_us + ONE.decide_us[policy]
    assert (found.parts[:, 1:].sum(1) == found.parts[:, 0]).all()
    return found.seconds * 1e6 - n * fixed


def test_an_event_takes_what_its_parts_take() -> None:
    first = [(k, k) for k in range(4)]
    loaded = us([first], "fetch")
    assert us([first, [(k, HIT) for k in range(4)]], "fetch") - loaded == pytest.approx(160.0, abs=1e-3)
    kept = [(0, HIT), (1, HIT), (9, 5), (8, 4)]
    assert us([first, kept], "fetch") - loaded == pytest.approx(4 * 40 + 2 * 10 + 60, abs=1e-3)
    assert us([first, [(0, HIT)]], "fetch", policy="rotary", hidden=True) == pytest.approx(
        us([first, [(0, HIT)]], "fetch") + 2 * 7, abs=1e-3
    )


def test_staged_misses_set_copying_going_each_time() -> None:
    staged = [[(k, BYPASS) for k in range(3)]]
    assert us(staged, "fetch", staging=1) == pytest.approx(3 * (40 + 10 + 60), abs=1e-3)


def test_one_processor_has_no_two_sides() -> None:
    with pytest.raises(InputError, match="no two sides"):
        us([[(k, k) for k in range(3)]], "split")


def test_misses_computed_in_place_come_one_after_another() -> None:
    assert us([[(k, BYPASS) for k in range(3)]], "cpu", staging=1) == pytest.approx(150.0, abs=1e-3)
    kept = us([[(k, k) for k in range(3)]], "cpu")  # uploaded behind: submitted after the event
    assert kept == pytest.approx(150.0 + 3 * 10 + 60, abs=1e-3)
