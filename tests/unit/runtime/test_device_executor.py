"""The GPU's executor and transfer on a device whose copies run late: same decisions, same bits, and the host never waits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rgpu.errors import InputError, RgpuError
from rgpu.kernels.compute_cpu import CpuCompute
from rgpu.memory.slot_pool import CopyState, SlotPool, make_pools
from rgpu.policies.lru import Lru
from rgpu.policies.on_demand import OnDemand
from rgpu.quant.formats import by_name
from rgpu.replay.controller import Controller
from rgpu.replay.pool import PoolConfig
from rgpu.runtime.device_executor import DeviceExecutor
from rgpu.runtime.host_misses import HostMisses
from rgpu.runtime.miss_choice import MissChoice
from rgpu.runtime.session import OffloadSession
from rgpu.store.tiers import open_source
from rgpu.traces.moe_layers import moe_layers
from rgpu.transfer.device import IN_FLIGHT, DeviceTransfer
from rgpu.transfer.errors import TransferError
from rgpu.types import ExpertKey
from tests.late_streams import LateStreams
from tests.live_models import build, generate, prompts
from tests.unit.runtime.test_session import Wild

POLICIES = {"lru": Lru(), "on_demand": OnDemand()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("qwen3_moe", tmp_path_factory.mktemp("m"), hidden_size=64, moe_intermediate_size=32)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stores")


def opened(folder: Path, cache: Path, policy: Any, pool: PoolConfig, **wild: Any) -> OffloadSession:
    rounding: Any = by_name("int4", group=32)
    return OffloadSession.open(
        folder, lambda shape: Controller(policy, shape, pool, **{name: make() for name, make in wild.items()}),
        cache=cache, quantize=rounding, kernel=CpuCompute, record=False,
    )  # fmt: skip


def at_random(seed: int) -> Any:
    """Instead of `MissChoice.divide`: any division may be the fastest."""
    rng = np.random.default_rng(seed)

    def divide(_: MissChoice, members: Any, rows_U: Any) -> tuple[list[int], list[int]]:
        assert all(rows_U[i] >= 1 for i in members)
        both: tuple[list[int], list[int]] = [], []
        for member in members:
            both[int(rng.integers(0, 2))].append(member)
        return both

    return divide


class Late:
    """A session whose model runs through the GPU's executor, on late copies."""

    def __init__(
        self, session: OffloadSession, make: Any, handler: str, seed: int, kind: str = "ram", hidden: bool = False
    ) -> None:
        self.controller = make(session.shape)
        rows = [slots + self.controller.staging for slots in self.controller.slots]
        self.pools = make_pools(session.store.layout, rows, torch.device("cpu"))
        for pool in self.pools:
            pool.buffer.fill_(255)  # NaN scales: computing what has not arrived would show
        options: dict[str, Any] = {"ram_experts": 3} if kind == "tier" else {}
        self.store = open_source(session.store.path, kind, **options)  # type: ignore[attr-defined]
        self.streams = LateStreams(seed)
        self.transfer = DeviceTransfer(self.store, self.pools, self.streams)
        gate = session.architecture.gate
        assert gate is not None
        self.executor = DeviceExecutor(
            self.controller, self.pools, self.transfer, lambda: CpuCompute(session.store.layout, gate),  # type: ignore[arg-type]
            lambda: None, hidden, self.store, handler, torch.device("cpu"), CpuCompute(session.store.layout, gate),
        )  # fmt: skip
        self.executor.filled()
        self.waits = self.streams.hostwaits
        for layer in moe_layers(session.model):
            layer.experts.run = self.executor


@pytest.mark.parametrize(("scope", "slots"), [("layer", 1), ("layer", 4), ("layer", 10), ("global", 9), ("global", 12)])
@pytest.mark.parametrize("name", sorted(POLICIES))
@pytest.mark.parametrize("handler", ["fetch", "zero_copy", "cpu", "split"])
def test_the_bits_and_decisions_of_the_host(
    folder: Path, stores: Path, name: str, scope: str, slots: int, handler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MissChoice, "divide", at_random(slots))
    policy, pool, batch = POLICIES[name], PoolConfig(scope, slots), 1 + 3 * (slots % 4 > 0)
    wild: dict[str, Any] = {} if slots == 10 else {"predictor": Wild, "planner": Wild}
    with opened(folder, stores, policy, pool, **wild) as session:
        tokens, logits = generate(session.model, prompts(batch))
        late = Late(
            session,
            lambda shape: Controller(policy, shape, pool, **{n: make() for n, make in wild.items()}),
            handler,
            slots,
        )
        again, values = generate(session.model, prompts(batch))
        assert torch.equal(tokens, again)
        assert all(torch.equal(a, b) for a, b in zip(logits, values, strict=True))
        made = [entry[2:] for entry in session.log]
        assert [entry[2:] for entry in late.controller.log] == made and made
        assert late.streams.hostwaits == late.waits
        counts = late.transfer.counts()
        assert counts.demand_bytes + counts.ahead_bytes == counts.copies * session.store.layout.nbytes
        misses = late.controller.accesses - late.controller.hits
        assert misses and 0 <= late.executor.in_place <= misses * (handler != "fetch")
        if handler == "cpu" and not wild:
            assert late.executor.in_place == misses
        if handler == "split" and slots > 1:
            assert 0 < late.executor.in_place < misses
        table = late.executor.table
        for pool_index, states in enumerate(late.pools):
            for slot in range(late.controller.slots[pool_index]):
                key = states.key(slot)
                if key is not None and table.host_LE[key.layer, key.expert] == slot:
                    assert states.state(slot) is CopyState.READY
                    row = torch.from_numpy(session.store.buffer(key).copy())
                    assert torch.equal(states.buffer[slot, : len(row)], row)
        assert torch.equal(table.slots_LE, torch.from_numpy(table.host_LE))
        late.transfer.close()
        late.transfer.close()
        with pytest.raises(TransferError, match="closed"):
            late.transfer.submit(ExpertKey(0, 0), 0, 0)


@pytest.mark.parametrize("kind", ["disk", "direct", "tier"])
def test_experts_that_no_memory_holds_pass_through_it(folder: Path, stores: Path, kind: str) -> None:
    pool = PoolConfig("layer", 2)
    with opened(folder, stores, Lru(), pool) as session:
        tokens, logits = generate(session.model, prompts(4))
        Late(session, lambda shape: Controller(Lru(), shape, pool), "fetch", 3, kind)
        again, values = generate(session.model, prompts(4))
        assert torch.equal(tokens, again)
        assert all(torch.equal(a, b) for a, b in zip(logits, values, strict=True))
        with pytest.raises(InputError, match="got zero_copy with a store that does not hold .*; set pool.miss=fetch"):
            Late(session, lambda shape: Controller(Lru(), shape, pool), "zero_copy", 3, kind)


def test_handlers_and_stores_that_a_gpu_cannot_have(folder: Path, stores: Path) -> None:
    pool = PoolConfig("layer", 2)
    with opened(folder, stores, Lru(), pool) as session:
        with pytest.raises(InputError, match="got 'slow'; expected one of fetch, zero_copy, cpu, split on a GPU; set"):
            Late(session, lambda shape: Controller(Lru(), shape, pool), "slow", 3)
        for handler in ("cpu", "split"):
            with pytest.raises(InputError, match=f"got {handler} with a store that does not hold .*; set one, or"):
                Late(session, lambda shape: Controller(Lru(), shape, pool), handler, 3, "direct")
        with pytest.raises(InputError, match="got cpu on a GPU without a kernel for the host; .* host_kernel="):
            HostMisses(session.store, None, "cpu")
        with pytest.raises(InputError, match="got zero_copy with a store"):  # a mapped file is not page-locked
            Late(session, lambda shape: Controller(Lru(), shape, pool), "zero_copy", 3, "disk")


def test_copies_ahead_wait_on_the_host_and_can_be_dropped(folder: Path, stores: Path) -> None:
    with opened(folder, stores, Lru(), PoolConfig("layer", 2)) as session:
        pool = SlotPool(session.store.layout, 10)
        streams = LateStreams(0)
        streams.random = type("Never", (), {"integers": staticmethod(lambda *_: 0)})()  # type: ignore[assignment]
        transfer = DeviceTransfer(open_source(session.store.path, "ram"), [pool], streams)  # type: ignore[attr-defined]
        for slot in range(8):
            transfer.submit(ExpertKey(0, slot), 0, slot, ahead=True)
        assert len(streams.queue) == IN_FLIGHT
        assert not transfer.cancel(0, 0) and transfer.cancel(0, 6) and not transfer.cancel(0, 6)
        assert pool.state(6) is CopyState.EMPTY and pool.state(5) is CopyState.LOADING
        transfer.submit(ExpertKey(0, 9), 0, 7)  # on demand, into a slot whose copy ahead had not begun
        assert len(streams.queue) == IN_FLIGHT + 1
        transfer.wait(0, 7)
        row = torch.from_numpy(session.store.buffer(ExpertKey(0, 9)).copy())
        assert torch.equal(pool.buffer[7, : len(row)], row)
        transfer.wait(0, 5)  # goes first now
        counts = transfer.counts()
        assert (counts.cancelled, counts.promoted) == (2, 1)
        assert pool.state(5) is CopyState.READY and pool.state(7) is CopyState.READY


@pytest.mark.parametrize("at", [1, 2, 7])
def test_a_step_cut_short_is_the_last(folder: Path, stores: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Interrupted between a decision and its computation: whatever runs next must not believe the table."""
    pool = PoolConfig("layer", 3)
    with opened(folder, stores, Lru(), pool) as session:
        late = Late(session, lambda shape: Controller(Lru(), shape, pool), "fetch", 1)
        launches, launch = [0], late.executor._launch

        def interrupted(*arguments: Any) -> Any:
            launches[0] += 1
            if launches[0] == at:
                raise KeyboardInterrupt
            return launch(*arguments)

        monkeypatch.setattr(late.executor, "_launch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            generate(session.model, prompts(4))
        with pytest.raises(RgpuError, match="cut short; close the session"):
            generate(session.model, prompts(4))


def test_a_read_that_fails_ends_all_copying(folder: Path, stores: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = PoolConfig("layer", 2)
    with opened(folder, stores, Lru(), pool) as session:
        late = Late(session, lambda shape: Controller(Lru(), shape, pool), "fetch", 3, "direct")

        def failing(*_: Any) -> None:
            raise InputError("cannot read x: got an error; expected bytes; replace the disk")

        monkeypatch.setattr(late.store, "read_into", failing)
        with pytest.raises(InputError, match="cannot read x"):
            generate(session.model, prompts(4))
        for ahead in (False, True):
            with pytest.raises(InputError, match="cannot read x"):
                late.transfer.submit(ExpertKey(0, 1), 0, 0, ahead=ahead)
        with pytest.raises(InputError, match="cannot read x"):
            late.transfer.wait(0, 0)
        late.transfer.close()


def test_float_experts_over_a_device_s_copies(folder: Path, stores: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session whose slots are filled by the GPU's transfer gives the host's bits; misses can only be fetched there."""

    def floats(**options: Any) -> OffloadSession:
        return OffloadSession.open(
            folder, lambda shape: Controller(Lru(), shape, PoolConfig("layer", 3), predictor=Wild(), planner=Wild()),
            cache=stores, store="ram", record=False, **options,
        )  # fmt: skip

    with floats() as session:
        tokens, logits = generate(session.model, prompts(4))
    monkeypatch.setattr(OffloadSession, "_streams", lambda _: LateStreams(5))
    with floats() as session:
        again, values = generate(session.model, prompts(4))
        assert session.transfer.counts().copies > 0
    assert torch.equal(tokens, again)
    assert all(torch.equal(a, b) for a, b in zip(logits, values, strict=True))
    with pytest.raises(InputError, match="got 'cpu' with float experts on a GPU; expected fetch"):
        floats(handler="cpu")
