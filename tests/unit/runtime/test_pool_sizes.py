"""Pools that change their size in the middle of a run: the same bits, the policy's own victims, memory that really goes."""

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rgpu.errors import InputError, RgpuError
from rgpu.memory import slot_pool
from rgpu.memory.slot_pool import CopyState
from rgpu.policies.loop import GROW, SHRINK
from rgpu.policies.lru import Lru
from rgpu.replay.controller import Controller, replay_events
from rgpu.replay.pool import PoolConfig
from rgpu.replay.resizing import Resizes
from rgpu.replay.stream import routing_events
from rgpu.runtime.pool_sizes import PoolSizes
from rgpu.runtime.session import OffloadSession
from rgpu.traces.storage import load_trace, save_trace
from rgpu.types import ExpertKey
from tests.live_models import EXPERTS, LAYERS, Case, build, generate, prompts
from tests.unit.runtime.test_device_executor import Late, opened
from tests.unit.runtime.test_session import Wild, policy_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("qwen3_moe", tmp_path_factory.mktemp("m"), hidden_size=64, moe_intermediate_size=32)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stores")


def between_passes(model: Any, change: Any) -> Any:
    """`change(n)` before the n-th pass of the model; -> what undoes it."""
    count = iter(range(1000))
    return model.register_forward_pre_hook(lambda *_: change(next(count)), prepend=True)


def lru(slots: int) -> Any:
    return lambda shape: Controller(Lru(), shape, PoolConfig("layer", slots))


def sound(executor: Any) -> None:
    """Who the controller says is in a slot is there, whole; nobody else is anywhere."""
    controller = executor.controller
    for p, pool in enumerate(executor.pools):
        assert pool.rows == controller.slots[p] + controller.staging
        assert pool.nbytes == pool.rows * pool.layout.stride
        first = int((controller.layout.pool_of == p).argmax())
        for slot, key in enumerate(controller.occupants(p).tolist()):
            held = pool.key(slot)
            if key < 0:
                assert pool.state(slot) is CopyState.EMPTY
                continue
            layer, expert = divmod(key, controller.shape.experts)
            assert held is not None
            assert (held.layer, held.expert) == (first + layer, expert)
            if executor.store.in_place:
                row, width = executor.store.row(held), pool.layout.nbytes
                assert torch.equal(pool.buffer[slot, :width], executor.store.rows_SB[row, :width])


ROWS = st.lists(st.integers(1, EXPERTS), min_size=LAYERS, max_size=LAYERS)
SIZES = st.lists(st.one_of(st.none(), ROWS), min_size=6, max_size=6)


@given(sizes=SIZES, anew=st.booleans(), handler=st.sampled_from(["fetch", "cpu", "split"]), wild=st.booleans())
@settings(max_examples=15, deadline=None)
def test_any_schedule_gives_the_same_bits_and_a_replay_the_same_decisions(
    cases: dict[str, Case], cache: Path, sizes: list[Any], anew: bool, handler: str, wild: bool
) -> None:
    case, pool = cases["qwen3_moe"], PoolConfig("layer", 5, miss=handler)
    inputs, sequences, logits = case.stock[1]
    ahead: Any = (lambda: {"predictor": Wild(), "planner": Wild()}) if wild else dict

    def make(shape: Any) -> Controller:
        return Controller(Lru(), shape, pool, **ahead())

    with OffloadSession.open(case.folder, make, cache=cache, handler=handler) as session:
        session.sizes.anew = anew

        def change(n: int) -> None:
            if (
                n < len(sizes) and sizes[n] is not None and session.sizes.resize(sizes[n])
            ):  # else copies may be on their way
                sound(session._executor)

        between_passes(session.model, change)
        got, values = generate(session.model, inputs)
        trace, controller, history = session.trace(), session.controller, session.sizes.history
        assert session.memory()["pool_bytes"] == sum(controller.slots) * session.store.layout.stride
    assert torch.equal(got, sequences)
    assert all(torch.equal(a, b) for a, b in zip(values, logits, strict=True))
    fresh = replay_events(make(session.shape), routing_events(trace), Resizes.of(trace))
    assert fresh.log == controller.log
    assert fresh.hits == controller.hits
    assert trace.header.provenance.get("resizes", []) == history


@pytest.mark.parametrize("name", ["arc", "static_hot"])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_ghosts_and_staging(cases: dict[str, Case], cache: Path, calibration: Any, name: str, scope: str) -> None:
    policy, case = policy_of(name), cases["qwen3_moe"]
    pool = PoolConfig(scope, 5 if scope == "layer" else 13)
    hidden = policy.traits.feature == "hidden"
    given_ = {"calibration": calibration} if policy.traits.calibration else {}

    def make(shape: Any) -> Controller:
        return Controller(policy, shape, pool, **given_)

    inputs, sequences, logits = case.stock[4]
    with OffloadSession.open(case.folder, make, cache=cache, hidden=hidden) as session:
        totals = {1: 9, 2: 7, 4: 12, 5: 30}

        def change(n: int) -> None:
            if n in totals:
                assert session.sizes.resize(session.sizes.within(totals[n]))
                sound(session._executor)

        between_passes(session.model, change)
        got, values = generate(session.model, inputs)
        trace, controller = session.trace(), session.controller
    assert torch.equal(got, sequences)
    assert all(torch.equal(a, b) for a, b in zip(values, logits, strict=True))
    assert {SHRINK, GROW} <= {entry[2] for entry in controller.log}
    assert replay_events(make(session.shape), routing_events(trace), Resizes.of(trace)).log == controller.log


@pytest.mark.parametrize("anew", [False, True])
@pytest.mark.parametrize("handler", ["fetch", "zero_copy", "cpu", "split"])
@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("kind", ["ram", "tier"])
def test_on_a_device_whose_copies_run_late(
    folder: Path,
    stores: Path,
    anew: bool,
    handler: str,
    scope: str,
    kind: str,
) -> None:
    if kind == "tier" and handler != "fetch":
        return
    pool = PoolConfig(scope, 6 if scope == "layer" else 15)
    totals = iter([10, 25, 4, 18, 9, 12])
    with opened(folder, stores, Lru(), pool, predictor=Wild, planner=Wild) as session:
        tokens, logits = generate(session.model, prompts(4))
        late = Late(
            session, lambda shape: Controller(Lru(), shape, pool, predictor=Wild(), planner=Wild()), handler, 3, kind
        )
        moved: list[int] = []
        sizes = PoolSizes(late.executor, torch.device("cpu"), lambda: 0, lambda: moved.append(1), anew)

        def change(_: int) -> None:
            before = late.pools[0].buffer.data_ptr()
            assert sizes.resize(sizes.within(next(totals)))
            assert anew or late.pools[0].buffer.data_ptr() == before or moved
            sound(late.executor)
            table = late.executor.table
            assert torch.equal(table.slots_LE, torch.from_numpy(table.host_LE))
            assert ((table.host_LE >= 0) == late.controller.resident_LE()).all()

        hook = between_passes(session.model, change)
        again, values = generate(session.model, prompts(4))
        hook.remove()
        assert torch.equal(tokens, again)
        assert all(torch.equal(a, b) for a, b in zip(logits, values, strict=True))
        assert {SHRINK, GROW} <= {entry[2] for entry in late.controller.log}
        assert bool(moved) or not anew


def test_a_cap_between_steps_and_one_that_is_too_small(cases: dict[str, Case], cache: Path, tmp_path: Path) -> None:
    case = cases["olmoe"]
    with OffloadSession.open(case.folder, lru(6), cache=cache) as session:
        stride = session.store.layout.stride
        with pytest.raises(
            InputError, match=f"expected at least {1000 + 3 * stride}: 1000 beside .* goes on with the cap it had"
        ):
            session.set_memory_cap(1000 + 3 * stride - 1, beside=1000)
        assert session.sizes.rows() == [6, 6, 6] and session.log == []
        session.set_memory_cap(1000 + 8 * stride + 5, beside=1000)
        assert session.sizes.rows() == [3, 3, 2]
        assert session.sizes.history == [[0, 0, 3], [0, 1, 3], [0, 2, 2]]
        session.set_memory_cap(1000 + 7 * stride, beside=1000)
        assert session.sizes.rows() == [3, 2, 2]
        session.set_memory_cap(
            1 << 40, beside=1000
        )  # everything fits: other memory, above what was asked for at the start
        assert session.sizes.rows() == [EXPERTS] * 3
        inputs, sequences, logits = case.stock[1]
        errors = []

        def change(_: int) -> None:
            session.set_memory_cap(session.beside_pools() + 3 * stride + 4096)

        def within(*_: Any) -> None:
            with pytest.raises(InputError, match="while a pass runs") as caught:
                session.sizes.resize([1, 1, 1])
            errors.append(caught)

        hook, inner = between_passes(session.model, change), session.model.lm_head.register_forward_pre_hook(within)
        got, values = generate(session.model, inputs)
        hook.remove()
        inner.remove()
        assert session.sizes.rows() == [1, 1, 1]
        assert torch.equal(got, sequences)
        assert all(torch.equal(a, b) for a, b in zip(values, logits, strict=True))
        assert errors
        with pytest.raises(InputError, match="got 2 sizes; expected one for each of 3"):
            session.sizes.resize([1, 1])
        with pytest.raises(InputError, match="expected 1 to 10"):
            session.sizes.resize([1, 1, 99])
        save_trace(session.trace(), tmp_path / "own.safetensors")
        assert Resizes.of(load_trace(tmp_path / "own.safetensors"))


def test_no_memory_for_more_leaves_all_as_it_was(
    cases: dict[str, Case], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, allocate = cases["qwen3_moe"], slot_pool.allocate
    inputs, sequences, _ = case.stock[1]
    with OffloadSession.open(case.folder, lru(4), cache=cache) as session:
        generate(session.model, inputs)

        def scarce(layout: Any, rows: int, device: Any = None) -> torch.Tensor:
            if rows > 4:
                raise InputError(f"cannot allocate {rows} slots")
            return allocate(layout, rows, device)

        monkeypatch.setattr(slot_pool, "allocate", scarce)
        with pytest.raises(InputError, match="cannot allocate 9 slots"):
            session.sizes.resize([4, 9, 4])
        assert session.sizes.rows() == [4, 4, 4] and session.controller.slots == [4, 4, 4] and not session.sizes.history
        sound(session._executor)
        assert torch.equal(generate(session.model, inputs)[0], sequences)


@pytest.mark.parametrize(
    ("kind", "fault", "ends"),
    [
        ("ram", "interrupt 1", KeyboardInterrupt),
        ("ram", "interrupt 13", KeyboardInterrupt),
        ("ram", "interrupt 18", KeyboardInterrupt),
        ("direct", "read", InputError),
        ("ram", "memory", InputError),
    ],
)
def test_a_change_cut_short_is_the_end(
    folder: Path, stores: Path, monkeypatch: pytest.MonkeyPatch, kind: str, fault: str, ends: Any
) -> None:
    """Slots that the table names are empty then: the device must not compute from them."""
    with opened(folder, stores, Lru(), PoolConfig("layer", 6)) as session:
        late = Late(session, lru(6), "fetch", 3, kind)
        generate(session.model, prompts(4))
        sizes = PoolSizes(late.executor, torch.device("cpu"), lambda: 0, lambda: None, True)
        submit, calls = late.transfer.submit, [0]

        def interrupted(*arguments: Any) -> None:
            calls[0] += 1
            if fault == f"interrupt {calls[0]}":
                raise KeyboardInterrupt
            submit(*arguments)

        def failing(*_: Any) -> None:
            raise InputError("cannot do it")

        with monkeypatch.context() as during:
            during.setattr(late.transfer, "submit", interrupted)
            if fault == "read":
                during.setattr(late.store, "read_into", failing)
            if fault == "memory":
                during.setattr(slot_pool, "allocate", failing)
            with pytest.raises(ends, match="cannot do it; .* 18 slots .* over" if fault == "memory" else None):
                sizes.resize([7, 7, 7])
        for again in (lambda: generate(session.model, prompts(4)), lambda: sizes.resize([2, 2, 2])):
            with pytest.raises(RgpuError, match="change of its pools, was cut short; close the session"):
                again()
        late.transfer.close()


def test_a_change_cut_short_on_the_host_too(
    cases: dict[str, Case], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with OffloadSession.open(cases["qwen3_moe"].folder, lru(4), cache=cache) as session:

        def interrupted(*_: Any) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as during:
            during.setattr(session.controller, "resize", interrupted)
            with pytest.raises(KeyboardInterrupt):
                session.sizes.resize([3, 4, 4])
        with pytest.raises(RgpuError, match="cut short; close the session"):
            generate(session.model, cases["qwen3_moe"].stock[1][0])


def test_nothing_moves_while_a_cancelled_copy_is_still_written(
    cases: dict[str, Case], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its slot is EMPTY, so somebody may be moved there."""
    with OffloadSession.open(cases["qwen3_moe"].folder, lru(4), cache=cache) as session:
        generate(session.model, cases["qwen3_moe"].stock[1][0])
        read, going, may_end = session.store.read_into, threading.Event(), threading.Event()

        def slow(*arguments: Any) -> None:
            going.set()
            assert may_end.wait(10)
            read(*arguments)

        monkeypatch.setattr(session.transfer._source, "read_into", slow)
        slot = session.controller.staging + session.controller.slots[0] - 1
        session.transfer.submit(ExpertKey(0, 0), 0, slot, True)
        assert going.wait(10) and session.transfer.cancel(0, slot)
        threading.Timer(0.05, may_end.set).start()
        resize = session.controller.resize
        monkeypatch.setattr(
            session.controller, "resize", lambda *a: resize(*a) if may_end.is_set() else pytest.fail("too early")
        )
        session.sizes.resize([3, 4, 4])


RESIDENT = """
import torch
from rgpu.memory.process import rss_anon_bytes
from rgpu.memory.slot_pool import SlotPool
from rgpu.store.layout import ExpertLayout
from rgpu.types import ExpertKey
pool = SlotPool(ExpertLayout(256, 512, torch.float32), 40)
pool.buffer.fill_(1)
for slot in range(40):
    pool.finish(slot, pool.begin(slot, ExpertKey(0, slot)))
before = rss_anon_bytes()
for slot in range(10, 20):
    pool.move(slot + 20, slot)
pool.resize(20)
gone = before - rss_anon_bytes()
assert pool.buffer[:20].min() == 1 and not pool.buffer[21:].any()
assert pool.nbytes == pool.written_bytes == 20 * pool.layout.stride
print(gone / (20 * pool.layout.stride))
"""


def test_given_back_is_given_back() -> None:
    """In a process of its own: what the system counts falls by what the slots took."""
    out = subprocess.run([sys.executable, "-c", RESIDENT], capture_output=True, text=True, check=True).stdout
    assert 0.95 < float(out) < 1.05
