"""The clock reaches the limits that formulas give: serial, overlapped, hybrid; and the table of the field survey, E3."""

import math

import pytest

from rgpu.errors import InputError
from rgpu.policies.loop import BYPASS, HIT, PREFETCH_HIT
from rgpu.replay.log import DecisionLog
from rgpu.replay.timing.cost import ModelCost
from rgpu.replay.timing.machine import Machine
from rgpu.replay.timing.simulate import OVERLAPS, simulate
from tests.clocks import SIZE, cost_of_layers, facts_of, log_of, machine

LAYERS = 20


@pytest.mark.parametrize("misses", [0, 1, 3, 4])
def test_serial_limit_when_every_copy_is_exposed(misses: int) -> None:
    hits = 4 - misses
    first = [(k, k) for k in range(4)]
    later = [(k, HIT) for k in range(hits)] + [(k + 4, k + 4) for k in range(misses)]
    log = log_of([first, *[later] * 9])
    there = machine(bytes_per_s=1e9, link_bytes_per_s=1e8)
    found = simulate(log, facts_of(10), there, cost_of_layers(dense_bytes=5e6), 4, overlap="wave")
    compute = 10 * (5e6 + 4 * SIZE) / 1e9
    assert found.seconds == pytest.approx(compute + (4 + 9 * misses) * SIZE / 1e8, rel=1e-9)
    assert found.link_busy_ps == pytest.approx((4 + 9 * misses) * SIZE / 1e8 * 1e12)


@pytest.mark.parametrize(("link", "device"), [(1e9, 1e10), (1e9, 1e9), (1e9, 3e8)])
def test_overlapped_limit_with_an_oracle_two_events_ahead(link: float, device: float) -> None:
    n = 600
    events = [[(e % 64, e % 2 if e < 2 else PREFETCH_HIT)] for e in range(n)]
    ahead = [(e, 0, (e + 2) % 64, e % 2, e % 64) for e in range(n - 2)]
    log = log_of(events, slots=2, proactive=ahead)
    found = simulate(log, facts_of(n), machine(bytes_per_s=device, link_bytes_per_s=link), cost_of_layers(), 1)
    assert found.seconds == pytest.approx(n * max(SIZE / link, SIZE / device), rel=1e-2)


def test_hybrid_limit_and_the_memory_that_both_sides_share() -> None:
    log = log_of([[(k, BYPASS) for k in range(3)]] * 5, slots=2, staging=1)
    for host, rate in ((math.inf, 4e8), (3e8, 3e8)):
        there = machine(link_bytes_per_s=1e8, cpu_bytes_per_s=3e8, host_bytes_per_s=host)
        found = simulate(log, facts_of(5), there, cost_of_layers(), 3, miss="split")
        assert found.seconds == pytest.approx(15 * SIZE / rate, rel=1e-6)


@pytest.mark.parametrize("overlap", OVERLAPS)
@pytest.mark.parametrize("staging", [0, 1, 2])
def test_an_infinite_link_leaves_compute(overlap: str, staging: int) -> None:
    code = BYPASS if staging else 0
    log = log_of([[(e % 8, code)] for e in range(12)], slots=4, staging=staging)
    found = simulate(log, facts_of(12), machine(bytes_per_s=1e9), cost_of_layers(), 1, overlap=overlap)
    assert found.seconds == pytest.approx(12 * SIZE / 1e9) and found.parts[:, 2:].sum() == 0


def test_staged_misses_wait_for_their_slot() -> None:
    log = log_of([[(k, BYPASS) for k in range(4)]], slots=5, staging=1)
    there = machine(bytes_per_s=1e9, link_bytes_per_s=1e9)  # copy 1 ms, compute 1 ms
    assert simulate(log, facts_of(1), there, cost_of_layers(), 4).seconds == pytest.approx(8e-3)
    log = log_of([[(k, BYPASS) for k in range(4)]], slots=5, staging=2)
    assert simulate(log, facts_of(1), there, cost_of_layers(), 4).seconds == pytest.approx(5e-3)
    assert simulate(log, facts_of(1), there, cost_of_layers(), 4, overlap="wave").seconds == pytest.approx(8e-3)


def test_a_slot_used_in_the_event_is_not_overwritten_before_its_wave_is_computed() -> None:
    log = log_of([[(0, 0), (1, 0), (2, 1)]], slots=2)  # slot 0 is taken twice: the second wave waits for the first
    there = machine(bytes_per_s=1e9, link_bytes_per_s=1e9)
    for overlap, ms in (("wave", 2 + 2 + 2), ("expert", 1 + 1 + 1 + 1 + 1), ("stream", 1 + 1 + 1)):
        found = simulate(log, facts_of(1), there, cost_of_layers(), 3, overlap=overlap, quick=False)
        assert found.seconds == pytest.approx(1e-3 * ms), overlap


def mixed(hits: int, tokens: int, *, ahead: bool) -> DecisionLog:
    """Layers below `hits` always find their expert; the others never do, or (`ahead`) get it loaded a token early."""
    events, proactive = [], []
    for e in range(tokens * LAYERS):
        token, layer = divmod(e, LAYERS)
        if layer < hits:
            events.append([(0, HIT if token else 0)])
        elif ahead:
            events.append([(token % 2, PREFETCH_HIT if token else 0)])
            if token < tokens - 1:
                proactive.append((e, layer, (token + 1) % 2, 0, token % 2))
        else:
            events.append([(token % 2, BYPASS)])
    return log_of(events, layers=LAYERS, slots=2, staging=1, proactive=proactive)


# GB/s of device, link (26: the upper end measured for PCIe 4.0 x16), CPU; model: T_c in ms, routed GB a token, and tok/s
# as printed at h = .5, .8, .9, .95
TABLE = [
    ((240, 12.5, 60), "Qwen3-30B", 8.3, 1.09, ["19/23/74", "39/57/96", "59/114/107", "79/120/113"]),
    ((240, 12.5, 60), "gpt-oss-20b", 12.0, 1.27, ["16/20/55", "31/49/69", "45/84/76", "59/84/80"]),
    ((240, 12.5, 60), "DS-V3", 94.0, 11.5, ["2/2/7", "4/5/9", "5/11/10", "7/11/10"]),
    ((950, 26, 75), "Qwen3-30B", 2.1, 1.09, ["43/48/144", "95/119/248", "159/238/326", "238/475/387"]),
    ((950, 26, 75), "Mixtral", 7.6, 6.34, ["8/8/28", "18/20/53", "31/41/76", "50/82/96"]),
    ((4300, 50, 250), "gpt-oss-120b", 0.95, 1.90, ["50/53/256", "117/131/468", "210/263/647", "350/525/800"]),
]


@pytest.mark.parametrize(("rates", "model", "compute_ms", "routed_gb", "printed"), TABLE, ids=lambda v: str(v)[:12])
def test_the_table_of_the_field_survey(
    rates: tuple[float, float, float], model: str, compute_ms: float, routed_gb: float, printed: list[str]
) -> None:
    device, link, cpu = (1e9 * r for r in rates)
    there = machine(bytes_per_s=device, link_bytes_per_s=link, cpu_bytes_per_s=cpu)
    routed = 1e9 * routed_gb
    cost = cost_of_layers(LAYERS, (device * compute_ms / 1e3 - routed) / LAYERS, routed / LAYERS)
    tokens = 60
    for share, cells in zip((0.5, 0.8, 0.9, 0.95), printed, strict=True):
        hits = round(share * LAYERS)
        wanted = [int(c) for c in cells.split("/")]
        got = [
            rate(mixed(hits, tokens, ahead=False), there, cost, "fetch", tokens),
            rate(mixed(hits, tokens, ahead=True), there, cost, "fetch", tokens),
            rate(mixed(hits, tokens, ahead=False), there, cost, "split", tokens),
        ]
        for simulated, number in zip(got, wanted, strict=True):  # the table's inputs are rounded to two digits
            assert simulated == pytest.approx(number, rel=0.03, abs=0.6), (model, share, got, wanted)


def rate(log: DecisionLog, there: Machine, cost: ModelCost, miss: str, tokens: int) -> float:
    """Tokens a second, the first ten tokens (everything is cold) left out."""
    found = simulate(log, facts_of(tokens), there, cost, 1, miss=miss)
    return float((tokens - 10) / found.seconds_P[10:].sum())


@pytest.mark.parametrize("name", ["bytes_per_s", "link_bytes_per_s", "cpu_bytes_per_s", "zero_copy_bytes_per_s"])
def test_a_machine_too_slow_for_the_clock_is_a_mistake(name: str) -> None:
    log = log_of([[(k, BYPASS) for k in range(4)]] * 4, slots=2, staging=1)
    rates = {"cpu_bytes_per_s": 1e9, "zero_copy_bytes_per_s": 1e9} | {name: 1e-3}
    miss = {"cpu_bytes_per_s": "split", "zero_copy_bytes_per_s": "zero_copy"}.get(name, "fetch")
    with pytest.raises(
        InputError, match=r"^timing: got up to .* s on machine hand; expected less than 9e\+06 s; check"
    ):
        simulate(log, facts_of(4), machine(**rates, link_chunk_bytes=1e9), cost_of_layers(), 4, miss=miss)
